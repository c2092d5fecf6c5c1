"""What a score keeps beside its value: the keys of `details` in its JSON."""

from __future__ import annotations

from docs.made.markdown import code, table

EVERY, CLASSES, TRAINED, NEAREST = "every score", "kinds with classes", "track A", "track B"
DETAILS = (
    ("by_round", EVERY, "object of numbers: score of each round (`test`, or a fold), a mean over seeds"),
    ("by_seed", EVERY, "object of numbers: score of each seed, a mean over rounds"),
    (
        "bootstrap",
        EVERY,
        "`clips`: hash of the clips that were tested; `values`: the score on each of 1,000 resamples of them, which "
        "are the same for every encoder",
    ),
    ("recipe", EVERY, "the recipe, as it is hashed into the fingerprint"),
    ("left_out", EVERY, "list of shard, key and reason of clips that are not in the store, the first hundred"),
    ("classes", CLASSES, "list of text: their names, in the order of all that follows"),
    ("by_class", CLASSES, "list of numbers: score of each class; null for one that no test clip shows"),
    ("support", CLASSES, "list of whole numbers: test clips of each class"),
    ("classes_not_in_training", CLASSES, "list of text: classes that are tested and that no training clip shows"),
    ("confusion", "one class a clip, at most 60 classes", "counts: a list for each true class, by predicted class"),
    ("confused", "one class a clip, more classes", "list of true class, predicted class and count: the most frequent"),
    (
        "shots",
        "`--shots`",
        "by number of training clips of a class: `mean`, `std`, `low` and `high` (the middle 95 %) over `support_sets` "
        "draws",
    ),
    ("k_curve", NEAREST, "object of numbers: score by k"),
    ("k_asked", NEAREST, "k that the value is of"),
    (
        "neighbours",
        NEAREST,
        "by round: `recall` by k, `map`, `k`, and the `queries` that have something to find",
    ),
    ("index_recall", "`--index`, but flat", "`recall` of the index at `k` against exact search, `of` what"),
    ("best_epoch", TRAINED, "by round: the epoch that was chosen, for each seed"),
    ("validation", TRAINED, "by round: score on validation clips of each epoch, for each seed"),
    (
        "sweep",
        "`--head sweep`",
        "by round: the settings that were `chosen`, and all that were `tried` with their scores",
    ),
    ("logreg", "`--head logreg`", "by round: the C that was `chosen`, and all that were `tried` with their scores"),
    ("event_f1", "kind frame, strict", "event-based F1: `value`, `average`, `onset_tolerance_seconds`"),
    ("metrics", "kind regression", "object of numbers: `mae`, `mse`, `pearson`, `spearman`"),
    ("n_captions", "kind contrastive", "captions that were asked with, and for"),
    (
        "audio_to_text",
        "kind contrastive",
        "`recall_at_1`, `recall_at_5`, `recall_at_10` and `map_at_10` of captions by clip",
    ),
    ("text_to_audio", "kind contrastive", "the same of clips by caption"),
    ("wer", "kinds ctc, asr", "word error rate"),
    ("cer", "kinds ctc, asr", "character error rate"),
    ("examples", "kinds ctc, asr", "list of what was said and what was heard, the first few test clips"),
    ("alphabet", "kind ctc", "text: the characters that are spelled"),
    ("upsampling", "kind ctc", "how often a frame is repeated, so that it can spell the fastest clip"),
    ("train_clips_too_short", "kind ctc", "training clips of fewer frames than letters, which are left out"),
)


def details_section() -> str:
    """A table of all of them."""
    rows = [(code(name), where, meaning) for name, where, meaning in DETAILS]
    return (
        "## Details of a score\n\nWhat a [ScoreRecord](#scorerecord) has in `details`. With several folds, numbers of "
        "kinds contrastive, ctc and asr stand by round.\n\n" + table(("key", "of", "value"), rows)
    )

"""What records keep beside their fields: the keys of `details` of a score, and of `figures` of a check."""

from __future__ import annotations

from docs.made.markdown import code, table

EVERY, CLASSES, TRAINED, NEAREST = "every score", "kinds with classes", "track A", "track B"
DETAILS = (
    ("by_round", EVERY, "object of numbers: score of each round (`test`, or a fold), a mean over seeds"),
    ("by_seed", EVERY, "object of numbers: score of each seed, a mean over rounds"),
    (
        "interval",
        EVERY,
        "`method` of the interval, or the `reason` why there is none",
    ),
    (
        "spread",
        EVERY,
        "what encoders are compared by: `clips`, hash of the names of the test clips; `units`, `clips` or `groups`, "
        "and `n`, their number; `deviations`, what each unit (of more than 200, each block of them) adds to the score "
        "beyond the mean; `variance` of the score over units; `right`, of accuracy: how many seeds have each clip "
        "right, a digit a clip in the order of their names",
    ),
    (
        "chance_corrected",
        "metric mAP",
        "mean over classes of (AP - chance) / (1 - chance): does not depend on how many clips there are",
    ),
    ("recipe", EVERY, "the recipe, as it is hashed into the fingerprint"),
    ("left_out", EVERY, "list of shard, key and reason of clips that are not in the store, the first hundred"),
    (
        "warnings",
        EVERY,
        "list of what to know before trusting the score: `kind`, `message`, `count`, and figures of the kind; see "
        "[Protocols](../protocols.md#warnings-with-a-score)",
    ),
    ("classes", CLASSES, "list of text: their names, in the order of all that follows"),
    (
        "by_class",
        CLASSES,
        "list of numbers: score of each class, of several rounds the mean weighted by its test clips; null for one "
        "that no test clip shows",
    ),
    ("support", CLASSES, "list of whole numbers: test clips of each class"),
    ("classes_not_in_training", CLASSES, "list of text: classes that are tested and that no training clip shows"),
    ("confusion", "one class a clip, at most 60 classes", "counts: a list for each true class, by predicted class"),
    ("confused", "one class a clip, more classes", "list of true class, predicted class and count: the most frequent"),
    (
        "shots",
        "`--shots`",
        "by number of training clips of a class: `mean`, `std`, `low` and `high` (the middle 95 % of draws in a "
        "round) over `support_sets` draws",
    ),
    (
        "neighbours_vote",
        "track A, strict, of a task that has track B",
        "`score` of the nearest neighbours in the rounds of the probe, and whether it is `above_interval`, better than "
        "the probe's interval",
    ),
    ("k_curve", NEAREST, "object of numbers: score by k"),
    ("k_asked", NEAREST, "k that the value is of"),
    (
        "neighbours",
        NEAREST,
        "by round: `recall` by k, `map`, `k`, and the `queries` that have something to find",
    ),
    ("index_recall", "`--index`, but flat", "`recall` of the index at `k` against exact search, `of` what"),
    (
        "fit",
        "heads logistic, ridge, sweep",
        "`converged` (all fits), `at_edge` (any of them), `extended`, `notes`, and `rounds`: by round, for each seed, "
        "`strength` (scikit-learn's C or alpha) or `learning_rate`, the `grid` that was tried with its validation "
        "`scores`, whether it was `extended`, `at_edge`, `iterations` or `epochs`, `gradient_norm` and `converged`",
    ),
    ("best_epoch", "heads linear, sweep", "by round: the epoch that was chosen, for each seed"),
    ("validation", "heads linear, sweep", "by round: score on validation clips of each epoch, for each seed"),
    ("best_epoch_at_edge", "heads linear, sweep", "whether some best epoch is the first or the last allowed"),
    (
        "at_or_below_majority",
        "track A of kinds clip, multilabel, regression",
        "whether the score is no better than that of one answer for all: the training shares, or their mean",
    ),
    ("event_f1", "kind frame, strict", "event-based F1: `value`, `average`, `onset_tolerance_seconds`"),
    ("metrics", "kind regression", "object of numbers: `mae`, `mse`, `pearson`, `spearman`"),
    ("n_captions", "kind contrastive", "captions that were asked with, and for"),
    ("n_shared_captions", "kind contrastive", "how many of these several test clips have, word for word"),
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


CONSISTENCY = "determinism, batch invariance"
FIGURES = (
    ("encoder", "contract", "its name"),
    ("fingerprint", "contract", "of the recipe that it was checked under"),
    ("device", "contract", "where it ran"),
    ("precision", "contract", "arithmetic of the forward pass"),
    ("padding", "contract", "rule that windows were padded by"),
    ("frame_dtype", "contract", "what frames would be stored as"),
    ("sample_rate_hz", "contract", "that it is declared to take"),
    ("dim", "contract", "width of its frames"),
    ("hop_seconds", "contract", "that it declares"),
    ("takes_lengths", "contract", "whether `forward` takes the true lengths"),
    ("own_utterance", "contract", "whether it returns a vector of the clip itself"),
    ("returned_dtype", "contract", "of its frames, before they are stored"),
    ("modules", "identity", "list of modules of code that the fingerprint counts, each with the following three"),
    ("name", "`modules`", "as it is imported; empty for the encoder's own file"),
    ("sha256", "`modules`", "of its syntax tree"),
    ("path", "`modules`", "of its file, which does not count"),
    ("identity", "identity", "`encoder_identity` of the recipe"),
    ("identity_sha256", "identity", "of the canonical JSON of `identity`"),
    ("max_relative_difference", CONSISTENCY, "largest difference, as a share of the size of the vectors"),
    ("min_cosine", f"{CONSISTENCY}, clipped audio", "least cosine of two vectors that should be alike"),
    (
        "relative_difference_by_seconds",
        "padding",
        "what padding changes of the utterance vector, by length",
    ),
    (
        "cosine_by_seconds",
        "padding of X-ARES",
        "of the vector padded and not, by seconds of the longer window",
    ),
    ("declared_hop_seconds", "hop", "as in the contract"),
    ("measured_hop_seconds", "hop", "by frames of several lengths; absent where all have as many"),
    ("frames_off_in_10_s", "hop", "what the difference of the two comes to"),
    ("frames_by_seconds", "hop", "what was measured: frames by seconds of audio"),
    ("frames", "10 ms of audio, `lengths`", "that came"),
    ("padded_seconds", "10 ms of audio", "what the recipe pads it to"),
    ("takes_it_unpadded", "10 ms of audio", "whether it would have done without"),
    ("lengths", "10 min of audio", "list of what was tried, each with the following three and `frames`"),
    ("audio_seconds", "`lengths`", "of the clip"),
    ("seconds", "`lengths`", "that it took"),
    ("peak_bytes", "`lengths`", "memory at its peak; null where that is not known"),
    ("is_zero", "silence", "whether a vector of zeros comes of it"),
    ("frames_vary_by", "silence", "how far frames are from their mean, as a share of its size"),
    ("largest_frame_value", "float16 range", "over all inputs"),
    ("share_of_float16", "float16 range", "that value as a share of the largest of float16"),
    ("batches", "speed", "list by size: `batch_seconds`, `times_real_time` (without padding), `peak_bytes`"),
    ("window_seconds", "speed", "of the windows in a batch"),
    ("free_bytes", "speed", "memory that was free; null where that is not known"),
    ("suggested_batch_seconds", "speed", "the size to take; null where none is small enough"),
)


def figures_section() -> str:
    """A table of all of them."""
    rows = [(code(name), where, meaning) for name, where, meaning in FIGURES]
    return "## Figures of a check\n\nWhat a [Check](#check) has in `figures`, by its name.\n\n" + table(
        ("key", "of", "value"), rows
    )

"""The keys of `details` of a score and of `figures` of a check, which are not fields of a record."""

from __future__ import annotations

from docs.made.markdown import code, table

EVERY, CLASSES, TRAINED, NEAREST = "every score", "kinds with classes", "track A", "measure knn"
MEASURES = "measures retrieval, clustering, pairs"
DETAILS = (
    (
        "by_round",
        EVERY,
        "object of numbers: score of each round (`test`, or a fold), averaged over seeds; empty for measures other "
        "than knn, which score the clips of all rounds together",
    ),
    ("by_seed", EVERY, "object of numbers: score of each seed, averaged over rounds"),
    (
        "interval",
        EVERY,
        "`method` of the interval, or the `reason` why there is no interval",
    ),
    (
        "spread",
        EVERY,
        "data for comparing encoders: `clips`, a hash of the names of the test clips; `units`, `clips` or `groups`, "
        "and `n`, their number; `deviations`, the amount by which each unit (of more than 200, each block of units) "
        "raises the score above the mean; `variance` of the score over units; for accuracy `right`, the number of "
        "seeds that classify each clip correctly, one digit per clip in the order of their names",
    ),
    (
        "chance_corrected",
        "metric mAP",
        "mean over classes of (AP - chance) / (1 - chance), which does not depend on the number of clips",
    ),
    ("recipe", EVERY, "the recipe that the fingerprint hashes"),
    ("left_out", EVERY, "list of shard, key and reason of the first hundred clips that extraction skipped"),
    (
        "warnings",
        EVERY,
        "list of warnings: `kind`, `message`, `count`, and the figures of the kind; see "
        "[Protocols](../protocols.md#warnings-with-a-score)",
    ),
    (
        "near_duplicates",
        EVERY,
        "`test_clips`; of these, `exact` with the embedding of a training or validation clip, and `near`, further "
        "clips with nearly one (`cosine` or more); `searched_windows` of `test_windows`, and `is_complete`: whether "
        "every window was searched",
    ),
    ("classes", CLASSES, "list of text: names of the classes, in the order of the other lists of classes"),
    (
        "by_class",
        CLASSES,
        "list of numbers: score of each class; with several rounds, the mean weighted by its test clips; null for a "
        "class without test clips",
    ),
    ("support", CLASSES, "list of whole numbers: number of test clips of each class"),
    ("classes_not_in_training", CLASSES, "list of text: tested classes without a training clip"),
    ("confusion", "one class per clip, at most 60 classes", "counts: one list per true class, by predicted class"),
    ("confused", "one class per clip, more classes", "list of the most frequent true class, predicted class and count"),
    (
        "shots",
        "`--shots`",
        "by number of training clips per class: `mean`, `std`, `low` and `high` (the middle 95 % of draws in a "
        "round) over `support_sets` draws",
    ),
    (
        "random_folds",
        "`--split-by`",
        "score of random folds of the same clips: `value`, `ci_low`, `ci_high`, number of `folds` and `groups`; "
        "`difference`, random - grouped, and its 95 % interval, `difference_low` and `difference_high` (null for fewer "
        "than 12 groups)",
    ),
    (
        "layer_weights",
        "head layer-mix",
        "`layers`; `mean`, their weights over rounds and seeds, and `std`, the standard deviation (null for one fit); "
        "number of `fits`",
    ),
    (
        "neighbours_vote",
        "track A, strict, if the task has track B",
        "`score` of the nearest neighbours in the rounds of the probe, and `above_interval`: whether it is better than "
        "the probe's interval",
    ),
    (
        "scores",
        MEASURES,
        "by metric: `value`, `low` and `high` of its 95 % interval, and `method`, or the `reason` why there is none",
    ),
    ("clips", MEASURES, "number of test clips that were compared; of more than 20,000, a sample"),
    ("queries", "measure retrieval", "number of clips with another clip to find"),
    ("n_clusters", "measure clustering", "number of clusters of k-means, and in `hdbscan` of HDBSCAN"),
    (
        "hdbscan",
        "measure clustering",
        "`scores`, `clips` and `n_clusters`, and `noise`, the share of clips in no cluster",
    ),
    ("pairs", "measure pairs", "numbers of `same` and `different` pairs, and of `scored` ones; of too many, a sample"),
    ("k_curve", NEAREST, "object of numbers: score by k"),
    ("k_asked", NEAREST, "k of the reported score"),
    (
        "neighbours",
        NEAREST,
        "by round: `recall` by k, `map`, `k`, and `queries`, the number of queries with a relevant training clip",
    ),
    (
        "prompts",
        "measures `zero-shot` and `text`",
        "list of objects: each `prompt` of the manifest, and the `value` of the score by it alone",
    ),
    (
        "prompt_spread",
        "measures `zero-shot` and `text`",
        "`min`, `max` and sample standard deviation `std` of these values; `std` is null for one prompt",
    ),
    (
        "text_to_audio",
        "measure `text` of classes",
        "`queries`, the number of classes with a test clip; `recall` by k, the share of them with a clip of the class "
        "among the first k; `ndcg_at_10`; means over rounds",
    ),
    ("index_recall", "`--index` except flat", "`recall` of the index at `k` against exact search; `of`, the queries"),
    (
        "fit",
        "heads logistic, ridge, sweep, layer-mix",
        "`converged` (all fits), `at_edge` (any fit), `extended`, `notes`, and `rounds`: by round, for each seed, "
        "`strength` (scikit-learn's C or alpha) or `learning_rate`, the searched `grid` with its validation "
        "`scores`, whether it was `extended`, `at_edge`, `iterations` or `epochs`, `gradient_norm` and `converged`",
    ),
    ("best_epoch", "minibatches: heads linear, sweep, layer-mix", "by round: the selected epoch of each seed"),
    (
        "validation",
        "minibatches: heads linear, sweep, layer-mix",
        "by round: validation score of each epoch, for each seed",
    ),
    (
        "best_epoch_at_edge",
        "minibatches: heads linear, sweep, layer-mix",
        "whether any best epoch is the first or the last allowed",
    ),
    (
        "at_or_below_majority",
        "track A of kinds clip, multilabel, regression",
        "whether the score is not better than a constant prediction: the class shares or the mean of training",
    ),
    ("event_f1", "kind frame, strict", "event-based F1: `value`, `average`, `onset_tolerance_seconds`"),
    ("metrics", "kind regression", "object of numbers: `mae`, `mse`, `pearson`, `spearman`"),
    ("n_captions", "kind contrastive, both tracks", "number of captions used as queries and targets"),
    (
        "n_shared_captions",
        "kind contrastive, both tracks",
        "number of these captions that several test clips share, word for word",
    ),
    (
        "audio_to_text",
        "kind contrastive, both tracks",
        "`recall_at_1`, `recall_at_5`, `recall_at_10` and `map_at_10` of retrieving captions by clip",
    ),
    ("text_to_audio", "kind contrastive, both tracks", "the same for retrieving clips by caption"),
    ("wer", "kinds ctc, asr", "word error rate"),
    ("cer", "kinds ctc, asr", "character error rate"),
    ("examples", "kinds ctc, asr", "list of reference and hypothesis of the first few test clips"),
    ("alphabet", "kind ctc", "text: the characters of the output"),
    ("upsampling", "kind ctc", "number of repetitions of each frame, so that there are enough frames for CTC"),
    (
        "train_clips_too_short",
        "kind ctc",
        "number of training clips that are skipped because they have too few frames for CTC",
    ),
)


def details_section() -> str:
    """Build the table of details."""
    rows = [(code(name), where, meaning) for name, where, meaning in DETAILS]
    return (
        "## Details of a score\n\nThe keys of `details` of a [ScoreRecord](#scorerecord). With several folds, numbers "
        "of kinds contrastive, ctc and asr are objects by round.\n\n" + table(("key", "of", "value"), rows)
    )


CONSISTENCY = "determinism, batch invariance"
FIGURES = (
    ("encoder", "contract", "name of the encoder"),
    ("fingerprint", "contract", "fingerprint of the checked recipe"),
    ("device", "contract", "device of the check"),
    ("precision", "contract", "arithmetic of the forward pass"),
    ("padding", "contract", "padding rule"),
    ("frame_dtype", "contract", "storage type of frames"),
    ("sample_rate_hz", "contract", "declared sample rate of the input"),
    ("dim", "contract", "dimension of the frames"),
    ("hop_seconds", "contract", "declared hop"),
    ("takes_lengths", "contract", "whether `forward` takes the true lengths"),
    ("own_utterance", "contract", "whether the encoder returns an utterance vector itself"),
    ("returned_dtype", "contract", "type of the returned frames, before they are stored"),
    ("modules", "identity", "list of the code modules that the fingerprint covers, each with the following three keys"),
    ("name", "`modules`", "import name; empty for the encoder's own file"),
    ("sha256", "`modules`", "SHA-256 of the syntax tree"),
    ("path", "`modules`", "path of the file, which is not part of the fingerprint"),
    ("identity", "identity", "`encoder_identity` of the recipe"),
    ("identity_sha256", "identity", "SHA-256 of the canonical JSON of `identity`"),
    ("max_relative_difference", CONSISTENCY, "largest difference relative to the norm of the vectors"),
    ("min_cosine", f"{CONSISTENCY}, clipped audio", "lowest cosine of two vectors that should be equal"),
    (
        "relative_difference_by_seconds",
        "padding",
        "relative change of the utterance vector by padding, by seconds of audio",
    ),
    (
        "cosine_by_seconds",
        "padding of X-ARES",
        "cosine of the padded and the unpadded vector, by seconds of the longer window",
    ),
    ("declared_hop_seconds", "hop", "hop declared in the contract"),
    (
        "measured_hop_seconds",
        "hop",
        "hop estimated from the frames of several lengths; absent if the number of frames is constant",
    ),
    ("frames_off_in_10_s", "hop", "number of frames in 10 s by which the two differ"),
    ("frames_by_seconds", "hop", "measured number of frames by seconds of audio"),
    ("frames", "10 ms of audio, `lengths`", "number of returned frames"),
    ("padded_seconds", "10 ms of audio", "length to which the recipe pads it"),
    ("takes_it_unpadded", "10 ms of audio", "whether the encoder accepts it without padding"),
    ("lengths", "10 min of audio", "list of the tried lengths, each with the following three keys and `frames`"),
    ("audio_seconds", "`lengths`", "length of the clip"),
    ("seconds", "`lengths`", "time of encoding"),
    ("peak_bytes", "`lengths`", "peak memory; null if unknown"),
    ("is_zero", "silence", "whether the vector is zero"),
    ("frames_vary_by", "silence", "distance of the frames from their mean, relative to its norm"),
    ("largest_frame_value", "float16 range", "largest absolute frame value over all inputs"),
    ("share_of_float16", "float16 range", "that value divided by the largest float16 value"),
    ("batches", "speed", "list by batch size: `batch_seconds`, `times_real_time` (without padding), `peak_bytes`"),
    ("window_seconds", "speed", "length of the windows in a batch"),
    ("free_bytes", "speed", "free memory; null if unknown"),
    ("suggested_batch_seconds", "speed", "recommended batch size; null if none is small enough"),
)


def figures_section() -> str:
    """Build the table of figures."""
    rows = [(code(name), where, meaning) for name, where, meaning in FIGURES]
    return "## Figures of a check\n\nThe keys of `figures` of a [Check](#check), by name of the check.\n\n" + table(
        ("key", "of", "value"), rows
    )

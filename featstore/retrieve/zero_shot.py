"""Score a task by texts: classification without training (`score_zero_shot`), and retrieval (`score_text_retrieval`).

Both compare test clips with the stored vectors of the manifest's prompts, and load no encoder. A class is the mean of
the unit vectors of its prompts, scaled to unit length: the prompt ensemble of CLIP (Radford et al. 2021, section
3.1.4), as used for CLAP (Elizalde et al. 2023; Wu et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation import Samples, Stopwatch, TaskData, score_outcomes, score_record
from featstore.evaluation.texts import KINDS, check_has_words, text_vectors
from featstore.metrics import Metric, find_metric
from featstore.metrics.classification import as_label_sets
from featstore.records import Recipe, ScoreRecord
from featstore.retrieve.captions import score_captions
from featstore.retrieve.measured import MeasuredTask
from featstore.retrieve.scan import unit_rows

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["prompt_vectors", "score_text_retrieval", "score_zero_shot", "why_no_text", "why_no_zero_shot"]

RECALL_KS = (1, 5, 10)
NDCG_K = 10


def why_no_text(manifest: Manifest) -> str:
    """Return why the measure ``text`` is not defined for a task, or an empty text."""
    if manifest.kind in (*KINDS, "contrastive"):
        return ""
    return f"is of kind {manifest.kind!r}, which has neither classes to describe by texts nor captions"


def why_no_zero_shot(manifest: Manifest) -> str:
    """Return why the measure ``zero-shot`` is not defined for a task, or an empty text."""
    if manifest.kind == "multilabel" and manifest.metric == "macro_f1":
        return "has several labels and the metric macro_f1, which needs a threshold that cosines do not have"
    return "" if manifest.kind in KINDS else f"is of kind {manifest.kind!r}, which has no classes to describe by texts"


def score_zero_shot(of: MeasuredTask) -> ScoreRecord:
    """Classify test clips by the cosine with the texts of the classes; nothing is trained.

    ``strict`` compares the mean of the vectors of a clip's windows, weighted by duration; ``xares`` each window.

    Returns
    -------
    ScoreRecord
        ``details["prompts"]`` is the score of each prompt alone, and ``details["prompt_spread"]`` their ``min``,
        ``max`` and sample standard deviation ``std`` (None for one prompt).

    Raises
    ------
    UsageError
        The classes are numbers without words, or the embeddings are not in the space of the text tower.
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings or texts that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid.
    """
    compared = _compare(of)
    return _record(compared, find_metric(of.manifest.metric, of.protocol), measure="zero-shot")


def score_text_retrieval(of: MeasuredTask) -> ScoreRecord:
    """Retrieve the test clips of each class by the text of the class; the score is mAP, the mean over classes.

    The errors are those of `score_zero_shot`. Of a data set with captions, these are the texts: see
    `featstore.retrieve.captions.score_captions`.

    Returns
    -------
    ScoreRecord
        ``metric`` is ``"mAP"``. ``details["prompts"]`` and ``details["prompt_spread"]`` as in `score_zero_shot`;
        ``details["text_to_audio"]`` has ``queries``, the number of classes with a test clip, ``recall``, the share of
        queries with a clip of the class among the first 1, 5 and 10, and ``ndcg_at_10``; means over rounds.
    """
    if of.manifest.kind == "contrastive":
        return score_captions(of)
    compared = _compare(of)
    record = _record(compared, find_metric("mAP", of.protocol), measure="text")
    relevant = [
        _relevant_by_rank(samples.y_true, scores)
        for samples, scores in zip(compared.samples, compared.ensemble, strict=True)
    ]
    found = {
        "queries": sum(map(len, relevant)),
        "recall": {str(k): float(np.mean([each[:, :k].any(axis=1).mean() for each in relevant])) for k in RECALL_KS},
        f"ndcg_at_{NDCG_K}": float(np.mean([_ndcg(each, k=NDCG_K).mean() for each in relevant])),
    }
    return replace(record, metric="mAP", details={**record.details, "text_to_audio": found})


def _relevant_by_rank(y_true: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether each sample has the class, in descending order of the class's scores: (classes with a sample, samples).

    Of samples with equal scores, those without the class are first.
    """
    relevant = as_label_sets(y_true, scores.shape[1])
    present = np.flatnonzero(relevant.any(axis=0))
    order = np.lexsort((relevant[:, present], -scores[:, present]), axis=0)
    return np.take_along_axis(relevant[:, present], order, axis=0).T


def _ndcg(relevant: NDArray[np.bool_], *, k: int) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the first `k` ranks with binary gains (Jarvelin and Kekalainen 2002)."""
    discounts = 1.0 / np.log2(np.arange(2, min(k, relevant.shape[1]) + 2))
    ideal = np.arange(len(discounts)) < relevant.sum(axis=1, keepdims=True)
    return np.asarray((relevant[:, : len(discounts)] @ discounts) / (ideal @ discounts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """Test samples of each round, and their cosines with the classes: by the ensemble, and by each prompt alone.

    ``ensemble`` has (samples, n_classes) for each round, ``alone`` one such list for each prompt.
    """

    task: TaskData
    watch: Stopwatch
    samples: tuple[Samples, ...]
    ensemble: tuple[NDArray[np.float32], ...]
    alone: tuple[tuple[NDArray[np.float32], ...], ...]


def _compare(of: MeasuredTask) -> _Compared:
    watch = Stopwatch()
    with watch("read"):
        nothing = np.zeros(0, np.int64)
        # nothing is trained, so that clips of the training set cannot leak
        untrained = [replace(each, train=nothing, valid=nothing, reference=nothing) for each in of.task.rounds]
        task = replace(of.task, rounds=tuple(untrained))
        texts = prompt_vectors(of.store, of.manifest, task.recipe, task.classes)
    with watch("compare"):
        samples = tuple(task.samples(each.test) for each in task.rounds)
        clips = [unit_rows(each.vote(task.X[each.windows]).astype(np.float32)) for each in samples]
        classes = unit_rows(texts.mean(axis=1))
        return _Compared(
            task=task,
            watch=watch,
            samples=samples,
            ensemble=tuple(vectors @ classes.T for vectors in clips),
            alone=tuple(tuple(vectors @ texts[:, prompt].T for vectors in clips) for prompt in range(texts.shape[1])),
        )


def _record(compared: _Compared, metric: Metric, *, measure: str) -> ScoreRecord:
    task, watch, manifest = compared.task, compared.watch, compared.task.manifest
    with watch("score"):
        outcomes = [
            samples.tested([scores]) for samples, scores in zip(compared.samples, compared.ensemble, strict=True)
        ]
        scores = score_outcomes(task, outcomes, metric=metric)
        alone = [
            float(
                np.mean(
                    [metric.score(each.y_true, found) for each, found in zip(compared.samples, by_round, strict=True)]
                )
            )
            for by_round in compared.alone
        ]
    prompts = manifest.zero_shot.prompts
    record = score_record(
        task,
        scores,
        track="B",
        with_leakage=False,
        seeds=(),
        settings={"measure": measure, "prompts": list(prompts)},
        seconds=watch.seconds,
        libraries=(),
        details={
            "prompts": [{"prompt": prompt, "value": value} for prompt, value in zip(prompts, alone, strict=True)],
            "prompt_spread": {
                "min": min(alone),
                "max": max(alone),
                "std": float(np.std(alone, ddof=1)) if len(alone) > 1 else None,
            },
        },
    )
    return replace(record, manifest_sha256=manifest.sha256_with_texts)


def prompt_vectors(store: Store, manifest: Manifest, recipe: Recipe, classes: Sequence[str]) -> NDArray[np.float32]:
    """Read the vectors of all prompts of all classes, float32 (n_classes, n_prompts, dim), of unit length.

    Raises
    ------
    UnknownFeatureSet
        The store lacks them: the encoder has no text tower, or the prompts were changed since the extraction.
    UsageError
        The embeddings are of a hidden state or another pooling than the mean, or the classes are numbers without words.
    """
    check_has_words(manifest, classes)
    texts = [text for name in classes for text in manifest.zero_shot.texts(name)]
    vectors = unit_rows(text_vectors(store, manifest, recipe, texts))
    return vectors.reshape(len(classes), len(manifest.zero_shot.prompts), -1)

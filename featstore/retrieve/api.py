"""Score one task by the vote of nearest neighbours, the measure ``knn``: `retrieve_task`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError
from featstore.evaluation import (
    Samples,
    Stopwatch,
    TaskData,
    check_shots,
    score_outcomes,
    score_record,
    shots_details,
    support_sets,
)
from featstore.evaluation.neighbours import neighbour_vote, votes_of_nearest
from featstore.metrics import Metric, find_metric
from featstore.records import Protocol, ScoreRecord
from featstore.retrieve.index_plan import IvfKind
from featstore.retrieve.knn import IndexName, Neighbours, evenly, ranking_scores, recall_of, without_own
from featstore.retrieve.measured import MeasuredTask
from featstore.retrieve.saved_index import RECALL_K, JoinedIndexes, Notify, open_index
from featstore.retrieve.scan import unit_columns, unit_rows
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.retrieve.index import Searcher
    from featstore.store import FeatureSet, Store
    from featstore.tasks import Manifest

__all__ = ["retrieve_task", "score_knn", "why_no_vote"]

KINDS = ("clip", "multilabel")
N_RECALL_QUERIES = 1000
MIN_SAVED_WINDOWS = 100_000
"""Number of reference windows from which an inverted-file index is saved beside the store."""

Scaling = Callable[[NDArray[np.float32]], NDArray[np.float32]]
SCALING_OF_TRAIN: Mapping[Protocol, Scaling] = {"strict": unit_rows, "xares": unit_columns}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """Search settings: the values of k as requested (a round with fewer windows uses all of them), vote and index."""

    ks: tuple[int, ...]
    chosen_k: int
    temperature: float
    index: IndexName


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Search results of one round.

    Attributes
    ----------
    y_scores : mapping
        Requested number of neighbours -> vote, float (samples, n_classes).
    n_neighbours : int
        Number of neighbours found, at most the largest k; the query's own clip is excluded.
    ranking : mapping
        From `featstore.retrieve.knn.ranking_scores`.
    recall : mapping or None
        Recall of the index against exact search, and its data; None for the exact index.
    """

    samples: Samples
    y_scores: Mapping[int, NDArray[np.floating[Any]]]
    n_neighbours: int
    ranking: Mapping[str, Any]
    recall: Mapping[str, Any] | None


def retrieve_task(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None = None,
    protocol: Protocol = "strict",
    k: int | Sequence[int] | None = None,
    index: str = "flat",
    shots: tuple[int, ...] = (),
    notify: Notify = lambda _: None,
) -> ScoreRecord:
    """Score a task's stored embeddings by the vote of their nearest neighbours in the training clips.

    ``strict`` uses cosine similarity, averages the vote over the windows of a clip, and leaves one clip out if the
    training set is the test set. ``xares`` normalises the training embeddings per feature over all samples, and the
    queries per sample.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; optional where the store has one encoder.
    protocol : "strict" or "xares"
    k : int or several, optional
        Number of neighbours; by default the manifest's. One search serves all values: ``details["k_curve"]``. The
        reported value uses the manifest's k if it is among them, else the first; it is at most the number of training
        windows (``settings["k"]`` of the record).
    index : "flat", "hnsw", "ivf" or "ivfpq"
        Exact search, or an approximate index whose recall is measured: ``details["index_recall"]``. Under ``strict``,
        without leave-one-out, an ivf or ivfpq index of complete feature sets with 100,000 windows or more in total is
        saved beside the store (`featstore.retrieve.open_index`).
    shots : tuple of int, optional
        ``details["shots"]`` reports the scores with this many training clips of each class.
    notify : callable
        Receives a line of text before an index is built and saved.

    Returns
    -------
        ScoreRecord

    Raises
    ------
    UsageError
        The task has no nearest-neighbour track, or ``k``, the index or the metric is invalid.
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid.
    """
    return score_knn(
        MeasuredTask(
            store=store,
            manifest=manifest,
            encoder=encoder,
            protocol=protocol,
            k=k,
            index=index,
            shots=shots,
            notify=notify,
        )
    )


def score_knn(of: MeasuredTask) -> ScoreRecord:
    """The measure ``knn``: see `retrieve_task`."""
    shots, notify = of.shots, of.notify
    search = _plan(of.manifest, k=of.k, index=of.index)
    check_shots(shots)
    metric = find_metric(of.manifest.metric, of.protocol)

    watch = Stopwatch()
    with watch("read"):
        task = of.task
    found = [
        _search_round(
            task,
            each,
            task.windows_of(each.reference),
            search,
            watch=watch,
            saved=_saved(task, each, search, notify, watch),
        )
        for each in task.rounds
    ]
    with watch("score"):
        outcomes = [one.samples.tested([one.y_scores[search.chosen_k]]) for one in found]
        scores = score_outcomes(task, outcomes)
        details = _details(task, found, search, metric)
    if shots:
        with watch("shots"):
            details["shots"] = shots_details({n: _few_shot(task, search, metric, shots=n) for n in shots})
    return score_record(
        task,
        scores,
        track="B",
        n_train=[len(each.reference) - each.leave_one_out for each in task.rounds],
        n_valid=[0] * len(task.rounds),
        seeds=(),
        settings={
            "k": min(search.chosen_k, *(one.n_neighbours for one in found)),
            "temperature": search.temperature,
            "index": search.index,
            **({"ks": list(search.ks)} if len(search.ks) > 1 else {}),
            **({"shots": list(shots)} if shots else {}),
        },
        seconds=watch.seconds,
        libraries=("faiss",),
        details=details,
    )


def why_no_vote(manifest: Manifest) -> str:
    """Return why a task has no nearest-neighbour track, or an empty text."""
    if manifest.kind not in KINDS:
        return f"is of kind {manifest.kind!r}, which has no nearest-neighbour track"
    if not manifest.retrieve.enabled:
        return "has no nearest-neighbour track: its manifest sets retrieve.enabled = false"
    return ""


def _plan(manifest: Manifest, *, k: int | Sequence[int] | None, index: str) -> _Search:
    if reason := why_no_vote(manifest):
        raise UsageError(f"task {manifest.name} {reason}")
    usual = manifest.retrieve.k
    requested: Any = usual if k is None else k
    ks = tuple(int(each) for each in ((requested,) if isinstance(requested, Integral) else requested))
    if not ks or min(ks) < 1:
        raise UsageError(f"k must be at least 1, got {min(ks, default='nothing')}")
    if len(set(ks)) < len(ks):
        raise UsageError(f"values of k must be unique, got {', '.join(map(str, ks))}")
    if index not in get_args(IndexName):
        raise UsageError(f"there is no index {index!r}; there are {', '.join(get_args(IndexName))}")
    return _Search(
        ks=ks,
        chosen_k=usual if usual in ks else ks[0],
        temperature=manifest.retrieve.temperature,
        index=cast(IndexName, index),
    )


def _search_round(
    task: TaskData,
    each: Round,
    reference: NDArray[np.int64],
    search: _Search,
    *,
    watch: Stopwatch,
    saved: JoinedIndexes | None,
) -> _Found:
    """Search the reference windows for the neighbours of a round's test windows, once for every k."""
    searcher: Searcher | JoinedIndexes
    if saved is None:
        with watch("index"):
            from featstore.retrieve.index import Searcher

            searcher = Searcher(SCALING_OF_TRAIN[task.protocol](task.X[reference]), search.index)
    else:
        searcher = saved
    samples = task.samples(each.test)
    queries = unit_rows(task.X[samples.windows])
    # windows of the query's own clip or group are excluded
    unit = _independent(task)
    own = int(np.bincount(unit[task.clip[reference]]).max()) if each.leave_one_out else 0
    n_others = len(reference) - own
    n_wanted = min(max(search.ks), n_others)
    if n_wanted < 1:
        raise DataError(f"task {task.manifest.name}, round {each.name!r}: no other clip is left to compare with")
    with watch("search"):
        nearest = searcher.search(queries, k=n_wanted + own)
    clip_of_row = task.clip[reference]

    def of_others(found: Neighbours, some: NDArray[np.int64]) -> Neighbours:
        if not each.leave_one_out:
            return found
        query_unit = unit[task.clip[samples.windows[some]]]
        return without_own(found, own=query_unit, clip_of_row=unit[clip_of_row], k=n_wanted)

    nearest = of_others(nearest, np.arange(len(queries)))
    recall: Mapping[str, Any] | None = None
    if isinstance(searcher, JoinedIndexes):
        recall = {"k": RECALL_K, "recall": searcher.recall, "of": "its own windows"}
    elif search.index != "flat":
        with watch("recall"):
            some = evenly(len(queries), wanted=N_RECALL_QUERIES)
            exact = of_others(searcher.search_exactly(queries[some], k=n_wanted + own), some)
            recall = {"k": max(search.ks), "recall": recall_of(exact.rows, nearest.rows[some])}
    with watch("score"):
        targets = task.targets.values[clip_of_row[nearest.rows]]
        y_scores = {
            k: samples.vote(
                neighbour_vote(
                    nearest.similarities[:, :k],
                    targets[:, :k],
                    n_classes=len(task.classes),
                    temperature=search.temperature,
                )
            )
            for k in search.ks
        }
        ranking = _ranking(task, samples, clip_of_row, targets, ks=search.ks, leave_one_out=each.leave_one_out)
    return _Found(samples=samples, y_scores=y_scores, n_neighbours=n_wanted, ranking=ranking, recall=recall)


def _saved(task: TaskData, each: Round, search: _Search, notify: Notify, watch: Stopwatch) -> JoinedIndexes | None:
    """Saved indexes of a round's reference windows, in order; None if these are not complete feature sets."""
    if task.protocol != "strict" or each.leave_one_out or search.index not in get_args(IvfKind):
        return None
    in_reference = np.zeros(len(task.clip_id), bool)
    in_reference[each.reference] = True
    sets: list[FeatureSet] = []
    for feature_set, clips in zip(task.sets, task.members.values(), strict=True):
        if in_reference[clips].all():
            sets.append(feature_set)
        elif in_reference[clips].any():
            return None
    if sum(len(one) for one in sets) < MIN_SAVED_WINDOWS:
        return None
    with watch("index"):
        return JoinedIndexes([open_index(one, cast(IvfKind, search.index), notify=notify) for one in sets])


def _independent(task: TaskData) -> NDArray[np.int64]:
    """Independent unit of each clip, int64 (n_clips,): its group, or the clip itself without groups."""
    if task.groups is None:
        return np.arange(len(task.clip_id))
    return np.unique(np.array(task.groups, object).astype(str), return_inverse=True)[1]


def _ranking(
    task: TaskData,
    samples: Samples,
    clip_of_row: NDArray[np.int64],
    targets: NDArray[Any],
    *,
    ks: tuple[int, ...],
    leave_one_out: bool,
) -> dict[str, Any]:
    """Ranking metrics of the neighbours: a window is relevant if it has the query's class or shares a label with it."""
    values = task.targets.values
    wanted, found_values = values[task.clip[samples.windows]], values[clip_of_row]
    if values.ndim == 1:
        relevant = targets == wanted[:, None]
        n_relevant = np.bincount(found_values, minlength=len(task.classes))[wanted]
    else:
        relevant = np.einsum("qkc,qc->qk", targets, wanted) > 0
        n_relevant = np.concatenate(
            [(block @ found_values.T > 0).sum(axis=1) for block in np.split(wanted, range(256, len(wanted), 256))]
        )
    if leave_one_out:
        n_relevant = n_relevant - _own_relevant(_independent(task), task.clip[samples.windows], clip_of_row, values)
    return ranking_scores(relevant, n_relevant, ks=tuple(sorted(k for k in ks if k <= relevant.shape[1])))


def _own_relevant(
    unit: NDArray[np.int64], query_clip: NDArray[np.int64], clip_of_row: NDArray[np.int64], values: NDArray[Any]
) -> NDArray[np.int64]:
    """Number of relevant rows in each query's own clip or group, (queries,)."""
    order = np.argsort(unit[clip_of_row], kind="stable")
    bounds = np.searchsorted(unit[clip_of_row][order], np.arange(int(unit.max()) + 2))
    found = np.empty(len(query_clip), np.int64)
    for at, clip in enumerate(query_clip.tolist()):
        own_rows = clip_of_row[order[bounds[unit[clip]] : bounds[unit[clip] + 1]]]
        same = values[own_rows] == values[clip] if values.ndim == 1 else values[own_rows] @ values[clip] > 0
        found[at] = int(same.sum())
    return found


def _details(task: TaskData, found: Sequence[_Found], search: _Search, metric: Metric) -> dict[str, Any]:
    curve = {
        str(k): float(np.mean([metric.score(one.samples.y_true, one.y_scores[k]) for one in found])) for k in search.ks
    }
    details: dict[str, Any] = {
        "k_asked": search.chosen_k,
        "k_curve": curve,
        "neighbours": {each.name: one.ranking for each, one in zip(task.rounds, found, strict=True)},
    }
    recalls = [one.recall for one in found if one.recall is not None]
    if recalls:
        details["index_recall"] = {**recalls[0], "recall": float(np.mean([each["recall"] for each in recalls]))}
    return details


def _few_shot(task: TaskData, search: _Search, metric: Metric, *, shots: int) -> NDArray[np.float64]:
    """Scores (rounds, support sets) by exact search in the clips of a support set only.

    A clip of the support set is one neighbour, represented by its nearest window, so k counts clips. With windows as
    neighbours, a clip with many windows would outvote the nearest clip.
    """
    scores = []
    for each in task.rounds:
        samples = task.samples(each.test)
        queries = unit_rows(task.X[samples.windows])
        of_round = []
        for clips in support_sets(task, each, shots=shots):
            windows = task.windows_of(clips)
            reference = SCALING_OF_TRAIN[task.protocol](task.X[windows])
            clip_of_row = task.clip[windows]
            starts = np.flatnonzero(np.diff(clip_of_row, prepend=-1))
            votes = votes_of_nearest(
                queries,
                reference,
                task.targets.values[clip_of_row[starts]],
                n_classes=len(task.classes),
                k=search.chosen_k,
                temperature=search.temperature,
                starts=starts,
            )
            of_round.append(metric.score(samples.y_true, samples.vote(votes)))
        scores.append(of_round)
    return np.array(scores)

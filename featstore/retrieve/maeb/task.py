"""Score one task by mteb's definitions: `maeb_task`, or `read_maeb` and `score_maeb` for each type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError, UsageError
from featstore.evaluation import Outcome, Samples, Stopwatch, TaskScore, score_outcomes, score_record
from featstore.evaluation.data import SHORTEST_SECONDS, TaskWindows, check_parts, read_targets
from featstore.evaluation.pool import Pool, read_pool
from featstore.metrics import Units, plan_units
from featstore.metrics.classification import Accuracy
from featstore.records import ScoreRecord
from featstore.retrieve.knn import without_own
from featstore.retrieve.maeb import definitions, lists
from featstore.retrieve.maeb.spread import (
    Lists,
    Replicates,
    mean_replicates,
    pair_replicates,
    ranked_replicates,
    scored,
    v_replicates,
)
from featstore.retrieve.scan import unit_rows
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["MEASURES", "METRICS", "MaebTask", "maeb_task", "read_maeb", "score_maeb", "why_no_type"]

MEASURES: Mapping[str, tuple[str, ...]] = {
    "clip": ("classification", "clustering", "pairs", "reranking", "retrieval"),
    "multilabel": ("multilabel", "pairs", "reranking", "retrieval"),
}
"""Types of mteb tasks that the labels of a kind of task admit, in the order of their records."""

METRICS: Mapping[str, str] = {
    "classification": "accuracy",
    "multilabel": "lrap",
    "clustering": "v_measure",
    "pairs": "max_ap",
    "reranking": "map_at_1000",
    "retrieval": "ndcg_at_10",
}
"""Main score of each type in MAEB, by mteb's name."""

N_RANKS = 10
NO_CLIPS = np.zeros(0, np.int64)
QUERIES_PER_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MaebTask:
    """A task as mteb sees it.

    Attributes
    ----------
    task : TaskWindows
        With the rounds of classification.
    X : float32 (clips, dim)
        One vector per clip.
    clips : int64 (n,)
        Clips that are compared with one another: those that are tested.
    units : Units
        Independent units of ``clips``.
    unit : int64 (clips,)
        Unit of each clip; -1 for all others.
    """

    task: TaskWindows
    X: NDArray[np.float32]
    clips: NDArray[np.int64]
    units: Units
    unit: NDArray[np.int64]

    @property
    def values(self) -> NDArray[Any]:
        """Targets of all clips."""
        return self.task.targets.values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """Score of one type of task; ``n_train`` by round, and ``seeds`` are the numbers of its random draws."""

    scores: TaskScore
    task: TaskWindows
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    n_train: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = ()


def maeb_task(
    store: Store, manifest: Manifest, *, encoder: str | None = None, measures: Sequence[str] | None = None
) -> tuple[ScoreRecord, ...]:
    """Score a task's stored embeddings by the definitions of mteb's audio benchmark (MAEB), without mteb.

    A clip has one vector, the mean of its windows weighted by their seconds. Its vector is used as it is; only cosine
    similarities scale it. Nothing is selected, and validation clips are not used.

    Parameters
    ----------
    store : Store
    manifest : Manifest
        Of kind ``clip`` or ``multilabel``.
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; optional where the store has one encoder.
    measures : sequence of str, optional
        Types of mteb tasks; by default all that the labels admit, see `MEASURES`.

    Returns
    -------
    tuple of ScoreRecord
        One for each type, of protocol ``maeb`` and track B; ``settings["measure"]`` is the type, ``metric`` mteb's main
        score, and ``seeds`` the numbers of the random draws whose mean is the value.

    Raises
    ------
    UsageError
        The kind of the task, or its labels, do not admit a type.
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid.
    """
    chosen = tuple(METRICS if measures is None else measures)
    reasons = {measure: why_no_type(measure, manifest) for measure in chosen}
    if measures is None:
        chosen = tuple(measure for measure in chosen if not reasons[measure]) or chosen
    for measure in chosen:
        if reasons[measure]:
            raise UsageError(f"task {manifest.name} {reasons[measure]}")
    data = read_maeb(store, manifest, encoder=encoder)
    return tuple(score_maeb(data, measure) for measure in chosen)


def why_no_type(measure: str, manifest: Manifest) -> str:
    """Return why the labels of a task do not admit a type of mteb task, or an empty text."""
    if measure in MEASURES.get(manifest.kind, ()):
        return ""
    return f"is of kind {manifest.kind!r}, which mteb's {measure} does not score"


def score_maeb(data: MaebTask, measure: str) -> ScoreRecord:
    """Score one type of mteb task; the types are those of `METRICS`."""
    watch = Stopwatch()
    with watch("score"):
        found = MEASURE_FUNCTIONS[measure](data)
    return score_record(
        found.task,
        found.scores,
        track="B",
        metric=METRICS[measure],
        seeds=found.seeds,
        settings={"measure": measure, **found.settings},
        seconds=watch.seconds,
        libraries=("sklearn",),
        details=found.details,
        n_train=found.n_train,
        n_valid=[0] * len(found.n_train),
    )


def read_maeb(store: Store, manifest: Manifest, *, encoder: str | None) -> MaebTask:
    """Read a task's embeddings, one vector per clip; the errors are those of `maeb_task`."""
    pool = read_pool(store, manifest, encoder=encoder)
    targets = read_targets(manifest, pool)
    roles = manifest.feature_sets
    if manifest.folds is not None or roles["train"] == roles["test"]:
        members = pool.members.values() if manifest.folds is not None else [pool.members[roles["test"]]]
        clips = np.sort(np.concatenate(list(members)))
        rounds = tuple(
            Round(name=f"fold {number}", protocol="maeb", train=clips[train], valid=NO_CLIPS, test=clips[test])
            for number, (train, test) in enumerate(_folds(clips, manifest), start=1)
        )
    else:
        clips = pool.members[roles["test"]]
        rounds = (Round(name="test", protocol="maeb", train=pool.members[roles["train"]], valid=NO_CLIPS, test=clips),)
    for each in rounds:
        check_parts(each, task=manifest.name)
    shared = ("recipe", "seconds", "clip", "clip_id", "features", "sets", "members", "skipped", "groups")
    task = TaskWindows(
        manifest=manifest,
        protocol="maeb",
        targets=targets,
        rounds=rounds,
        **{name: getattr(pool, name) for name in shared},
    )
    units = plan_units([clips], names=pool.clip_id, groups=pool.groups)
    unit = np.full(len(pool.clip_id), -1, np.int64)
    unit[clips] = units.of_sample[0]
    return MaebTask(task=task, X=_clip_vectors(pool), clips=clips, units=units, unit=unit)


def _folds(clips: NDArray[np.int64], manifest: Manifest) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    if len(clips) < definitions.N_FOLDS:
        raise LabelError(f"task {manifest.name} has {len(clips)} clips, fewer than mteb's {definitions.N_FOLDS} folds")
    return definitions.folds(len(clips))


def _clip_vectors(pool: Pool) -> NDArray[np.float32]:
    """Mean vector of each clip's windows, weighted by seconds."""
    starts = np.flatnonzero(np.diff(pool.clip, prepend=-1))
    if len(starts) == len(pool.clip):
        return pool.X
    weights = np.maximum(pool.seconds, SHORTEST_SECONDS)[:, None]
    sums = np.add.reduceat(pool.X * weights, starts, axis=0)
    return np.asarray(sums / np.add.reduceat(weights, starts, axis=0), np.float32)


def _samples(data: MaebTask, test: NDArray[np.int64]) -> Samples:
    """Each clip as a sample of one window."""
    return Samples(
        windows=test,
        weights=np.ones(len(test), np.float32),
        starts=np.arange(len(test)),
        clip=test,
        y_true=data.values[test],
    )


def _classification(data: MaebTask) -> _Found:
    rounds, y = data.task.rounds, data.values
    for each in rounds:
        if len(np.unique(y[each.train])) < 2:
            raise LabelError(f"task {data.task.manifest.name}, round {each.name!r}: training clips show one class only")
    cross_validated = len(rounds) > 1
    if cross_validated:
        draws = definitions.training_draws_of_folds(y, [each.train for each in rounds])
        tests = [each.test for each in rounds]
    else:
        train = rounds[0].train
        draws = [train[drawn] for drawn in definitions.training_draws(y[train])]
        tests = [rounds[0].test] * len(draws)
    fits = definitions.fit_classes(data.X, y, draws=draws, tests=tests)
    votes = [np.eye(len(data.task.targets.classes), dtype=np.float32)[output] for output in fits.outputs]
    by_round = [(vote,) for vote in votes] if cross_validated else [tuple(votes)]
    outcomes = [
        Outcome(samples=_samples(data, each.test), y_scores=y_scores)
        for each, y_scores in zip(rounds, by_round, strict=True)
    ]
    return _Found(
        scores=score_outcomes(data.task, outcomes, metric=Accuracy()),
        task=data.task,
        settings={
            "samples_per_label": definitions.SHOTS,
            **({"folds": len(draws)} if cross_validated else {"draws": len(draws)}),
        },
        details={"fit": _fit_details(fits)},
        n_train=tuple(map(len, draws)) if cross_validated else (round(float(np.mean([*map(len, draws)]))),),
        seeds=() if cross_validated else tuple(range(len(draws))),
    )


def _fit_details(fits: definitions.Fits) -> dict[str, Any]:
    return {"iterations": list(fits.iterations), "fits": [{"converged": each} for each in fits.converged]}


def _multilabel(data: MaebTask) -> _Found:
    sets, rounds = data.values, data.task.rounds
    # mteb cross-validates classes only: of clips without a test set of their own, the first fold is tested
    train, test = rounds[0].train, rounds[0].test
    draws = [train[drawn] for drawn in definitions.training_draws_of_sets(sets[train])]
    fits = definitions.fit_label_sets(data.X, sets, draws=draws, test=test, classes=data.task.targets.classes)
    tested = sets[test][:, sets[test].any(axis=0)]
    by_clip = np.stack([definitions.label_ranking_precision(tested, output) for output in fits.outputs])
    units = plan_units([test], names=data.task.clip_id, groups=data.task.groups)
    return _Found(
        scores=_scored(data, mean_replicates(by_clip, units.of_sample[0], units.n), test, units),
        task=replace(data.task, rounds=rounds[:1]),
        settings={"samples_per_label": definitions.SHOTS, "draws": len(draws)},
        details={"fit": _fit_details(fits)},
        n_train=(round(float(np.mean([*map(len, draws)]))),),
        seeds=tuple(range(len(draws))),
    )


def _clustering(data: MaebTask) -> _Found:
    y = data.values[data.clips]
    if len(np.unique(y)) < 2:
        raise LabelError(f"task {data.task.manifest.name}: its test clips show one class only, and clusters take two")
    rounds = definitions.cluster_rounds(data.X[data.clips], y)
    replicates = v_replicates(rounds, y, data.units.of_sample[0], data.units.n)
    return _among_tested(
        data,
        replicates,
        settings={"clusters": len(np.unique(y)), "draws": len(rounds)},
        details={},
        seeds=tuple(range(len(rounds))),
    )


def _pairs(data: MaebTask) -> _Found:
    drawn = lists.draw_pairs(data.values[data.clips], _names(data))
    if not drawn.same.any() or drawn.same.all():
        raise LabelError(f"task {data.task.manifest.name}: its test clips have no pair of the same or of two classes")
    first, second = data.clips[drawn.first], data.clips[drawn.second]
    similarities = definitions.pair_similarities(data.X, first, second)
    replicates = pair_replicates(
        list(similarities.values()), drawn.same, (data.unit[first], data.unit[second]), data.units.n
    )
    precisions = {
        f"{name}_ap": float(pair_replicates([each], drawn.same, (), 0).values[0]) for name, each in similarities.items()
    }
    return _among_tested(
        data,
        replicates,
        settings={"pairs": len(drawn.same)},
        details={**precisions, "similarity_ap": precisions["cosine_ap"], "n_same": int(drawn.same.sum())},
    )


def _reranking(data: MaebTask) -> _Found:
    queries, candidates = lists.draw_candidates(data.values[data.clips], _names(data))
    if not len(queries):
        raise LabelError(f"task {data.task.manifest.name}: no test clip has another clip that is the same")
    unit = unit_rows(data.X[data.clips])
    similarities = np.concatenate(
        [
            np.einsum("qd,qcd->qc", unit[queries[start:stop]], unit[candidates[start:stop]])
            for start, stop in pairwise([*range(0, len(queries), QUERIES_PER_BLOCK), len(queries)])
        ]
    )
    # mteb orders equal similarities by name, the last one first
    rank_of_name = np.argsort(np.argsort(np.array(_names(data), object)))
    order = np.lexsort((-rank_of_name[candidates], np.where(candidates >= 0, -similarities, np.inf)))
    is_same = (candidates >= 0) & (np.arange(candidates.shape[1]) < lists.N_SAME)
    ranked, relevant = (np.take_along_axis(each, order, axis=1) for each in (candidates, is_same))
    own = data.units.of_sample[0]
    lost = np.zeros((len(queries), data.units.n))
    np.add.at(lost, (np.nonzero(is_same)[0], own[candidates[is_same]]), 1.0)
    found = Lists(query=queries, ranked=ranked, relevant=relevant, lost=lost)
    return _among_tested(
        data,
        ranked_replicates(found, definitions.average_precision, own),
        settings={"same": lists.N_SAME, "different": lists.N_DIFFERENT},
        details={"queries": len(queries)},
    )


def _retrieval(data: MaebTask) -> _Found:
    from featstore.retrieve.index import Searcher

    names, n = np.array(_names(data), object), len(data.clips)
    order = np.argsort(names)[::-1]  # mteb orders equal similarities by name, the last one first
    own, values = data.units.of_sample[0][order], data.values[data.clips][order]
    lost = _relevant_by_unit(values, own, data.units.n)
    queries = np.flatnonzero(lost.sum(axis=1))
    if not len(queries):
        raise LabelError(f"task {data.task.manifest.name}: no test clip has another clip that is the same")
    rows = unit_rows(data.X[data.clips][order])
    # behind the first ten, as many as the jackknife can remove
    n_ranks = min(n - 1, N_RANKS + int(np.bincount(own).max()))
    nearest = without_own(
        Searcher(rows, "flat").search(rows[queries], k=n_ranks + 1), own=queries, clip_of_row=np.arange(n), k=n_ranks
    ).rows
    if values.ndim == 1:
        relevant = values[nearest] == values[queries, None]
    else:
        relevant = np.einsum("qkc,qc->qk", values[nearest], values[queries]) > 0
    found = Lists(query=queries, ranked=nearest, relevant=relevant, lost=lost[queries])
    return _among_tested(
        data,
        ranked_replicates(found, definitions.ndcg, own),
        settings={},
        details={
            "queries": len(queries),
            **{f"hit_rate_at_{k}": float(relevant[:, :k].any(axis=1).mean()) for k in (1, 5, N_RANKS)},
            **{
                f"recall_at_{k}": float((relevant[:, :k].sum(axis=1) / found.n_relevant).mean())
                for k in (1, 5, N_RANKS)
            },
        },
    )


def _relevant_by_unit(values: NDArray[Any], unit: NDArray[np.int64], n_units: int) -> NDArray[np.float32]:
    """Number of clips of each unit that are the same as a clip, itself excluded: float32 (clips, units)."""
    member = np.zeros((len(unit), n_units), np.float32)
    member[np.arange(len(unit)), unit] = 1.0
    found = np.empty_like(member)
    for start in range(0, len(unit), QUERIES_PER_BLOCK):
        some = values[start : start + QUERIES_PER_BLOCK]
        same = some[:, None] == values if values.ndim == 1 else some @ values.T > 0
        rows = np.arange(len(some))
        same[rows, start + rows] = False
        found[start : start + len(some)] = same.astype(np.float32) @ member
    return found


def _names(data: MaebTask) -> list[str]:
    return [data.task.clip_id[clip] for clip in data.clips.tolist()]


def _scored(
    data: MaebTask,
    replicates: Replicates,
    clips: NDArray[np.int64],
    units: Units,
    *,
    other_clips_draw_anew: bool = False,
) -> TaskScore:
    return scored(
        replicates,
        clips,
        units,
        clip_ids=data.task.clip_id,
        groups=data.task.groups,
        other_clips_draw_anew=other_clips_draw_anew,
    )


def _among_tested(
    data: MaebTask,
    replicates: Replicates,
    *,
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    seeds: tuple[int, ...] = (),
) -> _Found:
    """Build the score of a comparison of the test clips with one another."""
    among = Round(name="test", protocol="maeb", train=data.clips, valid=NO_CLIPS, test=data.clips, leave_one_out=True)
    return _Found(
        scores=_scored(data, replicates, data.clips, data.units, other_clips_draw_anew=bool(seeds)),
        task=replace(data.task, rounds=(among,)),
        settings=settings,
        details=details,
        seeds=seeds,
    )


MEASURE_FUNCTIONS: Mapping[str, Callable[[MaebTask], _Found]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "clustering": _clustering,
    "pairs": _pairs,
    "reranking": _reranking,
    "retrieval": _retrieval,
}

"""The scores of a task by type of mteb task, with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError
from featstore.evaluation import TaskScore, score_outcomes
from featstore.evaluation.data import TaskWindows
from featstore.metrics import TestSet, Units, plan_units
from featstore.metrics.classification import Accuracy
from featstore.retrieve.knn import without_own
from featstore.retrieve.maeb import definitions, lists
from featstore.retrieve.maeb.data import NO_CLIPS, MtebData
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
from featstore.tasks.trials import read_trials

__all__ = ["MEASURE_FUNCTIONS", "Found"]

N_RANKS = 10
CUTOFFS = (1, 5, N_RANKS)
QUERIES_PER_BLOCK = 64
NO_INTERVAL = "only the main score of mteb has an interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Score of one type of task; ``n_train`` by round, and ``seeds`` are the numbers of its random draws."""

    scores: TaskScore
    task: TaskWindows
    settings: Mapping[str, Any]
    details: Mapping[str, Any]
    n_train: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = ()


def _classification(data: MtebData) -> Found:
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
        TestSet(y_true=y[each.test], y_scores=y_scores, clip=each.test)
        for each, y_scores in zip(rounds, by_round, strict=True)
    ]
    return Found(
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


def _multilabel(data: MtebData) -> Found:
    sets, rounds = data.values, data.task.rounds
    # mteb cross-validates classes only: of clips without a test set of their own, the first fold is tested
    train, test = rounds[0].train, rounds[0].test
    draws = [train[drawn] for drawn in definitions.training_draws_of_sets(sets[train])]
    fits = definitions.fit_label_sets(data.X, sets, draws=draws, test=test, classes=data.task.targets.classes)
    tested = sets[test][:, sets[test].any(axis=0)]
    by_clip = np.stack([definitions.label_ranking_precision(tested, output) for output in fits.outputs])
    units = plan_units([test], names=data.task.clip_id, groups=data.task.groups)
    return Found(
        scores=_scored(data, mean_replicates(by_clip, units.of_sample[0], units.n), test, units),
        task=replace(data.task, rounds=rounds[:1]),
        settings={"samples_per_label": definitions.SHOTS, "draws": len(draws)},
        details={"fit": _fit_details(fits)},
        n_train=(round(float(np.mean([*map(len, draws)]))),),
        seeds=tuple(range(len(draws))),
    )


def _clustering(data: MtebData) -> Found:
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


def _pairs(data: MtebData) -> Found:
    manifest, settings = data.task.manifest, {}
    if manifest.trials_path is None:
        drawn = lists.pairs_of(data.drawn)
    else:
        trials = read_trials(manifest.trials_path, data.names, task=manifest.name)
        drawn = lists.Pairs(first=trials.first, second=trials.second, same=trials.same)
        settings = {"trials_sha256": trials.sha256[:16]}
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
        settings={"pairs": len(drawn.same), **settings},
        details={"scores": _without_intervals({**precisions, "similarity_ap": precisions["cosine_ap"]})},
    )


def _reranking(data: MtebData) -> Found:
    queries, candidates = lists.candidates_of(data.drawn)
    if not len(queries):
        raise LabelError(f"task {data.task.manifest.name}: no test clip has another clip that is the same")
    unit = unit_rows(data.X[data.clips])
    similarities = np.concatenate(
        [
            np.matmul(unit[candidates[start:stop]], unit[queries[start:stop], :, None])[:, :, 0]
            for start, stop in pairwise([*range(0, len(queries), QUERIES_PER_BLOCK), len(queries)])
        ]
    )
    # mteb orders equal similarities by name, the last one first
    rank_of_name = np.argsort(np.argsort(np.array(data.names, object)))
    order = np.lexsort((-rank_of_name[candidates], np.where(candidates >= 0, -similarities, np.inf)))
    is_same = (candidates >= 0) & (np.arange(candidates.shape[1]) < lists.N_SAME)
    ranked = np.take_along_axis(candidates, order, axis=1)
    relevant = np.take_along_axis(is_same, order, axis=1)
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


def _retrieval(data: MtebData) -> Found:
    from featstore.retrieve.index import Searcher

    names, n = np.array(data.names, object), len(data.clips)
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
            "scores": _without_intervals(
                {
                    **{f"hit_rate_at_{k}": float(relevant[:, :k].any(axis=1).mean()) for k in CUTOFFS},
                    **{
                        f"recall_at_{k}": float((relevant[:, :k].sum(axis=1) / found.n_relevant).mean())
                        for k in CUTOFFS
                    },
                }
            ),
            "queries": len(queries),
        },
    )


def _relevant_by_unit(values: NDArray[Any], unit: NDArray[np.int64], n_units: int) -> NDArray[np.float32]:
    """Number of clips of each unit that are the same as a clip, itself excluded: float32 (clips, units)."""
    if values.ndim == 1:
        of_class = np.zeros((values.max() + 1, n_units), np.float32)
        np.add.at(of_class, (values, unit), 1.0)
        lost: NDArray[np.float32] = of_class[values]
        lost[np.arange(len(unit)), unit] -= 1.0
        return lost
    member = np.zeros((len(unit), n_units), np.float32)
    member[np.arange(len(unit)), unit] = 1.0
    return np.concatenate([same.astype(np.float32) @ member for _, same in lists.sameness(values)])


def _without_intervals(scores: Mapping[str, float]) -> dict[str, dict[str, float | str | None]]:
    """Further scores of mteb, as ``details["scores"]`` has those of other measures."""
    return {name: {"value": value, "low": None, "high": None, "reason": NO_INTERVAL} for name, value in scores.items()}


def _scored(
    data: MtebData,
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
    data: MtebData,
    replicates: Replicates,
    *,
    settings: Mapping[str, Any],
    details: Mapping[str, Any],
    seeds: tuple[int, ...] = (),
) -> Found:
    """Build the score of a comparison of the test clips with one another."""
    among = Round(name="test", protocol="maeb", train=data.clips, valid=NO_CLIPS, test=data.clips, leave_one_out=True)
    return Found(
        scores=_scored(data, replicates, data.clips, data.units, other_clips_draw_anew=bool(seeds)),
        task=replace(data.task, rounds=(among,)),
        settings=settings,
        details=details,
        seeds=seeds,
    )


MEASURE_FUNCTIONS: Mapping[str, Callable[[MtebData], Found]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "clustering": _clustering,
    "pairs": _pairs,
    "reranking": _reranking,
    "retrieval": _retrieval,
}

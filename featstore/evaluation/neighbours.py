"""k-nearest-neighbour vote, weighted by a softmax of similarities (Wu et al. 2018, instance discrimination)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics import find_metric

if TYPE_CHECKING:
    from featstore.evaluation.data import TaskData

__all__ = ["neighbour_vote", "score_neighbours", "votes_of_nearest"]

MAX_WORK = 3 * 10**9
"""Test windows x training windows x dim of `score_neighbours`, all rounds: 0.2 s on one core, a tenth of the probe."""

MAX_CELLS = 2**22
"""Number of similarities in memory at a time."""


def neighbour_vote(
    similarities: NDArray[np.float32], targets: NDArray[Any], *, n_classes: int, temperature: float
) -> NDArray[np.float32]:
    """Compute the weight of each class among the neighbours of each query.

    Parameters
    ----------
    similarities : float32 (queries, k)
    targets : (queries, k) or (queries, k, n_classes)
        Class indices, or label sets of 0 and 1, of the neighbours.
    n_classes : int
    temperature : float
        Divides the similarities before the softmax.

    Returns
    -------
    float32 (queries, n_classes)
        Summed in float64 and rounded, so that unanimous neighbours give exactly 1 whatever their weights. Otherwise
        average precision would rank queries by rounding errors.
    """
    scaled = (similarities.astype(np.float64) - similarities.max(axis=1, keepdims=True)) / temperature
    weights = np.exp(scaled)
    weights /= weights.sum(axis=1, keepdims=True)
    if targets.ndim == 3:
        return np.asarray(np.einsum("qk,qkc->qc", weights, targets), dtype=np.float32)
    n_queries = len(targets)
    cells = targets + np.arange(n_queries)[:, None] * n_classes
    votes = np.bincount(cells.ravel(), weights.ravel(), minlength=n_queries * n_classes)
    return votes.reshape(n_queries, n_classes).astype(np.float32)


def votes_of_nearest(
    queries: NDArray[np.float32],
    reference: NDArray[np.float32],
    targets: NDArray[Any],
    *,
    n_classes: int,
    k: int,
    temperature: float,
    starts: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Compare queries (queries, dim) with all rows of reference (n, dim), and let the ``k`` nearest vote.

    With ``starts`` (m,), the rows from one start to the next form one neighbour, whose similarity is the largest of its
    rows; ``targets`` are those of the neighbours. If there are fewer than ``k`` neighbours, all of them vote.
    """
    k = min(k, len(targets))
    votes = []
    block = max(1, MAX_CELLS // len(reference))
    for start in range(0, len(queries), block):
        nearness = queries[start : start + block] @ reference.T
        if starts is not None:
            nearness = np.maximum.reduceat(nearness, starts, axis=1)
        nearest = np.argpartition(nearness, -k, axis=1)[:, -k:]
        votes.append(
            neighbour_vote(
                np.take_along_axis(nearness, nearest, axis=1),
                targets[nearest],
                n_classes=n_classes,
                temperature=temperature,
            )
        )
    return np.concatenate(votes)


def score_neighbours(task: TaskData) -> float | None:
    """Score the vote of the nearest neighbours, by cosine, in the rounds of a probe.

    Returns None if the manifest has no such track, or if an exact search would take long compared with the probe.
    """
    rules, metric = task.manifest.retrieve, find_metric(task.manifest.metric, task.protocol)
    sides = [(task.windows_of(each.reference), task.samples(each.test)) for each in task.rounds]
    work = sum(len(reference) * len(samples.windows) for reference, samples in sides) * task.X.shape[1]
    if not rules.enabled or work > MAX_WORK:
        return None
    norms = np.linalg.norm(task.X, axis=1, keepdims=True)
    unit = task.X / np.maximum(norms, np.finfo(np.float32).tiny)
    scores = []
    for reference, samples in sides:
        votes = votes_of_nearest(
            unit[samples.windows],
            unit[reference],
            task.targets.values[task.clip[reference]],
            n_classes=len(task.classes),
            k=rules.k,
            temperature=rules.temperature,
        )
        scores.append(metric.score(samples.y_true, samples.vote(votes)))
    return float(np.mean(scores))

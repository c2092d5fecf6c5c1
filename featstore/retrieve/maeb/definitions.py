"""The scores of mteb's evaluators on arrays: few-shot classification, multilabel, clustering, pairs and ranked lists.

Every definition is that of mteb 2.26 (``mteb/abstasks``, ``mteb/_evaluators``; Muennighoff et al. 2023, Assadi et al.
2026), with its seeds and its order of random draws. ``X`` is float32 (clips, dim), one vector per clip, in the order of
the data set. Fits are scikit-learn's.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError
from featstore.retrieve.maeb.clusters import RowClustering
from featstore.system import cores

__all__ = [
    "N_DRAWS",
    "SEED",
    "SHOTS",
    "Fits",
    "average_precision",
    "cluster_rounds",
    "fit_classes",
    "fit_label_sets",
    "folds",
    "label_ranking_precision",
    "ndcg",
    "pair_similarities",
    "training_draws",
    "training_draws_of_folds",
    "training_draws_of_sets",
]

SEED = 42
N_DRAWS = 10
SHOTS = 8
N_FOLDS = 5
MAX_ITERATIONS = 100
ROUND_CLIPS = 16_384

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """Outputs of several fits for their test clips.

    Attributes
    ----------
    outputs : tuple of (clips,) or (clips, n_classes)
        Class indices, or probabilities of label sets.
    iterations : tuple of int
        Of each fit; the largest of a fit of several classes.
    converged : tuple of bool
        Whether a fit stopped before its limit of 100 iterations.
    """

    outputs: tuple[NDArray[Any], ...]
    iterations: tuple[int, ...]
    converged: tuple[bool, ...]


def training_draws(y: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Draw at most 8 clips of each class, 10 times; each draw shuffles the order of the last one."""
    order = np.arange(len(y))
    draws = []
    for _ in range(N_DRAWS):
        np.random.RandomState(SEED).shuffle(order)
        draws.append(_first_of_labels(order, y))
    return draws


def training_draws_of_folds(y: NDArray[np.int64], parts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Draw at most 8 clips of each class of the training part of each fold.

    mteb shuffles the order of one fold again for the next. If the first training part is one clip shorter than the
    others, their last clip is never drawn.
    """
    order = np.arange(len(parts[0]))
    draws = []
    for part in parts:
        np.random.RandomState(SEED).shuffle(order)
        draws.append(part[_first_of_labels(order, y[part])])
    return draws


def _first_of_labels(order: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first 8 clips of each class in an order, in that order."""
    labels = y[order]
    by_label = np.argsort(labels, kind="stable")
    ranked = labels[by_label]
    rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
    return order[np.sort(by_label[rank < SHOTS])]


def training_draws_of_sets(sets: NDArray[np.floating[Any]]) -> list[NDArray[np.int64]]:
    """Draw clips with label sets (clips, n_classes), 10 times.

    In a random order, a clip is taken if any of its labels has fewer than 8 clips; all of its labels are then counted.
    """
    rng = np.random.default_rng(SEED)
    members = [np.flatnonzero(row) for row in sets]
    draws = []
    for _ in range(N_DRAWS):
        order = list(range(len(sets)))
        rng.shuffle(order)
        counts = np.zeros(sets.shape[1], np.int64)
        taken = []
        for clip in order:
            if (counts[members[clip]] < SHOTS).any():
                taken.append(clip)
                counts[members[clip]] += 1
        draws.append(np.array(taken, np.int64))
    return draws


def folds(n_clips: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training and test clips of five folds, shuffled and not stratified."""
    from sklearn.model_selection import KFold

    return list(KFold(N_FOLDS, shuffle=True, random_state=SEED).split(np.empty((n_clips, 1))))


def fit_classes(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    draws: Sequence[NDArray[np.int64]],
    tests: Sequence[NDArray[np.int64]],
) -> Fits:
    """Fit ``LogisticRegression(max_iter=100)`` to each draw, on features as they are, and predict its test clips."""
    from sklearn.linear_model import LogisticRegression

    def fit(drawn: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
        model = LogisticRegression(max_iter=MAX_ITERATIONS, random_state=SEED).fit(X[drawn], y[drawn])
        return model.predict(X[test]), int(model.n_iter_.max())

    return _fits(fit, draws, tests)


def fit_label_sets(
    X: NDArray[np.float32],
    sets: NDArray[np.floating[Any]],
    *,
    draws: Sequence[NDArray[np.int64]],
    test: NDArray[np.int64],
    classes: Sequence[str],
) -> Fits:
    """Fit one ``LogisticRegression()`` for each class that a test clip has, and return its probabilities.

    Raises
    ------
    LabelError
        All clips of a draw have a class, or none: mteb cannot score such a task either.
    """
    from sklearn.linear_model import LogisticRegression

    tested = np.flatnonzero(sets[test].any(axis=0)).tolist()

    def fit(drawn: NDArray[np.int64]) -> tuple[NDArray[Any], int]:
        probabilities, longest = np.empty((len(test), len(tested))), 0
        for column, label in enumerate(tested):
            y = sets[drawn, label].astype(np.int64)
            if y.min() == y.max():
                raise LabelError(
                    f"mteb's multilabel classification needs training clips with and without each class, and "
                    f"{'all' if y[0] else 'none'} of {len(drawn)} drawn clips have {classes[label]}"
                )
            model = LogisticRegression(max_iter=MAX_ITERATIONS).fit(X[drawn], y)
            probabilities[:, column] = model.predict_proba(X[test])[:, 1]
            longest = max(longest, int(model.n_iter_.max()))
        return probabilities, longest

    return _fits(fit, draws)


def _fits(fit: Callable[..., tuple[NDArray[Any], int]], *arguments: Sequence[Any]) -> Fits:
    """Fit to each draw; fits that do not converge give no warning, but are counted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs, iterations = zip(*_side_by_side(fit, *arguments), strict=True)
    return Fits(outputs=outputs, iterations=iterations, converged=tuple(n < MAX_ITERATIONS for n in iterations))


def _side_by_side(function: Callable[..., _Result], *arguments: Sequence[Any]) -> list[_Result]:
    """Call a function for each draw on a thread of its own: threads of BLAS would wait for small matrices."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(function, *arguments))


def label_ranking_precision(sets: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Label ranking average precision of each clip (clips,); the mean is scikit-learn's function of that name.

    Parameters
    ----------
    sets : (clips, n_classes)
        Label sets of 0 and 1.
    scores : (clips, n_classes)
    """
    found = np.ones(len(sets))  # of a clip with all classes or none
    n_labels = (sets > 0).sum(axis=1)
    for clip in np.flatnonzero((n_labels > 0) & (n_labels < sets.shape[1])):
        own = scores[clip, sets[clip] > 0]
        above = own[:, None] <= scores[clip]
        found[clip] = np.mean((own[:, None] <= own).sum(axis=1) / above.sum(axis=1))
    return found


def cluster_rounds(X: NDArray[np.float32], y: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cluster ten samples of 16,384 clips, drawn with replacement, by k-means with one cluster for each class.

    Returns
    -------
    list of (int64 (clips,), int64 (clips,))
        For each round, the cluster of every clip, and how often the clip was drawn.
    """
    clustering = RowClustering(X, n_clusters=len(np.unique(y)), seed=SEED)
    # what random.Random(SEED).choices draws, whose generator is NumPy's RandomState too
    _, (*words, at), _ = random.Random(SEED).getstate()
    rng = np.random.RandomState()
    rng.set_state(("MT19937", np.array(words, np.uint32), at, 0, 0.0))
    samples = (rng.random_sample((N_DRAWS, ROUND_CLIPS)) * len(X)).astype(np.int64)
    found = np.concatenate(_side_by_side(clustering.labels, np.array_split(samples, min(cores(), N_DRAWS))))
    return [(labels, np.bincount(sample, minlength=len(X))) for labels, sample in zip(found, samples, strict=True)]


PAIRS_PER_BLOCK = 8_192


def pair_similarities(
    X: NDArray[np.float32], first: NDArray[np.int64], second: NDArray[np.int64]
) -> dict[str, NDArray[np.floating[Any]]]:
    """Similarities of pairs of clips (pairs,) by name; distances have a negative sign.

    mteb's fifth similarity, the model's own, is the cosine.
    """
    from sklearn.metrics.pairwise import (
        paired_cosine_distances,
        paired_euclidean_distances,
        paired_manhattan_distances,
    )

    blocks: dict[str, list[NDArray[np.floating[Any]]]] = {}
    for start in range(0, len(first), PAIRS_PER_BLOCK):
        a, b = (X[clips[start : start + PAIRS_PER_BLOCK]] for clips in (first, second))
        for name, values in (
            ("cosine", 1 - paired_cosine_distances(a, b)),
            ("manhattan", -paired_manhattan_distances(a, b)),
            ("euclidean", -paired_euclidean_distances(a, b)),
            ("dot", np.einsum("pd,pd->p", a, b)),
        ):
            blocks.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in blocks.items()}


def average_precision(relevant: NDArray[np.bool_], n_relevant: NDArray[np.number]) -> NDArray[np.float64]:
    """Average precision of ranked lists (queries, ranks) with ``n_relevant`` (queries,) relevant clips each."""
    precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return np.asarray((precision * relevant).sum(axis=1) / np.maximum(n_relevant, 1))


def ndcg(relevant: NDArray[np.bool_], n_relevant: NDArray[np.number], *, k: int = 10) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the first ``k`` ranks, with gains of 0 and 1 (queries,)."""
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.clip(np.asarray(n_relevant, np.int64), 1, k) - 1]
    first = relevant[:, :k]
    return np.asarray((first * discounts[: first.shape[1]]).sum(axis=1) / ideal)

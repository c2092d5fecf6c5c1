"""The measure ``pairs``: are two test clips of the same class? Every pair, or a list of trials, by cosine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation import Stopwatch
from featstore.metrics.verification import PAIR_METRICS, PairScores, score_pairs
from featstore.records import ScoreRecord
from featstore.retrieve.clip_set import ClipSet, clip_set
from featstore.retrieve.measured import Estimate, MeasuredTask, measure_record
from featstore.tasks.trials import Trials, read_trials

__all__ = ["MAX_PAIRS", "score_same_pairs"]

MAX_PAIRS = 2**22
"""Number of pairs that are scored, at most half of them of the same class: 67 MB. Of more, a sample is scored."""

_SEED = 0
_TRIALS_AT_ONCE = 2**14


def score_same_pairs(of: MeasuredTask) -> ScoreRecord:
    """Score the cosines of pairs: equal error rate, minimum detection cost, average precision and d'.

    Without trials in the manifest, pairs are those of comparable test clips (see
    `featstore.retrieve.clip_set.ClipSet`), and of the same class if they share a class, or a label of several.

    Raises
    ------
    DataError
        All pairs are of one kind, or the list of trials is invalid.
    """
    watch = Stopwatch()
    path = of.manifest.trials_path
    listed: Trials | None = None
    with watch("read"):
        clips = of.clips if path is None else clip_set(of.task, max_clips=None)
        if path is not None:
            listed = read_trials(path, clips.names, task=clips.task)
    with watch("search"):
        if listed is None:
            pairs = _all_pairs(clips)
        else:
            clips, pairs = _listed_pairs(clips, listed)
    with watch("score"):
        unit = clips.units.of_sample[0]
        try:
            scores = score_pairs(
                pairs.similarities,
                pairs.same,
                (unit[pairs.first], unit[pairs.second]),
                n_units=clips.units.n,
                totals=(float(pairs.n_same), float(pairs.n_different)),
            )
        except DataError as error:
            raise DataError(f"task {clips.task}: {error}") from error
        estimates = _estimates(scores, clips)
    return measure_record(
        of,
        clips,
        measure="pairs",
        estimates=estimates,
        watch=watch,
        settings={} if listed is None else {"trials_sha256": listed.sha256[:16]},
        identity=() if listed is None else (listed.sha256,),
        details={
            "pairs": {
                "same": pairs.n_same,
                "different": pairs.n_different,
                "scored": len(pairs.same),
            }
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pairs:
    """Pairs that are scored, (pairs,) each, and the numbers of pairs of which they are all or a sample."""

    first: NDArray[np.int32]
    second: NDArray[np.int32]
    similarities: NDArray[np.float32]
    same: NDArray[np.bool_]
    n_same: int
    n_different: int


def _all_pairs(clips: ClipSet) -> _Pairs:
    """Every pair of comparable clips; where there are too many, those of a kind are drawn with equal probability."""
    share = _shares_kept(clips)
    rng = np.random.default_rng(_SEED)
    columns = np.arange(len(clips))
    parts: list[tuple[NDArray[Any], ...]] = []
    totals = [0, 0]
    for block in clips.comparisons():
        below = block.comparable & (columns > np.arange(block.rows.start, block.rows.stop)[:, None])
        for kind, mine in enumerate((below & block.same, below & ~block.same)):
            cells = np.flatnonzero(mine)
            totals[kind] += len(cells)
            if share[kind] < 1.0:
                cells = cells[rng.random(len(cells), np.float32) < share[kind]]
            row, column = np.divmod(cells.astype(np.int32), np.int32(len(clips)))
            same = np.full(len(cells), kind == 0)
            parts.append((row + np.int32(block.rows.start), column, block.similarities.ravel()[cells], same))
    first, second, similarities, same = (np.concatenate(each) for each in zip(*parts, strict=True))
    return _Pairs(
        first=first, second=second, similarities=similarities, same=same, n_same=totals[0], n_different=totals[1]
    )


def _shares_kept(clips: ClipSet) -> tuple[float, float]:
    """Probability with which a same and a different pair is kept."""
    n_pairs = len(clips) * (len(clips) - 1) // 2
    if n_pairs <= MAX_PAIRS:
        return 1.0, 1.0
    n_same = sum(int(np.count_nonzero(clips.same(rows))) for rows in clips.blocks()) // 2
    return min(1.0, MAX_PAIRS / 2 / max(n_same, 1)), min(1.0, MAX_PAIRS / 2 / max(n_pairs - n_same, 1))


def _listed_pairs(clips: ClipSet, listed: Trials) -> tuple[ClipSet, _Pairs]:
    """The pairs of a list, and the clips that are in it."""
    used, place = np.unique(np.concatenate([listed.first, listed.second]), return_inverse=True)
    clips = clips.subset(used)
    first, second = np.split(place.astype(np.int32), 2)
    cosines = [
        np.einsum("pd,pd->p", clips.X[first[some]], clips.X[second[some]])
        for some in (slice(start, start + _TRIALS_AT_ONCE) for start in range(0, len(first), _TRIALS_AT_ONCE))
    ]
    n_same = int(listed.same.sum())
    return clips, _Pairs(
        first=first,
        second=second,
        similarities=np.concatenate(cosines),
        same=listed.same,
        n_same=n_same,
        n_different=len(first) - n_same,
    )


def _estimates(scores: PairScores, clips: ClipSet) -> dict[str, Estimate]:
    """EER, minDCF and average precision; d' from the area under the ROC curve, whose interval is transformed."""
    found = {name: Estimate.of(scores.values[name], scores.deviations[name], clips.units) for name in PAIR_METRICS}
    area = found["roc_area"].interval
    if area.low is not None and area.high is not None:
        area = replace(area, low=scores.distance(area.low), high=scores.distance(area.high))
    found["d_prime"] = replace(found["roc_area"], value=scores.d_prime, interval=area)
    return found

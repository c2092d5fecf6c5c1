"""Paired comparison of two scores of one task on the same test clips.

Every score has the contribution of each unit of its test set (a clip, a block of clips or a group) in
``details["spread"]``. Units depend only on the names of the clips, so the difference of the contributions of two
encoders is the contribution of a unit to the difference of their scores. Encoders mostly find the same clips hard, and
the interval of a paired difference is narrower than two separate intervals suggest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics.comparison import (
    Paired,
    difference_over_tasks,
    effective_number,
    mcnemar,
    paired_difference,
    weighted_difference,
)
from featstore.metrics.intervals import MIN_GROUPS, degrees_of_freedom, student
from featstore.records import ScoreRecord

__all__ = [
    "MIN_TASKS",
    "Evidence",
    "average_interval",
    "average_pair",
    "evidence_of",
    "pair",
    "pair_over_tasks",
    "why_unpaired",
]

MIN_TASKS = 5
"""Least effective number of tasks from which the variance over tasks is estimated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A score, and the data of it that comparisons use.

    Attributes
    ----------
    deviations : float64 (units,) or None
        None if the score has none that can be used; ``problem`` is the reason.
    right : uint8 (clips,) or None
        For accuracy: number of seeds that predict each clip correctly.
    seed_variance : float
        Variance of the mean over seeds.
    """

    record: ScoreRecord
    clips: str
    deviations: NDArray[np.float64] | None
    variance: float
    right: NDArray[np.uint8] | None
    seed_variance: float
    problem: str
    grouped: bool


def evidence_of(record: ScoreRecord) -> Evidence:
    """Read the contributions of the units of a record; invalid data is a `problem`, not an error."""
    kept: Any = record.details.get("spread")
    problem, deviations, right = "", None, None
    if not isinstance(kept, Mapping) or not isinstance(kept.get("clips"), str):
        problem = "no data for comparisons in this score: score again"
    elif kept.get("units") == "groups" and (kept.get("n") or 0) < MIN_GROUPS:
        problem = f"fewer than {MIN_GROUPS} groups of test clips"
    elif not _are_numbers(kept.get("deviations")) or not _are_numbers([kept.get("variance")]):
        problem = "the score is undefined without one of its clips"
    elif len(kept["deviations"]) < 2:
        problem = "a single test clip"
    else:
        deviations = np.array(kept["deviations"], np.float64)
        digits = kept.get("right")
        if isinstance(digits, str) and digits.isascii() and digits.isdigit():
            right = np.frombuffer(digits.encode(), np.uint8) - ord("0")
    n_seeds = len(record.seeds)
    return Evidence(
        record=record,
        clips=kept["clips"] if not problem else "",
        deviations=deviations,
        variance=float(kept["variance"]) if not problem else 0.0,
        right=right,
        seed_variance=record.std**2 / n_seeds if record.std and n_seeds > 1 else 0.0,
        problem=problem,
        grouped=isinstance(kept, Mapping) and kept.get("units") == "groups",
    )


def why_unpaired(a: Evidence, b: Evidence) -> str:
    """Reason why two scores cannot be compared; empty if they can."""
    one, other = a.record, b.record
    if one.protocol_version != other.protocol_version:
        return f"scored by protocol versions {one.protocol_version} and {other.protocol_version}: score the older again"
    if one.manifest_sha256 != other.manifest_sha256:
        return "scored under different manifests"
    if a.problem or b.problem:
        return a.problem or b.problem
    if one.seeds and other.seeds and len(one.seeds) != len(other.seeds):
        return f"different numbers of seeds ({len(one.seeds)} and {len(other.seeds)}): use the same number"
    if a.clips != b.clips or _length(a) != _length(b):
        return "different test clips"
    return ""


def pair(a: Evidence, b: Evidence) -> Paired | None:
    """Test the difference ``a - b``; None if the scores cannot be compared."""
    if why_unpaired(a, b) or a.deviations is None or b.deviations is None:
        return None
    seeds = [(each.seed_variance, len(each.record.seeds) - 1.0) for each in (a, b) if each.seed_variance > 0]
    exact_p = None
    if not seeds and a.right is not None and b.right is not None and len(a.right) == len(b.right):
        one, other = a.right == max(len(a.record.seeds), 1), b.right == max(len(b.record.seeds), 1)
        neither = [right == 0 for right in (a.right, b.right)]
        if bool((one | neither[0]).all() and (other | neither[1]).all()):  # seeds agree on every clip
            exact_p = mcnemar(int((one & ~other).sum()), int((other & ~one).sum()))
    return paired_difference(
        a.record.value - b.record.value,
        a.deviations - b.deviations,
        seed_variances=seeds,
        least_lump=1.0 / len(a.right) if a.right is not None and len(a.right) else 0.0,
        exact_p=exact_p,
    )


def average_pair(pairs: Sequence[Paired | None], weights: Sequence[float]) -> Paired | None:
    """Weighted average of differences over independent tasks; None unless every task has one."""
    there = [each for each in pairs if each is not None]
    if not there or len(there) < len(pairs):
        return None
    shares = np.array(weights, np.float64) / np.sum(weights)
    return weighted_difference(there, shares.tolist())


def pair_over_tasks(differences: Sequence[float], weights: Sequence[float]) -> Paired | None:
    """Weighted average of differences over a sample of tasks; None if their effective number is below `MIN_TASKS`."""
    shares = (np.array(weights, np.float64) / np.sum(weights)).tolist()
    if len(shares) < MIN_TASKS or effective_number(shares) < MIN_TASKS:
        return None
    return difference_over_tasks(np.array(differences, np.float64), shares)


def average_interval(
    scores: Sequence[Evidence], weights: Sequence[float], *, value: float
) -> tuple[float, float] | None:
    """Return the 95 % interval of an average over independent tasks; None unless every task has an interval."""
    if not scores or not all(each.record.ci_low is not None and each.deviations is not None for each in scores):
        return None
    shares = np.array(weights, np.float64) / np.sum(weights)
    parts = []
    for share, each in zip(shares.tolist(), scores, strict=True):
        parts.append((share**2 * each.variance, _length(each) - 1.0))
        if each.seed_variance > 0:
            parts.append((share**2 * each.seed_variance, len(each.record.seeds) - 1.0))
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return None  # every score is perfect: an interval of width 0 would be wrong
    half = student(degrees_of_freedom(parts)) * float(np.sqrt(variance))
    return value - half, min(1.0, value + half)


def _length(each: Evidence) -> int:
    return 0 if each.deviations is None else len(each.deviations)


def _are_numbers(raw: Any) -> bool:
    return isinstance(raw, list) and all(
        isinstance(each, int | float) and not isinstance(each, bool) and np.isfinite(each) for each in raw
    )

"""What two scores of one task have in common: resamples of the same test clips, and so the noise of a difference.

Every score keeps what it would have been on resamples of its test clips (``details["bootstrap"]``). The draws depend on
the names of the clips alone, so resample number i holds the same clips for both encoders, and the difference of their
i-th scores is a resample of their difference: what one encoder finds hard, the other mostly does too, and the interval
of a difference is narrower than two intervals side by side suggest (Efron and Tibshirani 1993, chapter 16).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.records import ScoreRecord

__all__ = ["interval_about", "paired_resamples", "resamples_of", "why_unpaired"]


def why_unpaired(a: ScoreRecord, b: ScoreRecord) -> str:
    """Say why two scores cannot be paired; empty where they can."""
    if a.manifest_sha256 != b.manifest_sha256:
        return "scored under different manifests"
    one: Any = a.details.get("bootstrap")
    other: Any = b.details.get("bootstrap")
    if not (_is_kept(one) and _is_kept(other)):
        return "without resamples: score again"
    if one["clips"] != other["clips"] or len(one["values"]) != len(other["values"]):
        return "not the same test clips"
    return ""


def resamples_of(record: ScoreRecord) -> NDArray[np.float64] | None:
    """Resamples of a score less their mean, float64 (resamples,); None where none were kept."""
    kept: Any = record.details.get("bootstrap")
    return _about_their_mean(np.array(kept["values"], np.float64)) if _is_kept(kept) else None


def paired_resamples(a: ScoreRecord, b: ScoreRecord) -> NDArray[np.float64] | None:
    """Resamples of ``a`` less ``b``, less their mean (resamples,); None where the two cannot be paired."""
    if why_unpaired(a, b):
        return None
    one, other = (np.array(each.details["bootstrap"]["values"], np.float64) for each in (a, b))
    return _about_their_mean(one - other)


def interval_about(value: float, resamples: NDArray[np.float64] | None) -> tuple[float, float] | None:
    """Ends of the 95 % interval of a value whose resamples lie about zero; None where there are none."""
    if resamples is None or np.isnan(resamples).all():
        return None
    low, high = value + np.nanpercentile(resamples, (2.5, 97.5))
    return float(low), float(high)


def _about_their_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values if np.isnan(values).all() else values - np.nanmean(values)


def _is_kept(raw: Any) -> bool:
    return (
        isinstance(raw, Mapping)
        and isinstance(raw.get("clips"), str)
        and isinstance(raw.get("values"), list)
        and len(raw["values"]) > 0
        and all(each is None or isinstance(each, int | float) for each in raw["values"])
    )

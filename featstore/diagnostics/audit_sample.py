"""The random sample of an audit, and the probability that it misses a forgery. Pure.

The clips of a recipe are put in the order of their feature sets and shards, cut into n consecutive blocks of equal size
(to within one clip), and one clip is drawn from each block (stratified sampling with one unit per stratum; Cochran,
"Sampling Techniques", 1977, section 5A.8). So every part with N/n clips or more is sampled, in proportion to its size.

If m_b clips of block b of size N_b are forged, the sample has none of them with the probability prod_b (1 - m_b / N_b).
By the inequality of arithmetic and geometric means this is at most (1 - M / (n B))^n for M forged clips and a largest
block of B clips, wherever they are; for blocks of one size this is (1 - f)^n with the fraction f = M / N, the bound of
sampling with replacement. The seed must not be known before the store is made.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError

__all__ = ["CONFIDENCE", "FRACTIONS", "draw_sample", "forged_at_most", "miss_probability", "sample_size"]

FRACTIONS = (0.01, 0.05)
"""Forged fractions for which a certificate states the probability of missing them."""
CONFIDENCE = 0.95
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%|([0-9]+)")


def sample_size(sample: str | int, n_clips: int) -> int:
    """Number of clips to draw of `n_clips`: a number, or a percentage that is rounded up; at least 1, at most all.

    >>> sample_size("1%", 1000), sample_size("1%", 1001), sample_size(50, 20), sample_size("100%", 7)
    (10, 11, 20, 7)

    Raises
    ------
    UsageError
        `sample` is neither a number of at least 1 nor a percentage above 0 and at most 100.
    """
    found = _SIZE.fullmatch(str(sample).strip())
    per_cent, number = (float(found[1] or 0), int(found[2] or 0)) if found else (0.0, 0)
    if not (0 < per_cent <= 100 or number >= 1):
        raise UsageError(f"sample must be a percentage such as 1%, or a number of clips: got {sample!r}")
    wanted = number or math.ceil(round(per_cent * n_clips / 100, 9))
    return min(n_clips, max(1, wanted))


def draw_sample(n_clips: int, n_sampled: int, *, seed: int) -> NDArray[np.int64]:
    """Draw one clip of each of `n_sampled` blocks of `n_clips` clips: ascending indices, int64 (n_sampled,)."""
    bounds = np.arange(n_sampled + 1, dtype=np.int64) * n_clips // n_sampled if n_sampled else np.zeros(1, np.int64)
    return np.random.default_rng(seed).integers(bounds[:-1], bounds[1:])


def miss_probability(n_clips: int, n_sampled: int, *, fraction: float) -> float:
    """Largest probability that a sample has no forged clip if a fraction of the clips, rounded up, is forged.

    >>> round(miss_probability(10_000, 100, fraction=0.01), 4), miss_probability(50, 50, fraction=0.01)
    (0.366, 0.0)
    """
    if n_sampled >= n_clips:
        return 0.0
    n_forged = math.ceil(round(fraction * n_clips, 9))
    no_forged_clip = max(0.0, 1 - n_forged / (n_sampled * _largest_block(n_clips, n_sampled)))
    return float(no_forged_clip**n_sampled)


def forged_at_most(n_clips: int, n_sampled: int) -> float:
    """Upper bound, at 95 % confidence, of the forged fraction if the sample has no forged clip.

    A larger forged fraction would have been found with a probability of 95 % or more.

    >>> round(forged_at_most(10_000, 100), 4), forged_at_most(50, 50)
    (0.0295, 0.0)
    """
    if n_sampled >= n_clips:
        return 0.0
    most: float = n_sampled * _largest_block(n_clips, n_sampled) * (1 - (1 - CONFIDENCE) ** (1 / n_sampled))
    return min(1.0, most / n_clips)


def _largest_block(n_clips: int, n_sampled: int) -> int:
    return -(-n_clips // n_sampled)

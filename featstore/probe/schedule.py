"""The learning rate of each epoch."""

from __future__ import annotations

import math

__all__ = ["cosine_rate"]

FINAL_FRACTION = 0.1


def cosine_rate(learning_rate: float, *, epoch: int, epochs: int) -> float:
    """Rate of an epoch, counted from 0, on a cosine from the full rate towards a tenth of it.

    The tenth belongs to the epoch after the last, which never comes: that is how X-ARES, through ignite's
    ``CosineAnnealingScheduler`` with a cycle of ``epochs``, has it.

    >>> [round(cosine_rate(1.0, epoch=epoch, epochs=3), 4) for epoch in range(3)]
    [1.0, 0.775, 0.325]
    """
    final = learning_rate * FINAL_FRACTION
    return final + (learning_rate - final) * (1 + math.cos(math.pi * epoch / epochs)) / 2

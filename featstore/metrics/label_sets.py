"""Label sets and class indices as one thing: an index is a set of one label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_label_sets"]


def as_label_sets(y_true: NDArray[Any], n_classes: int) -> NDArray[np.bool_]:
    """Which labels each sample has: bool (n, n_classes), from label sets of 0 and 1 or from class indices (n,)."""
    return y_true.astype(bool) if y_true.ndim == 2 else y_true[:, None] == np.arange(n_classes)

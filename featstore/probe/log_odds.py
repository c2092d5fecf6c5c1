"""Log-odds of samples from the logits of their windows. They rank samples whose probabilities are 1 in float32.

The probability of a sample is the mean over its windows, weighted by seconds. It is computed from log p and log(1 - p),
both of which stay exact when p is close to 0 or 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation import Samples

__all__ = ["log_odds", "log_shares_of_one", "log_shares_of_sets", "mean_log_loss"]

Logs = tuple[NDArray[np.float64], NDArray[np.float64]]
"""log p and log(1 - p), (n, n_classes) each."""


def log_shares_of_one(logits: NDArray[np.floating[Any]]) -> Logs:
    """Return the logarithms for a softmax over the classes."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    log_share = shifted - np.log(total)
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_share))
        # 1 - p of the most likely class is summed from the other classes: subtraction from 1 would lose precision.
        rows, top = np.arange(len(shifted)), shifted.argmax(axis=1)
        others = shifted.copy()
        others[rows, top] = -np.inf
        highest = others.max(axis=1, keepdims=True)
        rest = np.log(np.exp(others - highest).sum(axis=1)) + highest[:, 0] if others.shape[1] > 1 else -np.inf
        log_rest[rows, top] = rest - np.log(total[:, 0])
    return log_share, log_rest


def log_shares_of_sets(logits: NDArray[np.floating[Any]]) -> Logs:
    """Return the logarithms for a sigmoid per class."""
    exact = np.asarray(logits, np.float64)
    return -np.logaddexp(0.0, -exact), -np.logaddexp(0.0, exact)


def vote(samples: Samples, logs: Logs) -> Logs:
    """Return the logarithms of the mean p and mean 1 - p over the windows of each sample: (samples, n_classes) each."""
    if len(samples.starts) == len(samples.windows):
        return logs
    weights = samples.weights.astype(np.float64)
    total = np.log(np.add.reduceat(weights, samples.starts))[:, None]
    log_share, log_rest = (
        np.logaddexp.reduceat(each + np.log(weights)[:, None], samples.starts, axis=0) - total for each in logs
    )
    return log_share, log_rest


def log_odds(logs: Logs) -> NDArray[np.float64]:
    """Log p - log(1 - p); 0 at p = 0.5."""
    return logs[0] - logs[1]


def mean_log_loss(y_true: NDArray[Any], logs: Logs) -> float:
    """Mean cross-entropy of class indices (n,), or binary cross-entropy of multi-hot labels (n, n_classes)."""
    if y_true.ndim == 1:
        return float(-logs[0][np.arange(len(y_true)), y_true].mean())
    return float(-np.where(y_true > 0, logs[0], logs[1]).mean())

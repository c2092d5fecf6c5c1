"""Few-shot curves: the score of a task by the number of training clips per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.records import sha256_of
from featstore.tasks.splits import Round, draw_support

if TYPE_CHECKING:
    from featstore.evaluation.data import TaskData

__all__ = ["N_SUPPORT_SETS", "check_shots", "shots_details", "support_sets"]

N_SUPPORT_SETS = 20


def check_shots(shots: Sequence[int]) -> None:
    """Raise UsageError unless the numbers are distinct and at least 1."""
    if len(set(shots)) < len(shots) or any(each < 1 for each in shots):
        raise UsageError(f"shots must be distinct numbers from 1 on, got {', '.join(map(str, shots))}")


def support_sets(task: TaskData, each: Round, *, shots: int) -> tuple[NDArray[np.int64], ...]:
    """Draw the support sets (clips) of a round. They are the same for every encoder and for both tracks."""
    drawn_for = {"round": each.name, "shots": shots, "clips": [task.clip_id[clip] for clip in each.train]}
    rng = np.random.default_rng(int(sha256_of(drawn_for), 16))
    values = task.targets.values
    return tuple(draw_support(each.train, values, shots=shots, rng=rng) for _ in range(N_SUPPORT_SETS))


def shots_details(scores: Mapping[int, NDArray[np.floating[Any]]]) -> dict[str, Any]:
    """Build ``details["shots"]`` from scores (rounds, support sets) by number of shots.

    The interval is the middle 95 % of the draws: it shows how much the score depends on the drawn clips. With several
    rounds, it is the spread of single draws about their round's mean, centred on the mean of all rounds; averages over
    rounds would underestimate the effect of a single draw.
    """
    found = {}
    for shots, by_round in scores.items():
        n_rounds, n_sets = by_round.shape
        mean = float(by_round.mean())
        about_mean = by_round - by_round.mean(axis=1, keepdims=True)
        low, high = np.percentile(about_mean, (2.5, 97.5))
        found[str(shots)] = {
            "mean": mean,
            "std": float(np.sqrt(np.square(about_mean).sum() / (n_rounds * (n_sets - 1)))),
            "low": mean + float(low),
            "high": mean + float(high),
            "support_sets": n_sets,
        }
    return found

"""Which epochs were selected, and by what: the part of a record that every kind with epochs has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from featstore.splits import Round

__all__ = ["selection_details"]


class Selected(Protocol):
    """What was trained, as far as its epochs go."""

    @property
    def epoch(self) -> int:
        """The best one, counted from 1."""

    @property
    def history(self) -> Sequence[float]:
        """Validation score after each epoch; empty without validation."""


def selection_details(rounds: Sequence[Round], trained: Sequence[Sequence[Selected]]) -> dict[str, Any]:
    """Best epochs and validation scores of what was trained in each round, by seed."""
    by_name = {each.name: of for each, of in zip(rounds, trained, strict=True)}
    return {
        "best_epoch": {name: [each.epoch for each in of] for name, of in by_name.items()},
        "validation": {name: [list(each.history) for each in of] for name, of in by_name.items()},
    }

"""What was selected, and how sure that is: the part of a record that every probe has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from featstore.tasks.splits import Round

__all__ = ["Head", "Selected", "fit_details", "selection_details", "strengths_beyond"]

Head = Literal["logistic", "ridge", "linear", "sweep"]

NOT_CONVERGED = "the fit did not converge: the score may be below what the embeddings allow"
AT_EDGE = "the best strength or learning rate is at the bound of the search"


class Selected(Protocol):
    """What was trained, as far as its epochs go."""

    @property
    def epoch(self) -> int:
        """The best one, counted from 1."""

    @property
    def history(self) -> Sequence[float]:
        """Validation score after each epoch; empty without validation."""

    @property
    def fit(self) -> Mapping[str, Any] | None:
        """How its learning rate was found; None where the schedule is fixed."""


def strengths_beyond(tried: Sequence[float], best: float, *, bounds: tuple[float, float]) -> list[float]:
    """What is tried next on a log grid of half decades: a decade beyond an edge that is the best so far.

    >>> [round(each, 3) for each in strengths_beyond([1.0, 10.0], 10.0, bounds=(1e-3, 50.0))]
    [31.623]
    >>> strengths_beyond([1.0, 3.0, 9.0], 3.0, bounds=(0, 99))
    []
    """
    step = math.sqrt(10.0)
    beyond = []
    if best == max(tried):
        beyond = [best * step, best * step**2]
    elif best == min(tried):
        beyond = [best / step, best / step**2]
    slack = 1.0 + 1e-9  # of rounding
    return [each for each in beyond if bounds[0] / slack <= each <= bounds[1] * slack]


def selection_details(rounds: Sequence[Round], trained: Sequence[Sequence[Selected]]) -> dict[str, Any]:
    """Best epochs and validation scores of what was trained in each round, by seed."""
    by_name = {each.name: of for each, of in zip(rounds, trained, strict=True)}
    every = [each for of in trained for each in of]
    details: dict[str, Any] = {
        "best_epoch": {name: [each.epoch for each in of] for name, of in by_name.items()},
        "validation": {name: [list(map(_finite, each.history)) for each in of] for name, of in by_name.items()},
        "best_epoch_at_edge": any(_at_edge(each) for each in every if each.history),
    }
    if all(each.fit is not None for each in every):
        details |= fit_details(rounds, [[each.fit or {} for each in of] for of in trained])
    return details


def _finite(score: float) -> float | None:
    """A score, or None of an epoch that came to numbers that are not finite."""
    return score if math.isfinite(score) else None


def _at_edge(each: Selected) -> bool:
    """Whether the best epoch is the first, or the last that the schedule allows."""
    stopped_early = each.fit is not None and each.fit["converged"]
    return each.epoch == 1 or (each.epoch == len(each.history) and not stopped_early)


def fit_details(rounds: Sequence[Round], fits: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Build ``details["fit"]`` from the fits of each round, by seed where there are several."""
    every = [fit for of in fits for fit in of]
    converged, at_edge = all(fit["converged"] for fit in every), any(fit["at_edge"] for fit in every)
    notes = [note for note, given in ((NOT_CONVERGED, not converged), (AT_EDGE, at_edge)) if given]
    details: dict[str, Any] = {
        "fit": {
            "converged": converged,
            "at_edge": at_edge,
            "extended": any(fit["extended"] for fit in every),
            "notes": notes,
            "rounds": {each.name: [dict(fit) for fit in of] for each, of in zip(rounds, fits, strict=True)},
        }
    }
    return details

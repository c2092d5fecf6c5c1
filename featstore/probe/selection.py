"""Model selection as a `ScoreRecord` reports it, and extension of hyperparameter grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.training import Fitted

__all__ = ["GridSearch", "Head", "Path", "Tried", "fit_details", "selection_details", "weight_details"]

Head = Literal["logistic", "ridge", "linear", "sweep", "layer-mix"]

NOT_CONVERGED = "the fit did not converge: the score may be below what the embeddings allow"
AT_EDGE = "the best strength or learning rate is at the bound of the search"


Model = TypeVar("Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Result for one regularisation strength.

    Attributes
    ----------
    score : (float, float) or None
        Validation score and a tie-breaker, higher is better; None without validation.
    iterations, gradient_norm : int, float
        Number of evaluations, and norm of the gradient as a fraction of the penalty's; 0 for a closed form.
    """

    strength: float
    score: tuple[float, float] | None
    iterations: int = 0
    gradient_norm: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Path(Generic[Model]):
    """The selected model, and the results for all strengths in ascending order.

    Attributes
    ----------
    extended : bool
        Whether the grid was extended because the best strength was at its edge.
    at_edge : bool
        Whether the best strength is at a bound of the search.
    converged : bool
        Whether the gradient of the selected model is within the tolerance.
    """

    model: Model
    chosen: Tried
    tried: tuple[Tried, ...]
    extended: bool
    at_edge: bool
    converged: bool

    def as_json(self) -> dict[str, Any]:
        """Return the entry of a round in ``details["fit"]``."""
        return {
            "strength": self.chosen.strength,
            "grid": [tried.strength for tried in self.tried],
            "scores": [None if tried.score is None else tried.score[0] for tried in self.tried],
            "extended": self.extended,
            "at_edge": self.at_edge,
            "iterations": self.chosen.iterations,
            "gradient_norm": self.chosen.gradient_norm,
            "converged": self.converged,
        }


class GridSearch:
    """Extends a logarithmic grid of half decades while its best value is at an edge.

    Attributes
    ----------
    extended : bool
        Whether the grid was extended.
    at_edge : bool
        Whether the best value is at one of the ``bounds``.
    """

    def __init__(self, *, bounds: tuple[float, float]) -> None:
        self._bounds = bounds
        self._metric = -math.inf
        self.extended = self.at_edge = False

    def beyond(self, scores: Mapping[float, tuple[float, float]]) -> list[float]:
        """Return the values to try next: one decade beyond the best edge, while that improves the metric.

        Parameters
        ----------
        scores : mapping
            Maps each value tried to its metric and a tie-breaker, higher is better.

        Examples
        --------
        >>> search = GridSearch(bounds=(1e-3, 50.0))
        >>> [round(each, 3) for each in search.beyond({1.0: (0.8, 0), 10.0: (0.9, 0)})]
        [31.623]
        >>> search.beyond({1.0: (0.8, 0), 10.0: (0.9, 0), 31.623: (0.9, 1)})
        []
        """
        best = max(scores, key=lambda value: scores[value])
        metric, before = scores[best][0], self._metric
        if metric <= before or len(scores) == 1:
            return []
        self._metric = metric
        if best == max(scores):
            beyond = [best * 10.0**0.5, best * 10.0]
        elif best == min(scores):
            beyond = [best / 10.0**0.5, best / 10.0]
        else:
            return []
        slack = 1.0 + 1e-9  # for rounding
        found = [each for each in beyond if self._bounds[0] / slack <= each <= self._bounds[1] * slack]
        self.extended |= bool(found)
        self.at_edge = not found and all(of[0] < metric for value, of in scores.items() if value != best)
        return found


def selection_details(rounds: Sequence[Round], trained: Sequence[Sequence[Fitted]]) -> dict[str, Any]:
    """Best epochs and validation scores of each round, by seed."""
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
    """A score, or None if it is not finite."""
    return score if math.isfinite(score) else None


def _at_edge(each: Fitted) -> bool:
    """Whether the best epoch is the first or the last epoch of the schedule."""
    stopped_early = each.fit is not None and each.fit["converged"]
    return each.epoch == 1 or (each.epoch == len(each.history) and not stopped_early)


def fit_details(rounds: Sequence[Round], fits: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Build ``details["fit"]`` from the fits of each round, by seed where a round has several."""
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


def weight_details(layers: Sequence[int], weights: Sequence[NDArray[np.float64] | None]) -> dict[str, Any]:
    """Build ``details["layer_weights"]`` from the weights of the layers in each fit, (layers,) each."""
    found = np.array([each for each in weights if each is not None])
    return {
        "layers": list(layers),
        "mean": found.mean(axis=0).tolist(),
        "std": found.std(axis=0, ddof=1).tolist() if len(found) > 1 else None,
        "fits": len(found),
    }

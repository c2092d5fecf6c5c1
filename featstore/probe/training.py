"""X-ARES's training schedule: Adam, a cosine learning rate by epoch, and the best epoch by validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from featstore.errors import DataError

__all__ = ["Fitted", "adam_step", "cosine_rate", "fit", "initialised", "require_finite"]


_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


def adam_step(
    values: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    first_moments: Sequence[Tensor],
    second_moments: Sequence[Tensor],
    taken: Sequence[Tensor],
    learning_rate: float,
) -> None:
    """Take a step, in place; ``taken``, float32 () for each tensor, counts it."""
    adam(
        list(values),
        list(gradients),
        list(first_moments),
        list(second_moments),
        [],
        list(taken),
        fused=True,
        amsgrad=False,
        maximize=False,
        weight_decay=0.0,
        beta1=_BETA1,
        beta2=_BETA2,
        eps=_EPS,
        lr=learning_rate,
    )


def require_finite(learned: Iterable[Tensor]) -> None:
    """Raise DataError where what was learned is, in part, no number: sums tell, and cost next to nothing."""
    if not all(math.isfinite(each.detach().sum().item()) for each in learned):
        raise DataError(
            "training came to numbers that are not finite: lower the manifest's [probe] learning_rate, or scale labels"
        )


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


Batch = TypeVar("Batch")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The best epoch, counted from 1, and the validation score after each epoch; empty without validation.

    ``fit`` is how a learning rate was found, None where the schedule is fixed.
    """

    epoch: int
    history: tuple[float, ...]
    fit: Mapping[str, Any] | None = None


def initialised(build: Callable[[], Module], rng: np.random.Generator) -> Module:
    """Build a module whose initial weights come from a generator, and leave torch's own generator as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        return build()


def fit(
    model: nn.Module,
    *,
    batches: Callable[[], Iterable[Batch]],
    loss: Callable[[Batch], Tensor],
    score: Callable[[], float] | None,
    epochs: int,
    learning_rate: float,
) -> Fitted:
    """Train a model in place, and leave it as it was after the first of its best epochs.

    Parameters
    ----------
    batches : callable
        Gives the batches of an epoch, one by one.
    score : callable or None
        Of the model as it is, higher is better; None takes the last epoch.

    Raises
    ------
    DataError
        The model came to numbers that are not finite.
    """
    adam_of_model = _Adam(model.parameters())
    best: dict[str, Tensor] = {}
    best_score, best_epoch = -math.inf, epochs
    history: list[float] = []
    for epoch in range(epochs):
        rate = cosine_rate(learning_rate, epoch=epoch, epochs=epochs)
        for batch in batches():
            adam_of_model.step(loss(batch), learning_rate=rate)
        require_finite(model.parameters())
        if score is None:
            continue
        history.append(score())
        if history[-1] > best_score:
            best_score, best_epoch = history[-1], epoch + 1
            best = {name: value.clone() for name, value in model.state_dict().items()}
    if best:
        model.load_state_dict(best)
    return Fitted(epoch=best_epoch, history=tuple(history))


class _Adam:
    """Steps the parameters of a module down their gradients."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._first = [torch.zeros_like(each) for each in self._parameters]
        self._second = [torch.zeros_like(each) for each in self._parameters]
        self._taken = [torch.zeros((), device=each.device) for each in self._parameters]

    def step(self, loss: Tensor, *, learning_rate: float) -> None:
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            adam_step(
                [each.data for each in self._parameters],
                [each.contiguous() for each in gradients],
                first_moments=self._first,
                second_moments=self._second,
                taken=self._taken,
                learning_rate=learning_rate,
            )

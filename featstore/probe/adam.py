"""Steps of Adam with the defaults of ``torch.optim.Adam``, for parameters and moments that lie in plain tensors.

`require_finite` is asked after each epoch whether they came to anything.

The function behind that class is called: the class itself would import torch's compiler, for a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.optim.adam import adam

from featstore.errors import DataError

__all__ = ["adam_step", "require_finite"]

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

"""L-BFGS for many convex problems at once (Nocedal and Wright 2006, algorithms 7.4 and 3.5).

`torch.optim.LBFGS` takes one problem; here every problem is a row of one matrix, with its own step length, memory and
end, and a problem that has converged leaves the batch. Each pass evaluates one trial point of every problem: where the
step is accepted the problem gets its next direction, where it is not the step is shortened. No problem waits for
another one's line search.

Objectives are a convex loss plus a quadratic penalty. At the minimum the gradient of the loss and that of the penalty
cancel, so a problem has converged where their sum is small beside either: that measure has no unit, and asks for more
where the penalty is weak and little of the gradient is left. Directions are scaled by the diagonal of the Hessian, and
so are these norms: sqrt(sum of g^2 / h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Minimum", "minimise"]

MEMORY = 10
SUFFICIENT_DECREASE = 0.1
ROUNDING = 1e-6
"""Share of the objective that float32 does not resolve: below it the slope decides (Hager and Zhang 2005)."""

RESOLVED_EPS = 4.0
"""A gradient of so many units of rounding counts as zero: where features say nothing, weights and penalty are zero."""

SHORTEST_STEP = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """Where each problem ended.

    Attributes
    ----------
    x : float32 (problems, variables)
    iterations : int64 (problems,)
        Evaluations of the objective and its gradient.
    gradient_norm : float64 (problems,)
        Scaled norm of the gradient, as a share of that of the penalty.
    """

    x: Tensor
    iterations: Tensor
    gradient_norm: Tensor


def minimise(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    penalty: Tensor,
    curvature: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Minimum:
    """Minimise each row's loss + sum of penalty x^2 / 2, until its gradient is ``tolerance`` of the penalty's.

    Parameters
    ----------
    evaluate : callable
        From points float32 (p, variables) and which problems they are of, int64 (p,), rising: losses float64 (p,) and
        their gradients float32 (p, variables).
    start : float32 (problems, variables)
    penalty : float32 (problems, variables)
    curvature : float32 (problems, variables)
        An estimate of the diagonal of each Hessian, above 0.
    """

    def objective(x: Tensor, problems: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = evaluate(x, problems)
        pull = x * penalty[problems]
        return value + 0.5 * _dot(x, pull), gradient.add_(pull)

    resolved = RESOLVED_EPS * torch.finfo(start.dtype).eps
    found = start.clone()
    iterations = torch.zeros(len(start), dtype=torch.int64)
    norms = torch.full((len(start),), torch.inf, dtype=torch.float64)
    problem = torch.arange(len(start))
    x, h = start, curvature
    f, g = objective(x, problem)
    d = -g / h
    slope = _dot(g, d)
    step = torch.ones_like(f)
    scale = torch.ones_like(f)
    memory = _Memory()
    for iteration in range(1, max_iterations + 1):
        pull = x * penalty[problem]
        norm = _dot(g, g / h).sqrt() / _dot(pull, pull / h).sqrt().clamp(min=resolved / tolerance)
        found[problem], norms[problem], iterations[problem] = x, norm, iteration
        going = (norm > tolerance) & (step > SHORTEST_STEP)
        if not bool(going.any()):
            break
        if not bool(going.all()):
            keep = torch.nonzero(going).squeeze(1)
            problem, x, h, f, g, d = (each[keep] for each in (problem, x, h, f, g, d))
            slope, step, scale = slope[keep], step[keep], scale[keep]
            memory.keep(keep)
        moved = d * step.to(d.dtype)[:, None]
        f_new, g_new = objective(x + moved, problem)
        slope_new = _dot(g_new, d)
        accepted = (f_new <= f + SUFFICIENT_DECREASE * step * slope) | (
            (f_new <= f + ROUNDING * f.abs()) & (slope_new <= (2 * SUFFICIENT_DECREASE - 1) * slope)
        )
        bent = g_new - g
        scale = memory.add(moved, bent, h, accepted=accepted, scale=scale)
        x = torch.where(accepted[:, None], x + moved, x)
        g = torch.where(accepted[:, None], g_new, g)
        f = torch.where(accepted, f_new, f)
        # Where the slope's secant crosses zero, for a step that went too far.
        shorter = step * (slope / (slope - slope_new)).nan_to_num(nan=0.5).clamp(0.1, 0.5)
        step = torch.where(accepted, 1.0, shorter)
        d = torch.where(accepted[:, None], memory.direction(g, h, scale), d)
        slope = _dot(g, d)
        uphill = slope >= 0
        if bool(uphill.any()):
            d = torch.where(uphill[:, None], -g / h, d)
            slope = _dot(g, d)
    return Minimum(x=found, iterations=iterations, gradient_norm=norms)


class _Memory:
    """The last steps and changes of gradient of each problem: (MEMORY, problems, variables)."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._bends: list[Tensor] = []
        self._inverse: list[Tensor] = []

    def keep(self, problems: Tensor) -> None:
        """Forget the other problems."""
        for each in (self._steps, self._bends, self._inverse):
            each[:] = [values[problems] for values in each]

    def add(self, moved: Tensor, bent: Tensor, h: Tensor, *, accepted: Tensor, scale: Tensor) -> Tensor:
        """Remember a pass, of the problems whose step was accepted; returns how the curvature is scaled."""
        product = _dot(moved, bent)
        usable = accepted & (product > 0)
        for each, value in (
            (self._steps, moved),
            (self._bends, bent),
            (self._inverse, torch.where(usable, 1.0 / product, 0.0).to(moved.dtype)),
        ):
            each.append(value)
            del each[:-MEMORY]
        return torch.where(usable, product / _dot(bent, bent / h), scale)

    def direction(self, g: Tensor, h: Tensor, scale: Tensor) -> Tensor:
        """Two-loop recursion: minus the approximate inverse Hessian times the gradient."""
        q = -g
        shares = []
        for s, y, inverse in zip(self._steps[::-1], self._bends[::-1], self._inverse[::-1], strict=True):
            share = inverse * (s * q).sum(1)
            q = torch.addcmul(q, share[:, None], y, value=-1.0)
            shares.append(share)
        q = q * scale.to(q.dtype)[:, None] / h
        for s, y, inverse, share in zip(self._steps, self._bends, self._inverse, shares[::-1], strict=True):
            q = torch.addcmul(q, (share - inverse * (y * q).sum(1))[:, None], s)
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1).to(torch.float64)

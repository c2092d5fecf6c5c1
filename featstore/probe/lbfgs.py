"""L-BFGS for many convex problems at once (Nocedal and Wright 2006, algorithms 7.4 and 3.5).

`torch.optim.LBFGS` solves one problem. Here every problem is a row of one matrix, with its own step length, history and
stopping test; a converged problem leaves the batch. Each pass evaluates one trial point per problem: an accepted step
gives the next direction, a rejected step is shortened. No problem waits for the line search of another.

Objectives are a convex loss plus a quadratic penalty. At the minimum their gradients cancel, so a problem has converged
when the norm of the sum is a small fraction of the norm of the penalty's gradient. This measure has no unit and is
stricter for weak penalties. Directions are scaled by the diagonal h of the Hessian, and norms are sqrt(sum of g^2 / h).
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
"""Relative change of the objective below float32 resolution; the slope decides then (Hager and Zhang 2005)."""

RESOLVED_EPS = 4.0
"""A gradient of at most this many units of rounding counts as zero, as for constant features."""

SHORTEST_STEP = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Minimum:
    """Solutions of all problems.

    Attributes
    ----------
    x : float32 (problems, variables)
    iterations : int64 (problems,)
        Number of evaluations of the objective and its gradient.
    gradient_norm : float64 (problems,)
        Scaled norm of the gradient, as a fraction of the norm of the penalty's gradient.
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
    """Minimise loss + sum of penalty x^2 / 2 per row, until the gradient is ``tolerance`` times the penalty's gradient.

    Parameters
    ----------
    evaluate : callable
        Maps points float32 (p, variables) and their problem numbers int64 (p,), ascending, to losses float64 (p,) and
        gradients float32 (p, variables).
    start : float32 (problems, variables)
    penalty : float32 (problems, variables)
    curvature : float32 (problems, variables)
        Estimate of the diagonal of each Hessian, positive.
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
    history = _History()
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
            history.keep(keep)
        x_change = d * step.to(d.dtype)[:, None]
        f_new, g_new = objective(x + x_change, problem)
        slope_new = _dot(g_new, d)
        accepted = (f_new <= f + SUFFICIENT_DECREASE * step * slope) | (
            (f_new <= f + ROUNDING * f.abs()) & (slope_new <= (2 * SUFFICIENT_DECREASE - 1) * slope)
        )
        gradient_change = g_new - g
        scale = history.add(x_change, gradient_change, h, accepted=accepted, scale=scale)
        x = torch.where(accepted[:, None], x + x_change, x)
        g = torch.where(accepted[:, None], g_new, g)
        f = torch.where(accepted, f_new, f)
        # After a step that was too long: the zero of the secant of the slope.
        shorter = step * (slope / (slope - slope_new)).nan_to_num(nan=0.5).clamp(0.1, 0.5)
        step = torch.where(accepted, 1.0, shorter)
        d = torch.where(accepted[:, None], history.direction(g, h, scale), d)
        slope = _dot(g, d)
        uphill = slope >= 0
        if bool(uphill.any()):
            d = torch.where(uphill[:, None], -g / h, d)
            slope = _dot(g, d)
    return Minimum(x=found, iterations=iterations, gradient_norm=norms)


class _History:
    """L-BFGS history: recent steps and gradient changes of each problem, (MEMORY, problems, variables)."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._gradient_changes: list[Tensor] = []
        self._inverse: list[Tensor] = []

    def keep(self, problems: Tensor) -> None:
        """Drop the history of all other problems."""
        for each in (self._steps, self._gradient_changes, self._inverse):
            each[:] = [values[problems] for values in each]

    def add(self, x_change: Tensor, gradient_change: Tensor, h: Tensor, *, accepted: Tensor, scale: Tensor) -> Tensor:
        """Append a pass for the problems with an accepted step; return the scale of the curvature."""
        product = _dot(x_change, gradient_change)
        usable = accepted & (product > 0)
        for each, value in (
            (self._steps, x_change),
            (self._gradient_changes, gradient_change),
            (self._inverse, torch.where(usable, 1.0 / product, 0.0).to(x_change.dtype)),
        ):
            each.append(value)
            del each[:-MEMORY]
        return torch.where(usable, product / _dot(gradient_change, gradient_change / h), scale)

    def direction(self, g: Tensor, h: Tensor, scale: Tensor) -> Tensor:
        """Two-loop recursion: minus the approximate inverse Hessian times the gradient."""
        q = -g
        shares = []
        for s, y, inverse in zip(self._steps[::-1], self._gradient_changes[::-1], self._inverse[::-1], strict=True):
            share = inverse * (s * q).sum(1)
            q = torch.addcmul(q, share[:, None], y, value=-1.0)
            shares.append(share)
        q = q * scale.to(q.dtype)[:, None] / h
        for s, y, inverse, share in zip(self._steps, self._gradient_changes, self._inverse, shares[::-1], strict=True):
            q = torch.addcmul(q, (share - inverse * (y * q).sum(1))[:, None], s)
        return q


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1).to(torch.float64)

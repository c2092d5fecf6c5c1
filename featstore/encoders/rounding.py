"""Whether a GPU may round the factors of a float32 product to TF32, by every name that PyTorch has for it.

From PyTorch 2.9 on there are two sets of names. What is set by the newer alone cannot be read by the older (it raises),
and a newer name for all operations reaches those that the older ones leave to it. So both are set, and agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["float32_products"]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While it lasts, products are rounded where `precision` is ``"tf32"``, and nowhere else; cuDNN would by itself."""
    before = _Settings.now()
    rounds = precision == "tf32"
    torch.set_float32_matmul_precision("high" if rounds else "highest")
    torch.backends.cudnn.allow_tf32 = rounds
    for operations in _newer():
        operations.fp32_precision = "tf32" if rounds else "ieee"
    try:
        yield
    finally:
        before.restore()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """``older`` is None where they were set by the newer names, and the older ones refuse to tell."""

    older: tuple[str, bool] | None
    newer: tuple[str, ...]

    @classmethod
    def now(cls) -> _Settings:
        newer = tuple(operations.fp32_precision for operations in _newer())
        try:
            return cls(older=(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32), newer=newer)
        except RuntimeError:
            return cls(older=None, newer=newer)

    def restore(self) -> None:
        if self.older is not None:
            torch.set_float32_matmul_precision(self.older[0])
            torch.backends.cudnn.allow_tf32 = self.older[1]
            return
        for operations, was in zip(_newer(), self.newer, strict=True):
            operations.fp32_precision = was


def _newer() -> tuple[Any, ...]:
    """What has a precision of its own by the newer names; nothing before PyTorch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return ()
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn

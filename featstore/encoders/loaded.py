"""What a loader hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from featstore.records import NamedBy

__all__ = ["LoadedModel"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module that keeps the contract, the name of its feature sets, what that was taken from, and what it is.

    ``earlier`` is what it was to an earlier featstore, where that was another identity.
    """

    module: nn.Module
    name: str
    named_by: NamedBy
    identity: Mapping[str, Any]
    earlier: Mapping[str, Any] | None = None

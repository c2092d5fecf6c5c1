"""Records as plain JSON: their fields, with sets as sorted lists and numbers of columns as text in keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """Return a value that JSON can hold, of a record, a collection of records, or of plain values."""
    if dataclasses.is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, Set):
        return sorted(value)
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value

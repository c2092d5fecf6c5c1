"""Leaderboards as JSON: the fields of their records, so that a script need not compute an average or a rank."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Set
from typing import Any

from featstore.report.leaderboard import Average, Column, Leaderboard, Row, Table

__all__ = ["OMITTED", "board_to_json"]

OMITTED: Mapping[type, frozenset[str]] = {
    Table: frozenset({"superseded"}),
    Row: frozenset({"ranks"}),
    Average: frozenset({"ranks"}),
}
"""Fields that are not in the JSON: scores that are not in the table, and what ``resolution`` contains."""


def board_to_json(board: Leaderboard) -> str:
    """The tables as one JSON array."""
    found = [_plain(table) for table in board.tables]
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        omitted = OMITTED.get(type(value), frozenset())
        names = (each.name for each in dataclasses.fields(value) if each.name not in omitted)
        found = {name: _plain(getattr(value, name)) for name in names}
        return {**found, "settings": dict(value.settings)} if isinstance(value, Column) else found
    if isinstance(value, Set):
        return sorted(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value

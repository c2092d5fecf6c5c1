"""Leaderboards as JSON: the fields of their records, so that a script need not compute an average or a rank."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Set
from typing import Any

from featstore.report.leaderboard import Leaderboard

__all__ = ["board_to_json"]


def board_to_json(board: Leaderboard) -> str:
    """The tables as one JSON array, without scores of superseded protocol versions."""
    found = [{name: each for name, each in _plain(table).items() if name != "superseded"} for table in board.tables]
    return json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, Set):
        return sorted(value)
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value

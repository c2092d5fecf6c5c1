"""The one parser of a clip's JSON: what `extract` stores is what every later command can read, print and export."""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Any

__all__ = ["MAX_NESTED", "parse_clip_json"]

MAX_NESTED = 64
_OPENING = re.compile(r"[\[{]")
_PERHAPS_LARGE = re.compile(r"[0-9](?:[eE]|[0-9]{300})")


def parse_clip_json(text: str) -> Any:
    r"""Parse the JSON of a clip.

    More is refused than the standard's grammar does: numbers that no float64 holds, text that UTF-8 cannot hold (half
    of a surrogate pair, ``"\ud800"``), and objects and lists more than 64 deep. ``NaN`` and ``Infinity``, which Python
    reads, are not JSON. Of two members of one name in an object the last counts, as everywhere in Python.

    >>> parse_clip_json('{"label": "a", "n": 1.5}')
    {'label': 'a', 'n': 1.5}

    Raises
    ------
    ValueError
        It is none of that; the message is one line.
    """
    try:
        value = (_CHECKING if _PERHAPS_LARGE.search(text) else _PLAIN).decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if next(islice(_OPENING.finditer(text), MAX_NESTED, None), None) and _is_nested(value, deeper_than=MAX_NESTED):
        raise ValueError(_TOO_DEEP)
    if "\\u" in text:  # nothing else makes a surrogate of text that came as UTF-8
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"{half!a} is half of a surrogate pair, which no text holds") from None
    return value


_TOO_DEEP = f"it is nested more than {MAX_NESTED} deep"


def _whole(text: str) -> int:
    _real(text)
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{_shortened(text)} is larger than any float64")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:16]}... ({len(text):,} characters)"


def _constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


_PLAIN = json.JSONDecoder(parse_constant=_constant)
_CHECKING = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=_constant)
"""Looks at each number, which takes three times as long."""


def _is_nested(value: Any, *, deeper_than: int) -> bool:
    """Whether objects and lists lie in one another deeper than that, the outermost counted."""
    level = [value]
    for _ in range(deeper_than + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True

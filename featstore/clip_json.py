"""Rules for the keys and the JSON of clips: what is stored can be read, printed and exported by all commands."""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Any

__all__ = ["MAX_NESTED", "parse_clip_json", "printable_key", "problem_of_key"]

MAX_KEY_CHARACTERS = 1024
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def problem_of_key(key: str) -> str:
    """Reason why a key is not stored; empty if there is none."""
    if len(key) > MAX_KEY_CHARACTERS:
        return f"its key has {len(key):,} characters, more than {MAX_KEY_CHARACTERS:,}"
    try:
        key.encode()
    except UnicodeEncodeError:
        return "its key is not UTF-8 text"
    return "its key has control characters" if _CONTROLS.search(key) else ""


def printable_key(key: str) -> str:
    """A key for records: control characters and bytes that are not text are escaped, a long key is shortened."""
    text = key.encode("utf-8", "backslashreplace").decode()
    text = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return text if len(text) <= MAX_KEY_CHARACTERS else f"{text[:64]}... ({len(text):,} characters)"


MAX_NESTED = 64
_OPENING = re.compile(r"[\[{]")
_PERHAPS_LARGE = re.compile(r"[0-9](?:[eE]|[0-9]{300})")


def parse_clip_json(text: str) -> Any:
    r"""Parse the JSON of a clip.

    Besides malformed JSON, the parser rejects numbers that exceed float64, text that UTF-8 cannot encode (a lone
    surrogate, ``"\ud800"``), and objects and lists nested more than 64 deep. It also rejects ``NaN`` and ``Infinity``,
    which Python's parser accepts. If an object repeats a name, the last value counts, as in Python's parser.

    >>> parse_clip_json('{"label": "a", "n": 1.5}')
    {'label': 'a', 'n': 1.5}

    Raises
    ------
    ValueError
        The text is rejected; the message is one line.
    """
    try:
        value = (_CHECKING if _PERHAPS_LARGE.search(text) else _PLAIN).decode(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if next(islice(_OPENING.finditer(text), MAX_NESTED, None), None) and _is_nested(value, deeper_than=MAX_NESTED):
        raise ValueError(_TOO_DEEP)
    if "\\u" in text:  # text decoded from UTF-8 gets a surrogate only from an escape
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"{half!a} is half of a surrogate pair, which UTF-8 cannot encode") from None
    return value


_TOO_DEEP = f"it is nested more than {MAX_NESTED} deep"


def _checked_int(text: str) -> int:
    _checked_float(text)
    return int(text)


def _checked_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{_shorten(text)} is larger than any float64")
    return value


def _shorten(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:16]}... ({len(text):,} characters)"


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


_PLAIN = json.JSONDecoder(parse_constant=_reject_constant)
_CHECKING = json.JSONDecoder(parse_int=_checked_int, parse_float=_checked_float, parse_constant=_reject_constant)
"""Checks each number, and takes three times as long."""


def _is_nested(value: Any, *, deeper_than: int) -> bool:
    """Whether objects and lists are nested deeper than `deeper_than` levels; the outermost is level 1."""
    level = [value]
    for _ in range(deeper_than + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True

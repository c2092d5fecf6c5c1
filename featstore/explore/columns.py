"""Fields of the clips of a map: what the points can be coloured and searched by."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.report.tables import natural
from featstore.store.clip_fields import stored_clip_json

__all__ = ["Column", "columns_of", "default_colour"]


MAX_CLASSES = 1_000
"""A column with more distinct values is text: searchable and shown, but not a colour."""

MAX_COLUMNS = 40
MAX_NUMBERS_AS_CLASSES = 12
MAX_TEXT = 200
_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One field of all clips.

    Attributes
    ----------
    values : tuple of str
        For ``class`` and ``text``: the value of each code, the most frequent first, ties in natural order.
    codes : int64 (n,)
        -1 for a clip without this field.
    numbers : float64 (n,)
        For ``number``; NaN for a clip without this field.
    """

    name: str
    kind: Literal["class", "number", "text"]
    values: tuple[str, ...] = ()
    codes: NDArray[np.int64] | None = None
    numbers: NDArray[np.float64] | None = None


def columns_of(keys: Sequence[str], metas: Sequence[str]) -> tuple[Column, ...]:
    """Columns of the clips' JSON, in the order in which fields first occur; nested fields have dotted names.

    Numbers with few distinct whole values are classes. A list of text or numbers is one text, with words sorted. Lists
    of objects, deeper fields and fields beyond the fortieth are skipped.

    Raises
    ------
    LabelError
        The JSON of a clip cannot be read.
    """
    raw: dict[str, list[Any]] = {}
    for at, (key, meta) in enumerate(zip(keys, metas, strict=True)):
        for name, value in _flat(stored_clip_json(meta, key=key), "", _DEPTH):
            if name not in raw and len(raw) == MAX_COLUMNS:
                continue
            column = raw.setdefault(name, [])
            column += [None] * (at - len(column))
            if len(column) == at:
                column.append(value)
    return tuple(_column(name, column + [None] * (len(metas) - len(column))) for name, column in raw.items())


def default_colour(columns: Sequence[Column], *, label: str | None = None) -> int:
    """The column called `label`, then one called ``label``, then the first of 2 to 50 classes of text.

    Otherwise the first that can be a colour; -1 if there is none.
    """
    ranked = [
        (
            column.name != label,
            column.name != "label",
            not (column.kind == "class" and 2 <= len(column.values) <= 50),
            at,
        )
        for at, column in enumerate(columns)
        if column.kind == "number" or (len(column.values) >= 2 and column.kind == "class")
    ]
    return min(ranked)[-1] if ranked else -1


def _flat(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items() if depth else ():
            yield from _flat(inner, f"{name}.{key}" if name else str(key), depth - 1)
    elif name and value is not None:
        if isinstance(value, list):
            if value and all(isinstance(each, str | int | float) for each in value):
                texts = [_text(each) for each in value]
                yield name, ", ".join(sorted(texts) if all(isinstance(each, str) for each in value) else texts)
        else:
            yield name, value


def _column(name: str, raw: list[Any]) -> Column:
    present = [value for value in raw if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        few = len(set(present)) <= MAX_NUMBERS_AS_CLASSES and all(
            isinstance(value, int) or value.is_integer() for value in present
        )
        if not few:
            return Column(name=name, kind="number", numbers=np.array([_number(value) for value in raw]))
    texts = [None if value is None else _text(value) for value in raw]
    counts = Counter(text for text in texts if text is not None)
    values = sorted(counts, key=lambda text: (-counts[text], natural(text)))
    codes = {text: code for code, text in enumerate(values)}
    return Column(
        name=name,
        kind="class" if len(values) <= MAX_CLASSES else "text",
        values=tuple(values),
        codes=np.array([-1 if text is None else codes[text] for text in texts], np.int64),
    )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _number(value: float | None) -> float:
    """The number as a float; NaN for None and for numbers that float32 cannot represent."""
    number = math.nan if value is None else float(value) if abs(value) < 3e38 else math.nan
    return number if math.isfinite(number) else math.nan

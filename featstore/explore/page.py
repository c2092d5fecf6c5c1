"""The map of one feature set as a self-contained page."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore import __version__
from featstore.errors import LabelError
from featstore.explore.map import Points, Projection, nearest_points, pca, umap
from featstore.report.leaderboard import natural
from featstore.report.templating import as_data, environment, writable
from featstore.store.clip_fields import stored_clip_json

if TYPE_CHECKING:
    from featstore.explore.audio import ClipAudio

__all__ = ["NEIGHBOURS", "Column", "Explorer", "columns_of", "default_colour", "explore", "render_map"]


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


NEIGHBOURS = 8
MAX_COLUMN_BYTES = 3_000_000
"""Size limit of all columns in the page; the last ones that exceed it are omitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """All that a page shows, before it is written down.

    Attributes
    ----------
    near_rows : int64 (n, k)
        Nearest points of each, nearest first.
    near_cosines : float32 (n, k)
    colour : int
        Column that colours the map at first, or -1.
    omitted : tuple of str
        Columns that did not fit.
    """

    points: Points
    keys: tuple[str, ...]
    projection: Projection
    columns: tuple[Column, ...]
    colour: int
    near_rows: NDArray[np.int64]
    near_cosines: NDArray[np.float32]
    omitted: tuple[str, ...]

    @property
    def groups(self) -> list[int]:
        """Class of each point by the colour column; one class for all if that column holds numbers."""
        codes = self.columns[self.colour].codes if self.colour >= 0 else None
        return [0] * len(self.points) if codes is None else codes.tolist()


def explore(points: Points, *, method: Literal["pca", "umap"] = "pca", colour: str | None = None) -> Explorer:
    """Project the clips of a feature set and find the neighbours of each.

    Parameters
    ----------
    colour : str, optional
        Field that colours the map. The default is the label of the task of the dataset, see `default_colour`.

    Raises
    ------
    LabelError
        No clip has that field.
    UsageError
        `method` is ``umap``, and umap-learn is not installed.
    """
    place = pca if method == "pca" else umap
    projection = place(points.vectors)
    found = (*columns_of(points.keys, points.metas), *_own_columns(points))
    names = [column.name for column in found]
    if colour is not None and colour not in names:
        raise LabelError(f"no clip of {points.fs.path} has a field {colour!r}; the fields are {_listed(names)}")
    first = default_colour(found, label=_label_field(points)) if colour is None else names.index(colour)
    kept, omitted = _fitting_columns(found, first)
    near = nearest_points(points.vectors, k=NEIGHBOURS)
    return Explorer(
        points=points,
        keys=tuple(points.keys),
        projection=projection,
        columns=kept,
        colour=next((at for at, column in enumerate(kept) if first >= 0 and column is found[first]), -1),
        near_rows=near.rows,
        near_cosines=near.similarities,
        omitted=omitted,
    )


def render_map(
    explorer: Explorer,
    *,
    audio: Mapping[int, str] | ClipAudio | None = None,
    title: str | None = None,
    made_at: datetime | None = None,
) -> str:
    """Render the page.

    Parameters
    ----------
    audio : mapping or ClipAudio, optional
        Point -> data URI; or the source of a server that has every clip at ``audio/<number in the feature set>``.

    Raises
    ------
    UsageError
        jinja2 is not installed.
    """
    templates = environment("featstore.explore", what="the page of `featstore explore`")
    fs, projection = explorer.points.fs, explorer.projection
    served = audio is not None and not isinstance(audio, Mapping)
    page = templates.get_template("explore.html.j2").render(
        title=title or f"{fs.dataset}/{fs.split}",
        version=__version__,
        made_at=(made_at or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        media="'self'" if served else "data:" if audio else "",
        data=as_data(_data(explorer, audio)),
        fs=fs,
        n_points=len(explorer.points),
        k=explorer.near_rows.shape[1],
        projection=projection,
        omitted=explorer.omitted,
        recipe=[(name.replace("_", " "), _text_of(value)) for name, value in fs.recipe.as_json().items()],
    )
    return writable(page)


def _data(explorer: Explorer, audio: Mapping[int, str] | ClipAudio | None) -> dict[str, Any]:
    points = explorer.points
    n = len(points)
    return {
        "n": n,
        "of": f"{points.fs.dataset}/{points.fs.split}",
        "keys": explorer.keys,
        **_coordinates(explorer.projection.xy),
        "axes": explorer.projection.axes,
        "columns": [_column_data(column) for column in explorer.columns],
        "colour": explorer.colour,
        "k": explorer.near_rows.shape[1],
        "near": _base64(_narrow(explorer.near_rows, most=n)),
        "cosines": _base64(np.rint((explorer.near_cosines.clip(-1, 1) + 1) / 2 * 65_535).astype("<u2")),
        **_audio_data(points, audio),
    }


def _audio_data(points: Points, audio: Mapping[int, str] | ClipAudio | None) -> dict[str, Any]:
    if audio is None:
        return {"audio": "none"}
    if isinstance(audio, Mapping):
        return {"audio": "embedded", "sounds": {str(at): uri for at, uri in audio.items()}}
    return {"audio": "served", "numbers": _base64(points.numbers.astype("<u4"))}


def _coordinates(xy: NDArray[np.float32]) -> dict[str, Any]:
    """Coordinates in 16 bits between the minimum and the maximum of their axis."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    coded = np.rint((xy - low) / span * 65_535).astype("<u2")
    return {"xy": _base64(coded), "low": low.tolist(), "high": high.tolist()}


def _column_data(column: Column) -> dict[str, Any]:
    if column.numbers is not None:
        return {"name": column.name, "kind": column.kind, "numbers": _base64(column.numbers.astype("<f4"))}
    codes = np.zeros(0) if column.codes is None else column.codes
    coded = _base64(_narrow(np.where(codes < 0, len(column.values), codes), most=len(column.values) + 1))
    return {"name": column.name, "kind": column.kind, "values": column.values, "codes": coded}


def _narrow(values: NDArray[Any], *, most: int) -> NDArray[Any]:
    """Values from 0 to `most` - 1 in the narrowest unsigned integers: one, two or four bytes."""
    return values.astype("<u1" if most <= 1 << 8 else "<u2" if most <= 1 << 16 else "<u4")


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _own_columns(points: Points) -> tuple[Column, ...]:
    """Columns that the feature set has for its clips: duration and shard."""
    shards = points.shards
    names = tuple(dict.fromkeys(shards))
    codes = {name: code for code, name in enumerate(names)}
    return (
        Column(name="(seconds)", kind="number", numbers=points.seconds),
        Column(name="(shard)", kind="class", values=names, codes=np.array([codes[name] for name in shards], np.int64)),
    )


def _label_field(points: Points) -> str | None:
    """Label field of a built-in task of the dataset."""
    from featstore.tasks import builtin_tasks

    of_dataset = [task.label.field for task in builtin_tasks() if task.feature_dataset == points.fs.dataset]
    return next((field for field in of_dataset if isinstance(field, str)), None)


def _fitting_columns(columns: Sequence[Column], first: int) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The columns that fit into the page, in order, and the names of the others; colours have priority over text."""
    ranked = sorted(
        range(len(columns)), key=lambda at: (at != first, columns[at].kind == "text", len(columns[at].values) > 100, at)
    )
    kept, bytes_left = set(), MAX_COLUMN_BYTES
    for at in ranked:
        size = _column_bytes(columns[at])
        if size <= bytes_left or at == first:
            kept.add(at)
            bytes_left -= size
    names = tuple(column.name for at, column in enumerate(columns) if at not in kept)
    return tuple(column for at, column in enumerate(columns) if at in kept), names


def _column_bytes(column: Column) -> int:
    if column.numbers is not None:
        return len(column.numbers) * 16 // 3
    n = 0 if column.codes is None else len(column.codes)
    width = _narrow(np.zeros(0), most=len(column.values) + 1).itemsize
    return n * width * 4 // 3 + sum(len(value.encode("utf-8", "replace")) + 3 for value in column.values)


def _text_of(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text_of(inner)}" for name, inner in value.items()) or "none"
    return str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")

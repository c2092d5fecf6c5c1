"""A map of one feature set as a page: canvas, search, neighbours and sound in one file that asks for nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore import __version__
from featstore.errors import LabelError
from featstore.explore.columns import Column, columns_of, default_colour
from featstore.explore.points import Points, nearest_points
from featstore.explore.projection import Projection, pca, umap
from featstore.report.templating import as_data, environment, writable

if TYPE_CHECKING:
    from featstore.explore.audio import ClipAudio

__all__ = ["NEIGHBOURS", "Explorer", "explore", "render_map"]

NEIGHBOURS = 8
MAX_COLUMN_BYTES = 3_000_000
"""Of all columns together, as they stand in the page: those that come last are left out of it."""


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
    left_out : tuple of str
        Columns that did not fit.
    """

    points: Points
    keys: tuple[str, ...]
    projection: Projection
    columns: tuple[Column, ...]
    colour: int
    near_rows: NDArray[np.int64]
    near_cosines: NDArray[np.float32]
    left_out: tuple[str, ...]

    @property
    def groups(self) -> list[int]:
        """Class of each point by the colour of the map; all of one where that is a number."""
        codes = self.columns[self.colour].codes if self.colour >= 0 else None
        return [0] * len(self.points) if codes is None else codes.tolist()


def explore(points: Points, *, method: Literal["pca", "umap"] = "pca", colour: str | None = None) -> Explorer:
    """Lay a feature set's clips out and find the neighbours of each.

    Parameters
    ----------
    colour : str, optional
        Field that colours the map at first; the label of the dataset's task, or the likeliest, where it is not given.

    Raises
    ------
    LabelError
        No clip has that field.
    UsageError
        umap-learn is asked for and not installed.
    """
    place = pca if method == "pca" else umap
    projection = place(points.vectors)
    found = (*columns_of(points.keys, points.metas), *_own_columns(points))
    names = [column.name for column in found]
    if colour is not None and colour not in names:
        raise LabelError(f"no clip of {points.fs.path} has a field {colour!r} to colour by: there are {_listed(names)}")
    first = default_colour(found, label=_label_field(points)) if colour is None else names.index(colour)
    kept, left_out = _those_that_fit(found, first)
    near = nearest_points(points.vectors, k=NEIGHBOURS)
    return Explorer(
        points=points,
        keys=tuple(points.keys),
        projection=projection,
        columns=kept,
        colour=next((at for at, column in enumerate(kept) if first >= 0 and column is found[first]), -1),
        near_rows=near.rows,
        near_cosines=near.similarities,
        left_out=left_out,
    )


def render_map(
    explorer: Explorer,
    *,
    audio: Mapping[int, str] | ClipAudio | None = None,
    title: str | None = None,
    made_at: datetime | None = None,
) -> str:
    """Write the page.

    Parameters
    ----------
    audio : mapping or ClipAudio, optional
        Point -> data URI; or that every clip is to be had at ``audio/<its number in the feature set>``.

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
        left_out=explorer.left_out,
        recipe=[(name.replace("_", " "), _told(value)) for name, value in fs.recipe.as_json().items()],
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
    """Sixteen bits for each coordinate, between the least and the largest of its axis."""
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
    """Values from 0 to `most` - 1 in as few bytes as hold them: one, two or four."""
    return values.astype("<u1" if most <= 1 << 8 else "<u2" if most <= 1 << 16 else "<u4")


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _own_columns(points: Points) -> tuple[Column, ...]:
    """What a feature set itself says of its clips."""
    shards = points.shards
    names = tuple(dict.fromkeys(shards))
    codes = {name: code for code, name in enumerate(names)}
    return (
        Column(name="(seconds)", kind="number", numbers=points.seconds),
        Column(name="(shard)", kind="class", values=names, codes=np.array([codes[name] for name in shards], np.int64)),
    )


def _label_field(points: Points) -> str | None:
    """Field that a built-in task of the dataset takes its classes from."""
    from featstore.manifest import builtin_tasks

    of_dataset = [task.label.field for task in builtin_tasks() if task.feature_dataset == points.fs.dataset]
    return next((field for field in of_dataset if isinstance(field, str)), None)


def _those_that_fit(columns: Sequence[Column], first: int) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Columns that fit into a page, in their order, and names of those that do not: colours go before mere text."""
    ranked = sorted(
        range(len(columns)), key=lambda at: (at != first, columns[at].kind == "text", len(columns[at].values) > 100, at)
    )
    kept, room = set(), MAX_COLUMN_BYTES
    for at in ranked:
        size = _column_bytes(columns[at])
        if size <= room or at == first:
            kept.add(at)
            room -= size
    names = tuple(column.name for at, column in enumerate(columns) if at not in kept)
    return tuple(column for at, column in enumerate(columns) if at in kept), names


def _column_bytes(column: Column) -> int:
    if column.numbers is not None:
        return len(column.numbers) * 16 // 3
    n = 0 if column.codes is None else len(column.codes)
    width = _narrow(np.zeros(0), most=len(column.values) + 1).itemsize
    return n * width * 4 // 3 + sum(len(value.encode("utf-8", "replace")) + 3 for value in column.values)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_told(inner)}" for name, inner in value.items()) or "none"
    return str(value)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")

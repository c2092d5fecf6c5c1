"""The map of a feature set, or of two of the same clips side by side, as a self-contained page."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore import __version__
from featstore.errors import LabelError
from featstore.explore.columns import Column, columns_of, default_colour
from featstore.explore.map import Points, Projection, frame, nearest_points, pca, umap
from featstore.report.templating import as_data, environment, writable

if TYPE_CHECKING:
    from featstore.explore.audio import ClipAudio

__all__ = ["NEIGHBOURS", "Explorer", "Space", "explore", "render_map"]


NEIGHBOURS = 8
MAX_COLUMN_BYTES = 3_000_000
"""Size limit of all columns in the page; the last ones that exceed it are omitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One map: the clips in the space of one encoder.

    Attributes
    ----------
    near_rows : int64 (n, k)
        Nearest points of each, nearest first.
    near_cosines : float32 (n, k)
    """

    points: Points
    projection: Projection
    near_rows: NDArray[np.int64]
    near_cosines: NDArray[np.float32]

    @property
    def name(self) -> str:
        """Name of the encoder in the store."""
        return self.points.fs.recipe.group_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Explorer:
    """All that a page shows, before it is written down.

    Attributes
    ----------
    spaces : tuple of Space
        One, or two with the same clips.
    columns : tuple of Column
        Fields of the clips as the first feature set has them.
    colour : int
        Column that colours the maps at first, or -1.
    omitted : tuple of str
        Columns that did not fit.
    """

    spaces: tuple[Space, ...]
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    colour: int
    omitted: tuple[str, ...]

    @property
    def points(self) -> Points:
        """Clips of the first space."""
        return self.spaces[0].points

    @property
    def names(self) -> tuple[str, ...]:
        """Short name of each encoder; with the fingerprint if both have the same."""
        names = tuple(space.points.fs.encoder for space in self.spaces)
        return names if len(set(names)) == len(names) else tuple(space.name for space in self.spaces)

    @property
    def groups(self) -> list[int]:
        """Class of each point by the colour column; one class for all if that column holds numbers."""
        codes = self.columns[self.colour].codes if self.colour >= 0 else None
        return [0] * len(self.points) if codes is None else codes.tolist()


def explore(
    points: Points, beside: Points | None = None, *, method: Literal["pca", "umap"] = "pca", colour: str | None = None
) -> Explorer:
    """Project the clips of a feature set, or of two, and find the neighbours of each.

    Parameters
    ----------
    beside : Points, optional
        The same clips in the space of another encoder, see `take_common_points`.
    colour : str, optional
        Field that colours the maps. The default is the label of the task of the dataset, see `default_colour`.

    Raises
    ------
    LabelError
        No clip has that field.
    UsageError
        `method` is ``umap``, and umap-learn is not installed.
    """
    found = (*columns_of(points.keys, points.metas), *_own_columns(points))
    if colour is None:
        first = default_colour(found, label=_label_field(points))
    else:
        # checked before the projection, which may take minutes
        names = [column.name for column in found] + ([SHARED] if beside else [])
        if colour not in names:
            raise LabelError(f"no clip of {points.fs.path} has a field {colour!r}; the fields are {_listed(names)}")
        first = names.index(colour)
    spaces = tuple(_space(each, pca if method == "pca" else umap) for each in (points, beside) if each is not None)
    if beside is not None:
        near_a, near_b = (space.near_rows for space in spaces)
        shared = (near_a[:, :, None] == near_b[:, None, :]).any(axis=2).sum(axis=1)
        found = (*found, Column(name=SHARED, kind="number", numbers=shared.astype(np.float64)))
    kept, omitted = _fitting_columns(found, first)
    return Explorer(
        spaces=spaces,
        keys=tuple(points.keys),
        columns=kept,
        colour=next((at for at, column in enumerate(kept) if first >= 0 and column is found[first]), -1),
        omitted=omitted,
    )


SHARED = "(shared neighbours)"
"""Column of two spaces: how many of the nearest clips of a clip both have."""


def _space(points: Points, project: Callable[[NDArray[np.float32]], Projection]) -> Space:
    near = nearest_points(points.vectors, k=NEIGHBOURS)
    return Space(points=points, projection=project(points.vectors), near_rows=near.rows, near_cosines=near.similarities)


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
    fs = explorer.points.fs
    served = audio is not None and not isinstance(audio, Mapping)
    page = templates.get_template("explore.html.j2").render(
        title=title or f"{fs.dataset}/{fs.split}",
        version=__version__,
        made_at=(made_at or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        media="'self'" if served else "data:" if audio else "",
        data=as_data(_data(explorer, audio)),
        spaces=tuple(zip(explorer.names, explorer.spaces, strict=True)),
        n_points=len(explorer.points),
        k=explorer.spaces[0].near_rows.shape[1],
        n_sounds=len(explorer.points) if served else len(audio) if isinstance(audio, Mapping) else 0,
        # an imported feature set has no shards to read sounds from
        command=None if fs.recipe.imported_from is not None else _command(explorer),
        omitted=explorer.omitted,
        recipes=[
            [(name.replace("_", " "), _text_of(value)) for name, value in space.points.fs.recipe.as_json().items()]
            for space in explorer.spaces
        ],
    )
    return writable(page)


def _command(explorer: Explorer) -> str:
    """The command that makes this map, without its options; a store is not named, as its address may be private."""
    other = [space.name for space in explorer.spaces[1:]]
    return shlex.join(["featstore", "explore", explorer.points.fs.path, *other]) + " --store STORE --data DIR"


def _data(explorer: Explorer, audio: Mapping[int, str] | ClipAudio | None) -> dict[str, Any]:
    fs = explorer.points.fs
    return {
        "n": len(explorer.points),
        "of": f"{fs.dataset}/{fs.split}",
        "keys": explorer.keys,
        "k": explorer.spaces[0].near_rows.shape[1],
        "maps": [_space_data(name, space) for name, space in zip(explorer.names, explorer.spaces, strict=True)],
        "columns": [_column_data(column) for column in explorer.columns],
        "colour": explorer.colour,
        **_audio_data(explorer.points, audio),
    }


def _space_data(name: str, space: Space) -> dict[str, Any]:
    low, high = frame(space.projection.xy)
    return {
        "name": name,
        "xy": _base64(space.projection.xy.astype("<f4")),
        "low": low.tolist(),
        "high": high.tolist(),
        "near": _base64(_narrow(space.near_rows, most=len(space.points))),
        "cosines": _base64(np.rint((space.near_cosines.clip(-1, 1) + 1) / 2 * 65_535).astype("<u2")),
    }


def _audio_data(points: Points, audio: Mapping[int, str] | ClipAudio | None) -> dict[str, Any]:
    if audio is None:
        return {"audio": "none"}
    if isinstance(audio, Mapping):
        return {"audio": "embedded", "sounds": {str(at): uri for at, uri in audio.items()}}
    return {"audio": "served", "numbers": _base64(points.numbers.astype("<u4"))}


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

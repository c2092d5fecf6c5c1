"""Windows of a feature set as runs in its parts; a part's arrays are opened when they are first read.

All objects can be pickled: the pickle contains the locations of the files, and the receiver maps them again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DamagedPart
from featstore.records import Recipe
from featstore.store.arrays import Rows, open_remote_rows, open_rows
from featstore.store.cache import CachedPart, fetch_array
from featstore.store.codecs import decode_strings
from featstore.store.documents import damaged, missing_object
from featstore.store.filesystem import Objects
from featstore.store.format import GROUP_DOCUMENT, Commit

if TYPE_CHECKING:
    from featstore.store.catalogue import SplitEntry

__all__ = ["Part", "Run", "WindowRows", "fetch_ahead", "runs_of"]


class Part:
    """Arrays of one part, opened on first use."""

    def __init__(self, objects: Objects, path: str, commit: Commit, recipe: Recipe) -> None:
        self.path = path
        self._objects = objects
        self._windows = commit.windows
        self._frames = commit.frames
        self._recipe = recipe
        self._opened: dict[str, Rows] = {}
        self.copy = CachedPart(objects, path, commit) if objects.root is None else None

    def rows(self, name: str) -> Rows:
        """Open a numeric array. Arrays of a remote part are cached, except frames, which are read by range."""
        if name not in self._opened:
            rows, (shape, dtype) = self._open(name), self._expected_form(name)
            if (rows.shape, rows.dtype.name) != (shape, dtype):
                raise self.damaged(name, f"it is {rows.dtype} {rows.shape} instead of {dtype} {shape}")
            self._opened[name] = rows
        return self._opened[name]

    def _expected_form(self, name: str) -> tuple[tuple[int, ...], str]:
        """Expected shape and type of an array."""
        windows = self._windows
        if name == "utterance":
            return (windows, self._recipe.dim), "float32"
        if name == "frames":
            return (self._frames, self._recipe.dim), self._recipe.frame_dtype
        return ((windows + 1,), "int64") if name == "frame_offsets" else ((windows,), "float64")

    def damaged(self, name: str, problem: str) -> DamagedPart:
        """Return the error for a damaged array."""
        return damaged(self._objects.url, f"{self.path}/{name}", f"is damaged: {problem}")

    def _open(self, name: str) -> Rows:
        if self.copy is None:
            return open_rows(self._objects, f"{self.path}/{name}")
        self.copy.fetch(name)
        if name != "frames":
            return open_rows(self.copy.local, name)
        sizes = {key: entry.size for key, entry in self.copy.commit.objects.items()}
        document = self.copy.local.read(f"{name}/{GROUP_DOCUMENT}")
        return open_remote_rows(
            self._objects, f"{self.path}/{name}", document, lambda key: sizes.get(f"{name}/{key}", 0)
        )

    def strings(self, name: str) -> NDArray[np.object_]:
        """Read an array of strings, object (windows,)."""
        if not self._windows:
            return np.empty(0, dtype=object)
        path = f"{self.path}/{name}"
        if self.copy is None:
            chunk = self._objects.read(f"{path}/c/0")
        else:
            self.copy.fetch(name)
            chunk = self.copy.local.read(f"{name}/c/0")
        if chunk is None:
            raise missing_object(f"{self._objects.url}/{path}")
        try:
            return decode_strings(chunk, n=self._windows)
        except ValueError as error:
            raise self.damaged(name, str(error)) from error


@dataclass(frozen=True, slots=True)
class Run:
    """Windows [start, stop) of one part."""

    part: Part
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def runs_of(objects: Objects, entry: SplitEntry) -> tuple[Run, ...]:
    """Return the windows of a feature set as runs; adjacent shards in one part share a run."""
    parts: dict[str, Part] = {}
    runs: list[Run] = []
    for home, segment in entry.placed_segments:
        path = f"{home}/{segment.commit.part}"
        if path not in parts:
            parts[path] = Part(objects, path, segment.commit, entry.address.recipe)
        part = parts[path]
        stop = segment.start + segment.member.windows
        if runs and runs[-1].part is part and runs[-1].stop == segment.start:
            runs[-1] = Run(part, runs[-1].start, stop)
        else:
            runs.append(Run(part, segment.start, stop))
    return tuple(runs)


def fetch_ahead(runs: Sequence[Run], array: str) -> None:
    """Cache an array of all parts of a remote store in parallel, before it is read part by part."""
    copies = {id(run.part): run.part.copy for run in runs}
    if wanted := [copy for copy in copies.values() if copy is not None]:
        fetch_array(wanted, array)


class WindowRows:
    """An array with one row per window of a feature set, read from its parts."""

    def __init__(self, runs: Sequence[Run], name: str) -> None:
        self._runs = tuple(runs)
        self._name = name
        self._firsts = [0, *accumulate(len(run) for run in runs)]

    def __len__(self) -> int:
        return self._firsts[-1]

    def slice(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop): a read-only view if they are in one block of a file, else a copy."""
        number = bisect_right(self._firsts, start) - 1
        if number < len(self._runs) and stop <= self._firsts[number + 1]:
            run = self._runs[number]
            offset = run.start - self._firsts[number]
            return run.part.rows(self._name).slice(start + offset, stop + offset)
        self._require(start, stop)
        out = self._empty(stop - start)
        while start < stop:
            number = bisect_right(self._firsts, start) - 1
            first, until = self._firsts[number], min(stop, self._firsts[number + 1])
            run, done = self._runs[number], len(out) - (stop - start)
            run.part.rows(self._name).read_into(out[done : done + until - start], start=run.start + start - first)
            start = until
        return out

    def _require(self, start: int, stop: int) -> None:
        """Check the file sizes of the parts with rows [start, stop), before memory is allocated."""
        for number in range(bisect_right(self._firsts, start) - 1, len(self._runs)):
            first, run = self._firsts[number], self._runs[number]
            if first >= stop:
                return
            offset = run.start - first
            at, until = max(start, first) + offset, min(stop, first + len(run)) + offset
            run.part.rows(self._name).require(at, until)

    def texts(self, positions: Sequence[int]) -> list[str]:
        """Return entries of an array of strings; only parts with these entries are read, once each."""
        if wrong := [position for position in positions if not 0 <= position < len(self)]:
            raise IndexError(f"there are {len(self)} windows, numbered from 0: got {wrong[0]}")
        runs = [bisect_right(self._firsts, position) - 1 for position in positions]
        read = {number: self._runs[number].part.strings(self._name) for number in set(runs)}
        return [
            str(read[number][self._runs[number].start + position - self._firsts[number]])
            for number, position in zip(runs, positions, strict=True)
        ]

    def take(self, positions: Sequence[int]) -> NDArray[Any]:
        """Return a copy of the rows at `positions`, which must be in range."""
        out = self._empty(len(positions))
        for at, position in enumerate(positions):
            out[at] = self.slice(position, position + 1)[0]
        return out

    def _empty(self, n: int) -> NDArray[Any]:
        rows = self._runs[0].part.rows(self._name)
        return np.empty((n, *rows.shape[1:]), rows.dtype)

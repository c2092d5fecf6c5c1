"""Reading a store: `Store`, a table of feature sets, and `FeatureSet`, one of them as NumPy arrays."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, DamagedPart, LabelError, UnknownFeatureSet
from featstore.records import Recipe, SkippedClip, sha256_of
from featstore.store.catalogue import SplitEntry, check_root, read_splits
from featstore.store.codecs import decode_strings
from featstore.store.objects import Objects, open_objects
from featstore.store.rows import Rows, open_rows

if TYPE_CHECKING:
    from featstore.store.format import Segment

__all__ = ["FeatureSet", "Frames", "Store", "open_store"]

_T = TypeVar("_T")


def open_store(url: str) -> Store:
    """Open the store at `url` for reading.

    Raises
    ------
    StoreNotFound
        There is none.
    StoreVersionError
        A newer featstore wrote it.
    StoreError
        It is not a store of featstore.
    """
    objects = open_objects(url)
    check_root(objects)
    return Store(objects)


class Store:
    """What a store holds at the moment it was opened."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._objects.url

    @cached_property
    def _entries(self) -> tuple[SplitEntry, ...]:
        return tuple(read_splits(self._objects))

    def feature_sets(self) -> tuple[FeatureSet, ...]:
        """Every feature set, in order of encoder, dataset and split."""
        return tuple(FeatureSet(self._objects, entry) for entry in self._entries)

    def encoders(self) -> tuple[Recipe, ...]:
        """Every recipe that the store has feature sets of."""
        return tuple({entry.address.recipe.group_name: entry.address.recipe for entry in self._entries}.values())

    def resolve_encoder(self, name: str | None) -> Recipe:
        """The one recipe that `name` means: ``logmel``, ``logmel@3f9c2a71``, or None where the store has only one.

        Raises
        ------
        UnknownFeatureSet
            The store has none of that name.
        AmbiguousSelection
            It has several.
        """
        found = [recipe for recipe in self.encoders() if _names(name, recipe)]
        what = f"encoder {name!r}" if name else "encoder"
        return _only_one(found, what=what, url=self.url, name=lambda recipe: recipe.group_name)

    def select(self, *, encoder: str | None = None, dataset: str | None = None, split: str | None = None) -> FeatureSet:
        """The one feature set that matches.

        Parameters
        ----------
        encoder : str, optional
            ``"logmel"`` or, where a store has that encoder under several recipes, ``"logmel@3f9c2a71"``.
        dataset : str, optional
            ``"words"``, or ``"words+crop5s"`` for windows of five seconds.
        split : str, optional
            A split or a fold.

        Raises
        ------
        UnknownFeatureSet
            Nothing matches.
        AmbiguousSelection
            Several feature sets match.
        """
        found = [
            entry
            for entry in self._entries
            if _names(encoder, entry.address.recipe)
            and dataset in (None, entry.dataset_group)
            and split in (None, entry.address.split)
        ]
        asked = ", ".join(
            f"{key}={value!r}" for key, value in (("encoder", encoder), ("dataset", dataset), ("split", split)) if value
        )
        what = f"feature set with {asked}" if asked else "feature set"
        return FeatureSet(self._objects, _only_one(found, what=what, url=self.url, name=lambda entry: entry.path))

    def __repr__(self) -> str:
        rows = [("encoder", "dataset", "split", "clips", "windows", "dim", "frames", "hours")]
        for entry in self._entries:
            recipe = entry.address.recipe
            numbers = (f"{entry.clips:,}", f"{entry.windows:,}", str(recipe.dim))
            frames = f"{entry.frames:,}" if entry.has_frames else "-"
            hours = f"{entry.audio_seconds / 3600:.2f}"
            rows.append((recipe.group_name, entry.dataset_group, entry.address.split, *numbers, frames, hours))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        texts = 3  # the first three columns are words, the others are numbers
        pads = [str.ljust] * texts + [str.rjust] * (len(widths) - texts)
        lines = ("  ".join(pad(cell, w) for pad, cell, w in zip(pads, row, widths, strict=True)) for row in rows)
        count = len(self._entries)
        title = f"featstore.Store({self.url!r}): {count} feature set{'' if count == 1 else 's'}"
        return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)] if count else [title])


class FeatureSet:
    """The embeddings of one dataset split under one recipe, as arrays over its windows.

    A feature set is a snapshot: it goes on showing the parts that counted when the store was opened.
    """

    def __init__(self, objects: Objects, entry: SplitEntry) -> None:
        self._objects = objects
        self._entry = entry
        self._runs = _runs(objects, entry)

    @property
    def recipe(self) -> Recipe:
        """Everything that decided the numbers."""
        return self._entry.address.recipe

    @property
    def encoder(self) -> str:
        """Short name of the encoder."""
        return self.recipe.encoder

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the recipe."""
        return self.recipe.fingerprint

    @property
    def dataset(self) -> str:
        """The dataset's name in the store; a crop is part of it."""
        return self._entry.dataset_group

    @property
    def split(self) -> str:
        """Name of the split or fold."""
        return self._entry.address.split

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.recipe.hop_seconds

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What counts for each shard, with its commit record, in order of shard name."""
        return self._entry.segments

    @property
    def path(self) -> str:
        """Path of its group in the store."""
        return self._entry.path

    def __len__(self) -> int:
        return self._entry.windows

    @cached_property
    def key(self) -> NDArray[np.object_]:
        """Key of each window, object (windows,): ``clip``, and ``clip#2`` for a clip's second window."""
        return self._strings("key")

    @cached_property
    def meta(self) -> NDArray[np.object_]:
        """JSON text of each window's clip as it stood in the shard, object (windows,)."""
        return self._strings("meta")

    @cached_property
    def start_seconds(self) -> NDArray[np.float64]:
        """Where each window begins in its clip, float64 (windows,)."""
        return self._numbers("start_seconds")

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """True duration of each window without its padding, float64 (windows,)."""
        return self._numbers("seconds")

    @cached_property
    def utterance(self) -> NDArray[np.float32]:
        """Utterance vectors, float32 (windows, dim); of a set of one part, a read-only view of the file."""
        return self._numbers("utterance")

    @cached_property
    def clip(self) -> NDArray[np.int64]:
        """Index of each window's clip, int64 (windows,): 0 to `n_clips` - 1, in the order of the store."""
        return np.cumsum(self.start_seconds == 0.0, dtype=np.int64) - 1

    @cached_property
    def clip_key(self) -> NDArray[np.object_]:
        """Key of each clip, object (clips,)."""
        keys: NDArray[np.object_] = self.key[self.start_seconds == 0.0]
        return keys

    @property
    def n_clips(self) -> int:
        """How many clips the windows are of."""
        return self._entry.clips

    @property
    def skipped(self) -> tuple[SkippedClip, ...]:
        """Clips that were left out, each with its reason."""
        return tuple(clip for segment in self.segments for clip in segment.member.skipped)

    @property
    def has_frames(self) -> bool:
        """Whether frames were stored."""
        return self._entry.has_frames

    @cached_property
    def frames(self) -> Frames:
        """Frames of each window: ``fs.frames[i]`` is (T, dim), of the stored type.

        Raises
        ------
        UnknownFeatureSet
            Frames were not stored.
        """
        if not self.has_frames:
            raise UnknownFeatureSet(
                f"{self.path} holds utterance vectors only: extract it again with `--frames always` for its frames"
            )
        return Frames(self._runs)

    @cached_property
    def content_hash(self) -> str:
        """Sixteen hexadecimal digits of what the set was made from: shards' contents and recipe."""
        made_from = [
            (segment.member.shard.name, segment.member.shard.sha256, segment.member.windows, segment.member.frames)
            for segment in self.segments
        ]
        return sha256_of([self.fingerprint, made_from])[:16]

    def xy(self, field: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Utterance vectors and one field of the clips' JSON, ready for scikit-learn.

        Parameters
        ----------
        field : str
            Key in the JSON; dots reach into objects: ``"speaker.gender"``.

        Returns
        -------
        X : float32 (windows, dim)
        y : (windows,)
            NumPy's own type for the values found.

        Raises
        ------
        LabelError
            A clip's JSON has no such field.
        """
        labelled = zip(self.key, self.meta, strict=True)
        return self.utterance, np.asarray([_field(str(meta), field, str(key)) for key, meta in labelled])

    def _strings(self, name: str) -> NDArray[np.object_]:
        pieces = [run.part.strings(name)[run.start : run.stop] for run in self._runs]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _numbers(self, name: str) -> NDArray[Any]:
        rows = [run.part.rows(name) for run in self._runs]
        if len(rows) == 1:
            return rows[0].slice(self._runs[0].start, self._runs[0].stop)
        out = np.empty((len(self), *rows[0].shape[1:]), rows[0].dtype)
        done = 0
        for run, source in zip(self._runs, rows, strict=True):
            source.read_into(out[done : done + run.stop - run.start], start=run.start)
            done += run.stop - run.start
        return out

    def __repr__(self) -> str:
        frames = "frames" if self.has_frames else "no frames"
        skipped = f", {len(self.skipped)} left out" if self.skipped else ""
        return (
            f"featstore.FeatureSet({self.path!r}: {self.n_clips:,} clips, {len(self):,} windows, "
            f"utterance float32 ({len(self):,}, {self.recipe.dim}), {frames}{skipped})"
        )


class Frames(Sequence[NDArray[Any]]):
    """Frames by window: a sequence of read-only arrays (T, dim).

    A window whose frames lie in one block of the file is a view of it; one that straddles two is copied.
    """

    def __init__(self, runs: Sequence[_Run]) -> None:
        self._rows = [run.part.rows("frames") for run in runs]
        self._offsets = [run.part.rows("frame_offsets").slice(run.start, run.stop + 1).tolist() for run in runs]
        self._firsts = [0, *accumulate(run.stop - run.start for run in runs)]

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[Any]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | list[NDArray[Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = int(index)
        if at < 0:
            at += self._firsts[-1]
        if not 0 <= at < self._firsts[-1]:
            raise IndexError(f"there are {len(self)} windows: got index {index}")
        part = bisect_right(self._firsts, at) - 1
        offsets = self._offsets[part]
        at -= self._firsts[part]
        return self._rows[part].slice(offsets[at], offsets[at + 1])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Frames of each window, int64 (windows,)."""
        pieces = [np.diff(np.asarray(offsets, np.int64)) for offsets in self._offsets]
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)

    def __repr__(self) -> str:
        return f"Frames({len(self):,} windows, {int(self.lengths.sum()):,} frames)"


class _Part:
    """Arrays of one part, opened when they are first asked for."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._path = path
        self._opened: dict[str, Rows] = {}

    def rows(self, name: str) -> Rows:
        if name not in self._opened:
            self._opened[name] = open_rows(self._objects, f"{self._path}/{name}")
        return self._opened[name]

    def strings(self, name: str) -> NDArray[np.object_]:
        path = f"{self._path}/{name}"
        chunk = self._objects.read(f"{path}/c/0")
        if chunk is None:
            return np.empty(0, dtype=object)
        try:
            return decode_strings(chunk)
        except ValueError as error:
            raise DamagedPart(
                f"{self._objects.url}/{path} is damaged: {error}; "
                f"`featstore verify --store {self._objects.url} --repair` drops the part"
            ) from error


@dataclass(frozen=True, slots=True)
class _Run:
    """Windows [start, stop) of one part."""

    part: _Part
    start: int
    stop: int


def _runs(objects: Objects, entry: SplitEntry) -> tuple[_Run, ...]:
    """The rows of a feature set, shards that follow each other in one part taken together."""
    parts: dict[str, _Part] = {}
    runs: list[_Run] = []
    for segment in entry.segments:
        name = segment.commit.part
        part = parts.setdefault(name, _Part(objects, f"{entry.path}/{name}"))
        stop = segment.start + segment.member.windows
        if runs and runs[-1].part is part and runs[-1].stop == segment.start:
            runs[-1] = _Run(part, runs[-1].start, stop)
        else:
            runs.append(_Run(part, segment.start, stop))
    return tuple(runs)


def _names(asked: str | None, recipe: Recipe) -> bool:
    return asked is None or asked in (recipe.encoder, recipe.group_name)


def _only_one(found: Sequence[_T], *, what: str, url: str, name: Callable[[_T], str]) -> _T:
    if not found:
        raise UnknownFeatureSet(f"{url} holds no {what}: `featstore inspect --store {url}` shows what is there")
    if len(found) > 1:
        listed = ", ".join(map(name, found[:6])) + (", ..." if len(found) > 6 else "")
        raise AmbiguousSelection(f"{url} holds more than one {what}: say which of {listed}")
    return found[0]


def _field(meta: str, field: str, key: str) -> Any:
    value = json.loads(meta)
    for name in field.split("."):
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(sorted(value)) if isinstance(value, dict) else type(value).__name__
            raise LabelError(f"clip {key!r} has no field {field!r} in its JSON, which has: {known}")
        value = value[name]
    return value

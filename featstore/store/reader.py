"""Reading a store: `Store`, a table of feature sets, and `FeatureSet`, one of them as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, LabelError, UnknownFeatureSet
from featstore.records import Recipe, SkippedClip, sha256_of
from featstore.store.catalogue import SplitEntry, check_root, read_commits, read_split, split_paths
from featstore.store.fields import encode_labels, field_values
from featstore.store.frames import Frames
from featstore.store.objects import Objects, open_objects
from featstore.store.runs import WindowRows, fetch_ahead, runs_of
from featstore.store.views import html_table, text_table, utterance_as_dask, utterance_as_xarray

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from xarray import DataArray

    from featstore.store.documents import SplitAddress
    from featstore.store.format import Commit, Segment
    from featstore.store.torch_view import FrameBatch, UtteranceBatch, WindowDataset

__all__ = ["FeatureSet", "FeatureSets", "Store", "open_store"]

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
        self._read: dict[str, SplitEntry | None] = {}

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._objects.url

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return tuple(split_paths(self._objects))

    @property
    def _entries(self) -> tuple[SplitEntry, ...]:
        return self._entries_at(self._paths)

    def _entries_at(self, paths: Iterable[str]) -> tuple[SplitEntry, ...]:
        """Feature sets at paths, each read when it is first asked for: a server is asked of what is wanted alone."""
        for path in paths:
            if path not in self._read:
                self._read[path] = read_split(self._objects, path)
        return tuple(entry for path in paths if (entry := self._read[path]) is not None)

    def feature_sets(self) -> FeatureSets:
        """Every feature set, in order of encoder, dataset and split: a tuple that shows itself as a table."""
        return FeatureSets(FeatureSet(self._objects, entry) for entry in self._entries)

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
        groups: dict[str, list[str]] = {}
        for path in self._paths:
            if _is_at(path, name, None, None):
                groups.setdefault(path.partition("/")[0], []).append(path)
        firsts = (
            next((entry for path in paths for entry in self._entries_at([path])), None) for paths in groups.values()
        )
        found = [first.address.recipe for first in firsts if first is not None and _names(name, first.address.recipe)]
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
        named = [path for path in self._paths if _is_at(path, encoder, dataset, split)]
        found = [
            entry
            for entry in self._entries_at(named)
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
        return f"{self._title()}\n{self.feature_sets()!r}"

    def _repr_html_(self) -> str:
        return html_table(TABLE_HEADER, [_table_row(fs) for fs in self.feature_sets()], caption=self._title())

    def _title(self) -> str:
        count = len(self._entries)
        return f"featstore.Store({self.url!r}): {count} feature set{'' if count == 1 else 's'}"


class FeatureSet:
    """The embeddings of one dataset split under one recipe, as arrays over its windows.

    A feature set is a snapshot: it goes on showing the parts that counted when the store was opened.
    """

    def __init__(self, objects: Objects, entry: SplitEntry) -> None:
        self._objects = objects
        self._entry = entry
        self._runs = runs_of(objects, entry)

    def __reduce__(self) -> tuple[type[FeatureSet], tuple[Objects, SplitEntry]]:
        return FeatureSet, (self._objects, self._entry)

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
    def address(self) -> SplitAddress:
        """What the documents above its parts say: how its encoder was named, its dataset's folder, its crop."""
        return self._entry.address

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.recipe.hop_seconds

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What counts for each shard, with its commit record, in order of shard name."""
        return self._entry.segments

    def commits(self) -> tuple[Commit, ...]:
        """The commit record of each part, whole: with the size and checksum of every object, read from the part."""
        records = {segment.commit.part: segment.commit for segment in self.segments}
        bare = [part for part, commit in records.items() if not commit.objects]
        whole = dict(zip(bare, read_commits(self._objects, self.path, bare), strict=True))
        return tuple(whole.get(part) or commit for part, commit in records.items())

    @property
    def store_url(self) -> str:
        """Where its store is."""
        return self._objects.url

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

    def metas_of(self, windows: Sequence[int]) -> list[str]:
        """The same of a few windows, where parts that hold none of them are not read."""
        return WindowRows(self._runs, "meta").texts(windows)

    @cached_property
    def start_seconds(self) -> NDArray[np.float64]:
        """Where each window begins in its clip, float64 (windows,)."""
        return self._rows("start_seconds").slice(0, len(self))

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """True duration of each window without its padding, float64 (windows,)."""
        return self._rows("seconds").slice(0, len(self))

    @cached_property
    def utterance(self) -> NDArray[np.float32]:
        """Utterance vectors, float32 (windows, dim); of a set of one part, a read-only view of the file."""
        return self.utterance_rows.slice(0, len(self))

    @cached_property
    def utterance_rows(self) -> WindowRows:
        """The same read piece by piece where it lies, for a set larger than memory: ``.slice(start, stop)``."""
        return self._rows("utterance")

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
    def n_parts(self) -> int:
        """How many parts its windows lie in."""
        return len({segment.commit.part for segment in self.segments})

    @property
    def n_frames(self) -> int:
        """Frames of all windows, stored or not."""
        return self._entry.frames

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio."""
        return self._entry.audio_seconds

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
        """Frames of each window: ``fs.frames[i]`` is (T, dim), ``fs.frames[[3, 1, 2]]`` a padded batch; see `Frames`.

        Raises
        ------
        UnknownFeatureSet
            Frames were not stored.
        """
        if not self.has_frames:
            raise UnknownFeatureSet(
                f"{self.path} holds utterance vectors only: extract it again with `--frames always` for its frames"
            )
        fetch_ahead(self._runs, "frame_offsets")
        fetch_ahead(self._runs, "frames")
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
            A clip's JSON has no such field, or the values of different clips make no array.
        """
        values = field_values(self.key, self.meta, field)
        try:
            return self.utterance, np.asarray(values)
        except ValueError as error:
            raise LabelError(f"{field!r} of {self.path} makes no array: its lists differ in length") from error

    @overload
    def as_dataset(
        self, label: str, *, frames: Literal[False] = False, classes: Sequence[Any] | None = None
    ) -> WindowDataset[UtteranceBatch]: ...
    @overload
    def as_dataset(
        self, label: str, *, frames: Literal[True], classes: Sequence[Any] | None = None
    ) -> WindowDataset[FrameBatch]: ...
    def as_dataset(
        self, label: str, *, frames: bool = False, classes: Sequence[Any] | None = None
    ) -> WindowDataset[UtteranceBatch] | WindowDataset[FrameBatch]:
        """A map-style torch Dataset over the windows, which all workers of a DataLoader read through one map.

        Reading takes no worker: without any, batches come at the speed of memory, and a worker must send them on. Let
        workers do what comes after it, where that is slow.

        Parameters
        ----------
        label : str
            Field of the clips' JSON. Text becomes codes of classes, numbers stay numbers. Windows of one clip share
            its label.
        frames : bool
            Items are frames (T, dim) of the stored type instead of utterance vectors (dim,).
        classes : sequence, optional
            What the codes stand for: give a test set the ``classes`` of its training set.

        Returns
        -------
        dataset
            With ``classes``, and ``collate`` for ``DataLoader(dataset, batch_size=32, collate_fn=dataset.collate)``.

        Raises
        ------
        LabelError
            A clip has no such label, or one that is none of `classes`.
        UnknownFeatureSet
            Frames were not stored.
        """
        from featstore.store.torch_view import frame_dataset, utterance_dataset

        labels = encode_labels(self.key.tolist(), self.meta.tolist(), label, classes=classes)
        return frame_dataset(self.frames, labels) if frames else utterance_dataset(self.utterance_rows, labels)

    def to_xarray(self) -> DataArray:
        """Utterance vectors as a DataArray (window, feature) with coordinates key, start_seconds and seconds.

        Raises
        ------
        UsageError
            xarray is not installed.
        """
        return utterance_as_xarray(self)

    def to_dask(self) -> DaskArray:
        """Utterance vectors as a dask array (windows, dim) of one chunk for each part, read when it is computed.

        Raises
        ------
        UsageError
            dask is not installed.
        """
        return utterance_as_dask(self, self._runs)

    def _strings(self, name: str) -> NDArray[np.object_]:
        fetch_ahead(self._runs, name)
        pieces = [run.part.strings(name)[run.start : run.stop] for run in self._runs]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _rows(self, name: str) -> WindowRows:
        fetch_ahead(self._runs, name)
        return WindowRows(self._runs, name)

    def __repr__(self) -> str:
        frames = "frames" if self.has_frames else "no frames"
        skipped = f", {len(self.skipped)} left out" if self.skipped else ""
        return (
            f"featstore.FeatureSet({self.path!r}: {self.n_clips:,} clips, {len(self):,} windows, "
            f"utterance float32 ({len(self):,}, {self.recipe.dim}), {frames}{skipped})"
        )


class FeatureSets(tuple[FeatureSet, ...]):
    """Feature sets that show themselves as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        return text_table(TABLE_HEADER, [_table_row(fs) for fs in self])

    def _repr_html_(self) -> str:
        return html_table(TABLE_HEADER, [_table_row(fs) for fs in self])


TABLE_HEADER = ("encoder", "dataset", "split", "clips", "windows", "dim", "frames", "hours")


def _table_row(fs: FeatureSet) -> tuple[str, ...]:
    names = (fs.recipe.group_name, fs.dataset, fs.split)
    frames = f"{fs.n_frames:,}" if fs.has_frames else "-"
    return (*names, f"{fs.n_clips:,}", f"{len(fs):,}", str(fs.recipe.dim), frames, f"{fs.audio_seconds / 3600:.2f}")


def _is_at(path: str, encoder: str | None, dataset: str | None, split: str | None) -> bool:
    """Whether the names of a split's groups are those asked for."""
    group, its_dataset, its_split = path.split("/")
    return (
        encoder in (None, group, group.rpartition("@")[0])
        and dataset in (None, its_dataset)
        and split in (None, its_split)
    )


def _names(asked: str | None, recipe: Recipe) -> bool:
    return asked is None or asked in (recipe.encoder, recipe.group_name)


def _only_one(found: Sequence[_T], *, what: str, url: str, name: Callable[[_T], str]) -> _T:
    if not found:
        raise UnknownFeatureSet(f"{url} holds no {what}: `featstore inspect --store {url}` shows what is there")
    if len(found) > 1:
        listed = ", ".join(map(name, found[:6])) + (", ..." if len(found) > 6 else "")
        raise AmbiguousSelection(f"{url} holds more than one {what}: say which of {listed}")
    return found[0]

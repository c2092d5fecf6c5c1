"""A feature set as NumPy arrays (`FeatureSet`), and as text, HTML, xarray and dask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError, UnknownFeatureSet, UsageError
from featstore.formatting import html_table, lasting
from featstore.records import Recipe, SkippedClip, sha256_of
from featstore.store.catalogue import SplitEntry, read_commits
from featstore.store.clip_fields import encode_labels, field_values, is_label_sets, multi_hot, stored_clip_json
from featstore.store.filesystem import Objects
from featstore.store.frames import Frames
from featstore.store.part_reader import Run, WindowRows, fetch_ahead, runs_of

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from xarray import DataArray

    from featstore.store.documents import SplitAddress
    from featstore.store.format import Commit, Segment
    from featstore.store.torch_dataset import FrameBatch, UtteranceBatch, WindowDataset

__all__ = ["FeatureSet", "utterance_as_dask", "utterance_as_xarray"]


class FeatureSet:
    """The embeddings of one dataset split under one recipe, as arrays over its windows.

    It holds every shard of the split's group in the store; one that `Store.view` returns holds the shards that a
    pattern names, whichever groups of the dataset they are stored in, and reads them where they are.

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
        records = {(home, segment.commit.part): segment.commit for home, segment in self._entry.placed_segments}
        whole: dict[tuple[str, str], Commit | None] = {}
        for path in dict.fromkeys(home for home, _ in records):
            bare = [part for home, part in records if home == path and not records[home, part].objects]
            whole |= zip([(path, part) for part in bare], read_commits(self._objects, path, bare), strict=True)
        return tuple(whole.get(place) or commit for place, commit in records.items())

    @property
    def store_url(self) -> str:
        """Where its store is."""
        return self._objects.url

    @property
    def store_identity(self) -> str:
        """A hash of where its store is, of what `store_url` does not show too."""
        return self._objects.identity

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
        """The JSON of each window's clip, a dict, object (windows,); the windows of a clip share one.

        Raises
        ------
        LabelError
            The JSON of a clip cannot be read.
        """
        found = np.empty(len(self), object)
        last, document = None, None
        for row, (key, text) in enumerate(zip(self.key.tolist(), self.meta_json.tolist(), strict=True)):
            if text != last:
                last, document = text, stored_clip_json(text, key=key)
            found[row] = document
        return found

    @cached_property
    def meta_json(self) -> NDArray[np.object_]:
        """The JSON text of each window's clip as it was in the shard, object (windows,)."""
        return self._strings("meta")

    def metas_of(self, windows: Sequence[int]) -> list[str]:
        """`meta_json` of a few windows; parts that hold none of them are not read."""
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
        return len({(home, segment.commit.part) for home, segment in self._entry.placed_segments})

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
        """Frames of each window: ``fs.frames[i]`` and ``fs.frames["key"]`` are (T, dim), ``fs.frames[[3, 1]]`` a batch.

        See `Frames`.

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

    def xy(self, field: str, *, classes: Sequence[Any] | None = None) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Utterance vectors and one field of the clips' JSON, ready for scikit-learn.

        Parameters
        ----------
        field : str
            Key in the JSON; dots reach into objects: ``"speaker.gender"``.
        classes : sequence, optional
            What the columns of a multi-hot `y` stand for: give a test set ``train.classes(field)``. With labels that
            are not lists, `y` has their places in `classes`.

        Returns
        -------
        X : float32 (windows, dim)
        y : (windows,) or uint8 (windows, n_classes)
            NumPy's own type for the values found; of lists of text a multi-hot array, whose columns are `classes`.

        Raises
        ------
        LabelError
            A clip's JSON has no such field, the values of different clips make no array, or a label is none of
            `classes`.
        """
        if classes is not None:
            labels = encode_labels(self.key.tolist(), self.meta_json.tolist(), field, classes=classes)
            return self.utterance, labels.values
        values = field_values(self.key, self.meta_json, field)
        if is_label_sets(values):
            return self.utterance, multi_hot(self.key.tolist(), values, field).values
        try:
            return self.utterance, np.asarray(values)
        except ValueError as error:
            raise LabelError(f"{field!r} of {self.path} makes no array: its lists differ in length") from error

    def classes(self, field: str) -> tuple[Any, ...]:
        """The distinct labels of one field of the clips' JSON, sorted: what the columns of a multi-hot `y` stand for.

        Raises
        ------
        LabelError
            A clip's JSON has no such field, or labels that cannot be sorted.
        """
        values = field_values(self.key, self.meta_json, field)
        found = [label for each in values for label in each] if is_label_sets(values) else values
        try:
            return tuple(sorted(set(found)))
        except TypeError as error:
            raise LabelError(
                f"{field!r} of {self.path} has labels of several types, or lists of other things"
            ) from error

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
            Field of the clips' JSON. Text becomes codes of classes, lists of text a multi-hot row (float32), and
            numbers stay numbers. Windows of one clip share its label.
        frames : bool
            Items are frames (T, dim) of the stored type instead of utterance vectors (dim,).
        classes : sequence, optional
            What the codes or columns stand for: give a test set the ``classes`` of its training set.

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
        from featstore.store.torch_dataset import frame_dataset, utterance_dataset

        labels = encode_labels(self.key.tolist(), self.meta_json.tolist(), label, classes=classes)
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

    def _repr_html_(self) -> str:
        rows = [
            ("clips", f"{self.n_clips:,}"),
            ("windows", f"{len(self):,}"),
            ("utterance", f"float32 ({len(self):,}, {self.recipe.dim})"),
            ("frames", f"{self.n_frames:,} of {self.hop_seconds:g} s" if self.has_frames else "not stored"),
            ("audio", lasting(self.audio_seconds)),
            ("skipped clips", f"{len(self.skipped):,}"),
        ]
        return html_table(("feature set", self.path), rows)


def utterance_as_xarray(fs: FeatureSet) -> DataArray:
    """Utterance vectors (window, feature) with coordinates key, start_seconds and seconds."""
    try:
        import xarray
    except ImportError as error:
        raise _missing("to_xarray", "xarray") from error
    of_windows = {"key": fs.key, "start_seconds": fs.start_seconds, "seconds": fs.seconds}
    return xarray.DataArray(
        fs.utterance,
        dims=("window", "feature"),
        coords={name: ("window", values) for name, values in of_windows.items()},
        name="utterance",
        attrs={
            "encoder": fs.encoder,
            "fingerprint": fs.fingerprint,
            "dataset": fs.dataset,
            "split": fs.split,
            "content_hash": fs.content_hash,
        },
    )


def utterance_as_dask(fs: FeatureSet, runs: Sequence[Run]) -> DaskArray:
    """Utterance vectors in one lazy chunk for each run of windows in a part."""
    try:
        import dask.array as dask_array
        from dask.delayed import delayed
    except ImportError as error:
        raise _missing("to_dask", "dask[array]") from error
    da: Any = dask_array  # half of dask has no types
    dim = fs.recipe.dim
    chunks = [
        da.from_delayed(
            # Arrays that meet in one graph need different names: the same content may lie in other pieces.
            delayed(_utterance_of)(
                run, dask_key_name=f"featstore-{fs.content_hash}-{run.part.path}-{run.start}-{run.stop}"
            ),
            shape=(len(run), dim),
            dtype=np.float32,
        )
        for run in runs
        if len(run)
    ]
    whole: DaskArray = da.concatenate(chunks) if chunks else da.empty((0, dim), dtype=np.float32)
    return whole


def _utterance_of(run: Run) -> NDArray[Any]:
    return run.part.rows("utterance").slice(run.start, run.stop)


def _missing(what: str, library: str) -> UsageError:
    return UsageError(f"{what} needs {library.partition('[')[0]}, which is not installed: `pip install '{library}'`")

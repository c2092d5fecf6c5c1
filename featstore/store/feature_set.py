"""A feature set as NumPy arrays (`FeatureSet`), and as text, HTML, xarray and dask."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LabelError, UnknownFeatureSet, missing_extra
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
    from featstore.store.torch_dataset import FrameDataset, UtteranceDataset

__all__ = ["FeatureSet"]


class FeatureSet:
    """The embeddings of one dataset split under one recipe, as arrays over its windows.

    It contains the shards of the split's group in the store. A feature set from `Store.view` contains the shards that
    match a pattern, from all groups of the dataset.

    A feature set is a snapshot: it shows the parts that were current when the store was opened.
    """

    def __init__(self, objects: Objects, entry: SplitEntry) -> None:
        self._objects = objects
        self._entry = entry
        self._runs = runs_of(objects, entry)

    def __reduce__(self) -> tuple[type[FeatureSet], tuple[Objects, SplitEntry]]:
        return FeatureSet, (self._objects, self._entry)

    @property
    def recipe(self) -> Recipe:
        """Settings that determine the embeddings."""
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
        """Name of the dataset in the store, which includes the crop."""
        return self.path.split("/")[1]

    @property
    def split(self) -> str:
        """Name of the split or fold."""
        return self._entry.address.split

    @property
    def address(self) -> SplitAddress:
        """Content of the documents above its parts: the encoder's spec, the dataset's folder, the crop."""
        return self._entry.address

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.recipe.hop_seconds

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Current segment of each shard, with its commit record, in order of shard name."""
        return self._entry.segments

    def commits(self) -> tuple[Commit, ...]:
        """Read the complete commit record of each part, with the size and checksum of every object."""
        records = {(home, segment.commit.part): segment.commit for home, segment in self._entry.placed_segments}
        complete: dict[tuple[str, str], Commit | None] = {}
        for path in dict.fromkeys(home for home, _ in records):
            bare = [part for home, part in records if home == path and not records[home, part].objects]
            complete |= zip([(path, part) for part in bare], read_commits(self._objects, path, bare), strict=True)
        return tuple(complete.get(place) or commit for place, commit in records.items())

    @property
    def store_url(self) -> str:
        """URL of its store."""
        return self._objects.url

    @property
    def store_identity(self) -> str:
        """A hash that identifies the store's location, including parts that `store_url` hides."""
        return self._objects.identity

    @property
    def path(self) -> str:
        """Path of its group in the store."""
        return self._entry.path

    def __len__(self) -> int:
        return sum(segment.member.windows for segment in self.segments)

    @cached_property
    def key(self) -> NDArray[np.object_]:
        """Key of each window, object (windows,): ``clip``, and ``clip#2`` for a clip's second window."""
        return self._strings("key")

    @cached_property
    def meta(self) -> NDArray[np.object_]:
        """The JSON of each window's clip as a dict, object (windows,); the windows of a clip share one dict.

        Raises
        ------
        LabelError
            The JSON of a clip is invalid.
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
        """The JSON text of each window's clip, as in the shard, object (windows,)."""
        return self._strings("meta")

    def metas_of(self, windows: Sequence[int]) -> list[str]:
        """`meta_json` of some windows; parts without these windows are not read."""
        return WindowRows(self._runs, "meta").texts(windows)

    @cached_property
    def start_seconds(self) -> NDArray[np.float64]:
        """Start of each window in its clip, float64 (windows,)."""
        return self._rows("start_seconds").slice(0, len(self))

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Duration of each window without padding, float64 (windows,)."""
        return self._rows("seconds").slice(0, len(self))

    @cached_property
    def utterance(self) -> NDArray[np.float32]:
        """Utterance vectors, float32 (windows, dim); a read-only view of the file if the set has one part."""
        return self.utterance_rows.slice(0, len(self))

    @cached_property
    def utterance_rows(self) -> WindowRows:
        """Utterance vectors for reading in pieces with ``.slice(start, stop)``, if they are larger than memory."""
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
        """Number of parts that contain its windows."""
        return len({(home, segment.commit.part) for home, segment in self._entry.placed_segments})

    @property
    def n_frames(self) -> int:
        """Number of frames of all windows, stored or not."""
        return sum(segment.member.frames for segment in self.segments)

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio."""
        return sum(segment.member.audio_seconds for segment in self.segments)

    @property
    def n_clips(self) -> int:
        """Number of clips."""
        return sum(segment.member.clips for segment in self.segments)

    @property
    def skipped(self) -> tuple[SkippedClip, ...]:
        """Skipped clips with their reasons."""
        return tuple(clip for segment in self.segments for clip in segment.member.skipped)

    @property
    def has_frames(self) -> bool:
        """Whether frames are stored."""
        return all(segment.commit.frames_stored for segment in self.segments)

    @cached_property
    def frames(self) -> Frames:
        """Frames of each window: ``fs.frames[i]`` and ``fs.frames["key"]`` are (T, dim), ``fs.frames[[3, 1]]`` a batch.

        See `Frames`.

        Raises
        ------
        UnknownFeatureSet
            Frames are not stored.
        """
        if not self.has_frames:
            how = "extract it again with `--frames always`"
            if self.recipe.imported_from is not None:
                how = "import its frames with `--hop SECONDS`"
            raise UnknownFeatureSet(f"{self.path} has utterance vectors only: {how} to store frames")
        fetch_ahead(self._runs, "frame_offsets")
        fetch_ahead(self._runs, "frames")
        return Frames(self._runs)

    @cached_property
    def content_hash(self) -> str:
        """Sixteen hexadecimal digits of a hash of the shards' contents and the recipe."""
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
            Name of the field; dots separate nested names: ``"speaker.gender"``.
        classes : sequence, optional
            Classes of the columns of a multi-hot `y`: pass ``train.classes(field)`` for a test set. For labels that are
            not lists, `y` has their indices in `classes`.

        Returns
        -------
        X : float32 (windows, dim)
        y : (windows,) or uint8 (windows, n_classes)
            Array with the type that NumPy infers; for lists of text a multi-hot array with the columns `classes`.

        Raises
        ------
        LabelError
            A clip's JSON has no such field, the values cannot form an array, or a label is not in `classes`.
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
            raise LabelError(f"{field!r} of {self.path} cannot form an array: its lists differ in length") from error

    def classes(self, field: str) -> tuple[Any, ...]:
        """Return the sorted distinct labels of one field of the clips' JSON: the columns of a multi-hot `y`.

        Raises
        ------
        LabelError
            A clip's JSON has no such field, or the labels cannot be sorted.
        """
        values = field_values(self.key, self.meta_json, field)
        found = [label for each in values for label in each] if is_label_sets(values) else values
        try:
            return tuple(sorted(set(found)))
        except TypeError as error:
            raise LabelError(
                f"{field!r} of {self.path} has labels of several types, or lists with values that are not text"
            ) from error

    @overload
    def as_dataset(
        self, label: str, *, frames: Literal[False] = False, classes: Sequence[Any] | None = None
    ) -> UtteranceDataset: ...
    @overload
    def as_dataset(
        self, label: str, *, frames: Literal[True], classes: Sequence[Any] | None = None
    ) -> FrameDataset: ...
    def as_dataset(
        self, label: str, *, frames: bool = False, classes: Sequence[Any] | None = None
    ) -> UtteranceDataset | FrameDataset:
        """Return a map-style torch Dataset of the windows. All workers of a DataLoader share the memory maps.

        Reading needs no workers: without workers, batches are read at memory speed, and workers add the cost of sending
        them. Use workers if your own processing of the samples is slow.

        Parameters
        ----------
        label : str
            Field of the clips' JSON. Text becomes class codes, lists of text a multi-hot row (float32), and numbers are
            not changed. The windows of a clip share its label.
        frames : bool
            Items are frames (T, dim) of the stored type instead of utterance vectors (dim,).
        classes : sequence, optional
            Classes of the codes or columns: pass the ``classes`` of the training set for a test set.

        Returns
        -------
        dataset
            With ``classes``, and ``collate`` for ``DataLoader(dataset, batch_size=32, collate_fn=dataset.collate)``.

        Raises
        ------
        LabelError
            A clip has no such label, or its label is not in `classes`.
        UnknownFeatureSet
            Frames are not stored.
        """
        from featstore.store.torch_dataset import FrameDataset, UtteranceDataset

        labels = encode_labels(self.key.tolist(), self.meta_json.tolist(), label, classes=classes)
        return FrameDataset(self.frames, labels) if frames else UtteranceDataset(self.utterance_rows, labels)

    def to_xarray(self) -> DataArray:
        """Return the utterance vectors as a DataArray (window, feature) with coordinates key, start_seconds, seconds.

        Raises
        ------
        UsageError
            xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise missing_extra("to_xarray", "xarray", "arrays") from error
        of_windows = {"key": self.key, "start_seconds": self.start_seconds, "seconds": self.seconds}
        return xarray.DataArray(
            self.utterance,
            dims=("window", "feature"),
            coords={name: ("window", values) for name, values in of_windows.items()},
            name="utterance",
            attrs={
                "encoder": self.encoder,
                "fingerprint": self.fingerprint,
                "dataset": self.dataset,
                "split": self.split,
                "content_hash": self.content_hash,
            },
        )

    def to_dask(self) -> DaskArray:
        """Return the utterance vectors as a dask array (windows, dim) with one chunk per part, read on compute.

        Raises
        ------
        UsageError
            dask is not installed.
        """
        try:
            import dask.array as dask_array
            from dask.delayed import delayed
        except ImportError as error:
            raise missing_extra("to_dask", "dask", "arrays") from error
        da: Any = dask_array  # dask is only partly typed
        dim = self.recipe.dim
        chunks = [
            da.from_delayed(
                # Equal keys in one dask graph must mean equal chunks, so the key names the part and the rows.
                delayed(_utterance_of)(
                    run, dask_key_name=f"featstore-{self.content_hash}-{run.part.path}-{run.start}-{run.stop}"
                ),
                shape=(len(run), dim),
                dtype=np.float32,
            )
            for run in self._runs
            if len(run)
        ]
        array: DaskArray = da.concatenate(chunks) if chunks else da.empty((0, dim), dtype=np.float32)
        return array

    def _strings(self, name: str) -> NDArray[np.object_]:
        fetch_ahead(self._runs, name)
        pieces = [run.part.strings(name)[run.start : run.stop] for run in self._runs]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _rows(self, name: str) -> WindowRows:
        fetch_ahead(self._runs, name)
        return WindowRows(self._runs, name)

    def __repr__(self) -> str:
        frames = "frames" if self.has_frames else "no frames"
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
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


def _utterance_of(run: Run) -> NDArray[Any]:
    return run.part.rows("utterance").slice(run.start, run.stop)

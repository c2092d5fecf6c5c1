"""Writes one part: encodes windows to objects, and ends with a commit record.

`PartInFlight` implements the commit protocol of a part for any objects; `PartWriter` encodes windows to objects.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.errors import PartLost, StoreError
from featstore.records import Recipe
from featstore.store import codecs
from featstore.store.faults import fault_point
from featstore.store.filesystem import Objects
from featstore.store.format import GROUP_DOCUMENT, Commit, Member, ObjectSeal, seal
from featstore.store.layout import one_file_layout, plain_layout, sharded_layout, strings_document
from featstore.store.liveness import Heartbeat, writing_document

__all__ = ["EmbeddedWindow", "PartInFlight", "PartWriter", "WindowBlock", "is_disk_full", "write_errors_explained"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedWindow:
    """An encoded window: ``utterance`` float32 (dim,), ``frames`` (n, dim) or None."""

    key: str
    meta: str
    start_seconds: float
    seconds: float
    utterance: NDArray[np.float32]
    frames: NDArray[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBlock:
    """Consecutive windows: ``utterance`` float32 (n, dim); ``frames`` (rows, dim) with ``frame_counts`` (n,)."""

    keys: list[str]
    metas: list[str]
    start_seconds: NDArray[np.float64]
    seconds: NDArray[np.float64]
    utterance: NDArray[np.float32]
    frames: NDArray[Any] | None
    frame_counts: NDArray[np.int64] | None


class PartInFlight:
    """An uncommitted part. As a context manager, it deletes the part if it is not committed.

    The group must be new, so that object names are never reused and no reader has a file mapped that changes.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        self.path = path
        self.seals: dict[str, ObjectSeal] = {}
        self._objects = objects
        self._committed = False
        self._heartbeat = Heartbeat(objects, path)
        try:
            with write_errors_explained(objects):
                objects.write(f"{path}/{GROUP_DOCUMENT}", writing_document())
        except BaseException:
            self.abort()
            raise
        fault_point("part-begun")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Delete the uncommitted objects. After the commit it does nothing."""
        if self._committed:
            return
        self._heartbeat.stop()
        with contextlib.suppress(OSError, StoreError):  # the original error is more useful
            self._objects.delete(self.path, first=(GROUP_DOCUMENT,))

    def put(self, name: str, buffers: codecs.Buffers, *, entry: ObjectSeal | None = None) -> None:
        """Write a new object; its seal is computed if `entry` is None."""
        if entry is None:
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            entry = ObjectSeal(size, codecs.seal_crc32c(buffers))
        self._objects.put(f"{self.path}/{name}", buffers)
        self.seals[name] = entry

    def sync(self) -> None:
        """Wait until all objects are durable, and check that they exist and have the right sizes.

        Raises
        ------
        PartLost
            Another process deleted or changed an object.
        """
        fault_point("arrays-written")
        with contextlib.suppress(FileNotFoundError):  # reported as PartLost below
            self._objects.sync(self.path)
        fault_point("arrays-synced")
        self._heartbeat.stop()
        found = self._objects.sizes(self.path)
        wrong = [name for name, entry in self.seals.items() if found.get(name) != entry.size]
        if GROUP_DOCUMENT not in found:
            wrong.append(GROUP_DOCUMENT)
        if wrong:
            what = f"has {found[wrong[0]]:,} bytes" if wrong[0] in found else "is missing"
            raise PartLost(
                f"{self._objects.url}/{self.path}/{wrong[0]} {what}: another process deleted or changed {len(wrong)} "
                "objects of a part while it was written, so it was not committed; run the same command again"
            )

    def commit(self, commit: Commit) -> None:
        """Write the commit record of a synced part, atomically."""
        self._objects.write(f"{self.path}/{GROUP_DOCUMENT}", seal({"commit": commit.as_json()}))
        self._committed = True
        fault_point("committed")


class PartWriter:
    """Writes the windows of one part. As a context manager, it deletes the part if it is not committed."""

    def __init__(
        self,
        objects: Objects,
        path: str,
        *,
        recipe: Recipe,
        crop_seconds: float | None,
        generation: int,
        on_commit: Callable[[Commit], None],
    ) -> None:
        self._objects = objects
        self._path = path
        self._recipe = recipe
        self._crop_seconds = crop_seconds
        self._generation = generation
        self._on_commit = on_commit
        self._started = time.monotonic()
        self._keys: list[str] = []
        self._metas: list[str] = []
        self._starts: list[NDArray[np.float64]] = []
        self._seconds: list[NDArray[np.float64]] = []
        self._utterances: list[NDArray[np.float32]] = []
        self._frame_counts: list[int] = []
        self._pending: list[NDArray[Any]] = []
        self._pending_rows = 0
        self._frame_files = 0
        self._frame_layout = sharded_layout((0, recipe.dim), recipe.frame_dtype)
        self._part = PartInFlight(objects, path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Delete the uncommitted objects. After the commit it does nothing."""
        self._part.abort()

    @property
    def windows(self) -> int:
        """Number of windows added so far."""
        return len(self._keys)

    @property
    def frames(self) -> int:
        """Number of frames added so far."""
        return sum(self._frame_counts)

    def add(self, window: EmbeddedWindow) -> None:
        """Append one window."""
        self.add_block(
            WindowBlock(
                keys=[window.key],
                metas=[window.meta],
                start_seconds=np.array([window.start_seconds]),
                seconds=np.array([window.seconds]),
                utterance=window.utterance[None],
                frames=window.frames,
                frame_counts=None if window.frames is None else np.array([len(window.frames)]),
            )
        )

    def add_block(self, block: WindowBlock) -> None:
        """Append consecutive windows."""
        self._keys += block.keys
        self._metas += block.metas
        self._starts.append(block.start_seconds)
        self._seconds.append(block.seconds)
        self._utterances.append(block.utterance)
        if block.frames is not None and block.frame_counts is not None:
            self._frame_counts += block.frame_counts.tolist()
            self._pending.append(block.frames)
            self._pending_rows += len(block.frames)
            if self._pending_rows >= self._frame_layout.file_rows:
                self._flush_complete_files()

    def commit(self, members: Sequence[Member], *, frames_stored: bool, versions: Mapping[str, str]) -> Commit:
        """Write the small arrays, wait until all objects are durable, and commit.

        Parameters
        ----------
        members : sequence of Member
            Shards of the windows, in order. The sums of their counts must equal the added windows, and the added frames
            if frames are stored.
        frames_stored : bool
            Whether all windows have frames.
        versions : mapping
            Versions of the software that made the embeddings.

        Raises
        ------
        PartLost
            Objects of the part were deleted or changed.
        StoreError
            The disk is full or broken. The part is not committed; earlier parts are not affected.
        """
        with write_errors_explained(self._objects):
            self._put_arrays(frames_stored=frames_stored)
            self._part.sync()
            commit = Commit(
                part=self._path.rsplit("/", 1)[-1],
                members=tuple(members),
                frames_stored=frames_stored,
                recipe_fingerprint=self._recipe.fingerprint,
                crop_seconds=self._crop_seconds,
                generation=self._generation,
                committed_at=datetime.now(UTC).isoformat(timespec="microseconds"),
                seconds=round(time.monotonic() - self._started, 6),
                versions=versions,  # shared by all commits of a run
                objects=self._part.seals,
            )
            if commit.windows != self.windows or (frames_stored and commit.frames != self.frames):
                raise StoreError(
                    f"members of {commit.part} have {commit.windows} windows and {commit.frames} frames, but "
                    f"{self.windows} and {self.frames} were added"
                )
            self._part.commit(commit)
            self._on_commit(commit)
        return commit

    def _put_arrays(self, *, frames_stored: bool) -> None:
        shape = (len(self._keys), self._recipe.dim)
        self._put_strings("key", self._keys)
        self._put_strings("meta", self._metas)
        self._put_numbers("start_seconds", _concatenated(self._starts, np.empty(0)))
        self._put_numbers("seconds", _concatenated(self._seconds, np.empty(0)))
        self._put_numbers("utterance", _concatenated(self._utterances, np.empty(shape, np.float32)))
        if frames_stored:
            self._put_numbers("frame_offsets", np.cumsum([0, *self._frame_counts], dtype=np.int64))
            if self._frame_files == 0:
                self._frame_layout = one_file_layout((self.frames, self._recipe.dim), self._recipe.frame_dtype)
            else:
                self._frame_layout = replace(self._frame_layout, shape=(self.frames, self._recipe.dim))
            if self._pending_rows:
                self._put_frames(np.concatenate(self._pending))
            self._part.put("frames/zarr.json", [self._frame_layout.document()])

    def _put_strings(self, name: str, values: list[str]) -> None:
        self._part.put(f"{name}/zarr.json", [strings_document(len(values))])
        if values:
            self._part.put(f"{name}/c/0", [codecs.encode_strings(values)])

    def _put_numbers(self, name: str, values: NDArray[Any]) -> None:
        layout = plain_layout(values.shape, values.dtype)
        self._part.put(f"{name}/zarr.json", [layout.document()])
        for key, start, stop in layout.files():
            self._part.put(f"{name}/{key}", codecs.encode_file(layout, values[start:stop]))

    def _flush_complete_files(self) -> None:
        """Write the buffered frames that fill complete files, and keep the rest."""
        file_rows = self._frame_layout.file_rows
        if self._pending_rows < file_rows:
            return
        rows = _concatenated(self._pending, np.empty((0, self._recipe.dim), self._recipe.frame_dtype))
        complete = len(rows) // file_rows * file_rows
        with write_errors_explained(self._objects):
            for start in range(0, complete, file_rows):
                self._put_frames(rows[start : start + file_rows])
        self._pending = [rows[complete:].copy()] if complete < len(rows) else []
        self._pending_rows = len(rows) - complete
        fault_point("frames-written")

    def _put_frames(self, rows: NDArray[Any]) -> None:
        key = self._frame_layout.file_key(self._frame_files)
        self._part.put(f"frames/{key}", codecs.encode_file(self._frame_layout, rows))
        self._frame_files += 1


@contextlib.contextmanager
def write_errors_explained(objects: Objects) -> Iterator[None]:
    """Replace an OSError of a write by a StoreError of one line with the fix."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write to {objects.url}: {error.strerror or error}; committed parts are safe: "
            "free space or repair the disk, and run the same command again"
        ) from error


def is_disk_full(error: StoreError) -> bool:
    """Whether a write failed because the disk is full or the user's quota is exceeded."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def _concatenated(pieces: Sequence[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    """Concatenate pieces; a single piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else nothing

"""Writes one part: windows in, objects out, one commit record at the end.

`PartInFlight` is the commit protocol of a part whatever its objects hold; `PartWriter` makes the objects from windows.
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

__all__ = ["EmbeddedWindow", "PartInFlight", "PartWriter", "WindowBlock", "is_disk_full", "telling_what_to_do"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedWindow:
    """One window, ready to be stored: ``utterance`` float32 (dim,), ``frames`` (n, dim) or None."""

    key: str
    meta: str
    start_seconds: float
    seconds: float
    utterance: NDArray[np.float32]
    frames: NDArray[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowBlock:
    """Windows one after another: ``utterance`` float32 (n, dim); ``frames`` (rows, dim) with ``frame_counts`` (n,)."""

    keys: list[str]
    metas: list[str]
    start_seconds: NDArray[np.float64]
    seconds: NDArray[np.float64]
    utterance: NDArray[np.float32]
    frames: NDArray[Any] | None
    frame_counts: NDArray[np.int64] | None


class PartInFlight:
    """A part between its first object and its commit. As a context manager it deletes what was never committed.

    Its group must be new: no name of an object in it was ever given to another, so that no reader has one mapped.
    """

    def __init__(self, objects: Objects, path: str) -> None:
        self.path = path
        self.seals: dict[str, ObjectSeal] = {}
        self._objects = objects
        self._committed = False
        self._heartbeat = Heartbeat(objects, path)
        try:
            with telling_what_to_do(objects):
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
        """Delete what was written, for it was never a part. After the commit it does nothing."""
        if self._committed:
            return
        self._heartbeat.stop()
        with contextlib.suppress(OSError, StoreError):  # the error that led here says more
            self._objects.delete(self.path, first=(GROUP_DOCUMENT,))

    def put(self, name: str, buffers: codecs.Buffers, *, entry: ObjectSeal | None = None) -> None:
        """Put a new object, whose seal is computed where it is not known."""
        if entry is None:
            size = sum(memoryview(buffer).nbytes for buffer in buffers)
            entry = ObjectSeal(size, codecs.seal_crc32c(buffers))
        self._objects.put(f"{self.path}/{name}", buffers)
        self.seals[name] = entry

    def settle(self) -> None:
        """Return when every object is durable, there, and as long as it was written.

        Raises
        ------
        PartLost
            One is not: something else deleted or changed it.
        """
        fault_point("arrays-written")
        with contextlib.suppress(FileNotFoundError):  # which is found again below
            self._objects.settle(self.path)
        fault_point("arrays-settled")
        self._heartbeat.stop()
        found = self._objects.sizes(self.path)
        wrong = [name for name, entry in self.seals.items() if found.get(name) != entry.size]
        if GROUP_DOCUMENT not in found:
            wrong.append(GROUP_DOCUMENT)
        if wrong:
            what = f"is of {found[wrong[0]]:,} bytes" if wrong[0] in found else "is missing"
            raise PartLost(
                f"{self._objects.url}/{self.path}/{wrong[0]} {what}: something deleted or changed {len(wrong)} objects "
                "of a part while it was written, and it was not committed; run the same command again"
            )

    def commit(self, commit: Commit) -> None:
        """Put the commit record of a settled part, in one step."""
        self._objects.write(f"{self.path}/{GROUP_DOCUMENT}", seal({"commit": commit.as_json()}))
        self._committed = True
        fault_point("committed")


class PartWriter:
    """One part in the making. As a context manager it deletes what it wrote when it is left without a commit."""

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
        self._began = time.monotonic()
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
        """Delete what was written, for it was never a part. After the commit it does nothing."""
        self._part.abort()

    @property
    def windows(self) -> int:
        """Windows added so far."""
        return len(self._keys)

    @property
    def frames(self) -> int:
        """Frames added so far."""
        return sum(self._frame_counts)

    def add(self, window: EmbeddedWindow) -> None:
        """Append one window, in the order of the store."""
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
        """Append many windows at once, in the order of the store."""
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
                self._flush_whole_files()

    def commit(self, members: Sequence[Member], *, frames_stored: bool, versions: Mapping[str, str]) -> Commit:
        """Write the small arrays, settle everything, and commit.

        Parameters
        ----------
        members : sequence of Member
            Shards whose windows these are, in order; their counts add up to what was added, those of frames where they
            are stored.
        frames_stored : bool
            Whether every window brought its frames.
        versions : mapping
            Of the software that made the numbers.

        Raises
        ------
        PartLost
            Objects of the part are not there any more.
        StoreError
            The disk is full or broken. What was written is no part, and the parts before it are untouched.
        """
        with telling_what_to_do(self._objects):
            self._put_arrays(frames_stored=frames_stored)
            self._part.settle()
            commit = Commit(
                part=self._path.rsplit("/", 1)[-1],
                members=tuple(members),
                frames_stored=frames_stored,
                recipe_fingerprint=self._recipe.fingerprint,
                crop_seconds=self._crop_seconds,
                generation=self._generation,
                committed_at=datetime.now(UTC).isoformat(timespec="microseconds"),
                seconds=round(time.monotonic() - self._began, 6),
                versions=versions,  # one mapping for all commits of a run
                objects=self._part.seals,
            )
            if commit.windows != self.windows or (frames_stored and commit.frames != self.frames):
                raise StoreError(
                    f"members of {commit.part} claim {commit.windows} windows and {commit.frames} frames: "
                    f"{self.windows} and {self.frames} were added"
                )
            self._part.commit(commit)
            self._on_commit(commit)
        return commit

    def _put_arrays(self, *, frames_stored: bool) -> None:
        shape = (len(self._keys), self._recipe.dim)
        self._put_strings("key", self._keys)
        self._put_strings("meta", self._metas)
        self._put_numbers("start_seconds", _joined(self._starts, np.empty(0)))
        self._put_numbers("seconds", _joined(self._seconds, np.empty(0)))
        self._put_numbers("utterance", _joined(self._utterances, np.empty(shape, np.float32)))
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

    def _flush_whole_files(self) -> None:
        """Write the frames that fill files whole, and keep the rest."""
        file_rows = self._frame_layout.file_rows
        if self._pending_rows < file_rows:
            return
        rows = _joined(self._pending, np.empty((0, self._recipe.dim), self._recipe.frame_dtype))
        whole = len(rows) // file_rows * file_rows
        with telling_what_to_do(self._objects):
            for start in range(0, whole, file_rows):
                self._put_frames(rows[start : start + file_rows])
        self._pending = [rows[whole:].copy()] if whole < len(rows) else []
        self._pending_rows = len(rows) - whole
        fault_point("frames-written")

    def _put_frames(self, rows: NDArray[Any]) -> None:
        key = self._frame_layout.file_key(self._frame_files)
        self._part.put(f"frames/{key}", codecs.encode_file(self._frame_layout, rows))
        self._frame_files += 1


@contextlib.contextmanager
def telling_what_to_do(objects: Objects) -> Iterator[None]:
    """Turn what the operating system says about a write into one line with the remedy."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"cannot write to {objects.url}: {error.strerror or error}; what is committed is safe: "
            "free space or repair the disk, and run the same command again"
        ) from error


def is_disk_full(error: StoreError) -> bool:
    """Whether a write failed for want of space, or of what a user is allowed of it."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)


def _joined(pieces: Sequence[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    """Pieces end to end; one piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else nothing

"""Writes one part: windows in, objects out, one commit record at the end."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.errors import StoreError
from featstore.records import Recipe
from featstore.store import codecs
from featstore.store.faults import fault_point
from featstore.store.format import GROUP_DOCUMENT, Commit, Member, ObjectSeal, Writing, seal
from featstore.store.layout import one_file_layout, plain_layout, sharded_layout, strings_document
from featstore.store.objects import Objects

__all__ = ["EmbeddedWindow", "PartWriter", "WindowBlock", "process_started", "telling_what_to_do", "writing_document"]


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


class PartWriter:
    """One part in the making. As a context manager it deletes what it wrote when it is left without a commit."""

    def __init__(
        self,
        objects: Objects,
        path: str,
        *,
        recipe: Recipe,
        crop_seconds: float | None,
        on_commit: Callable[[Commit], None],
    ) -> None:
        self._objects = objects
        self._path = path
        self._recipe = recipe
        self._crop_seconds = crop_seconds
        self._on_commit = on_commit
        self._began = datetime.now(UTC)
        self._keys: list[str] = []
        self._metas: list[str] = []
        self._starts: list[NDArray[np.float64]] = []
        self._seconds: list[NDArray[np.float64]] = []
        self._utterances: list[NDArray[np.float32]] = []
        self._frame_counts: list[int] = []
        self._pending: list[NDArray[Any]] = []
        self._pending_rows = 0
        self._frame_files = 0
        self._seals: dict[str, ObjectSeal] = {}
        self._committed = False
        self._frame_layout = sharded_layout((0, recipe.dim), recipe.frame_dtype)
        try:
            with telling_what_to_do(objects):
                objects.write(f"{path}/{GROUP_DOCUMENT}", writing_document(self._began))
        except StoreError:
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
        with contextlib.suppress(OSError, StoreError):  # the error that led here says more
            self._objects.delete(self._path, first=(GROUP_DOCUMENT,))

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
        StoreError
            The disk is full or broken. What was written is no part, and the parts before it are untouched.
        """
        with telling_what_to_do(self._objects):
            self._put_arrays(frames_stored=frames_stored)
            fault_point("arrays-written")
            self._objects.settle(self._path)
            fault_point("arrays-settled")
            now = datetime.now(UTC)
            commit = Commit(
                part=self._path.rsplit("/", 1)[-1],
                members=tuple(members),
                frames_stored=frames_stored,
                recipe_fingerprint=self._recipe.fingerprint,
                crop_seconds=self._crop_seconds,
                committed_at=now.isoformat(timespec="microseconds"),
                seconds=round((now - self._began).total_seconds(), 6),
                versions=versions,  # one mapping for all commits of a run
                objects=self._seals,
            )
            if commit.windows != self.windows or (frames_stored and commit.frames != self.frames):
                raise StoreError(
                    f"members of {commit.part} claim {commit.windows} windows and {commit.frames} frames: "
                    f"{self.windows} and {self.frames} were added"
                )
            self._objects.write(f"{self._path}/{GROUP_DOCUMENT}", seal({"commit": commit.as_json()}))
            self._committed = True
            self._on_commit(commit)
            fault_point("committed")
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
            self._put("frames/zarr.json", [self._frame_layout.document()])

    def _put_strings(self, name: str, values: list[str]) -> None:
        self._put(f"{name}/zarr.json", [strings_document(len(values))])
        if values:
            self._put(f"{name}/c/0", [codecs.encode_strings(values)])

    def _put_numbers(self, name: str, values: NDArray[Any]) -> None:
        layout = plain_layout(values.shape, values.dtype)
        self._put(f"{name}/zarr.json", [layout.document()])
        for key, start, stop in layout.files():
            self._put(f"{name}/{key}", codecs.encode_file(layout, values[start:stop]))

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
        self._put(f"frames/{key}", codecs.encode_file(self._frame_layout, rows))
        self._frame_files += 1

    def _put(self, name: str, buffers: codecs.Buffers) -> None:
        self._objects.put(f"{self._path}/{name}", buffers)
        size = sum(memoryview(buffer).nbytes for buffer in buffers)
        self._seals[name] = ObjectSeal(size, codecs.seal_crc32c(buffers))


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
            "make room or mend the disk, and run the same command again"
        ) from error


def _joined(pieces: Sequence[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    """Pieces end to end; one piece is not copied."""
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces) if pieces else nothing


def process_started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, where the system tells: a number for a pid used twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[-1].split()
    return -1 if fields[0] in "ZX" else int(fields[19])  # a zombie writes no more


def writing_document(began: datetime) -> bytes:
    """The document of a part that this process is making."""
    pid = os.getpid()
    started = process_started(pid)
    writer = Writing(host=socket.gethostname(), pid=pid, process_started=started, began_at=began.isoformat())
    return seal({"writing": asdict(writer)})

"""Writes behind the encoder, in a thread of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

from featstore.extract.outcome import StageTimes
from featstore.store import PartWriter, SplitWriter

__all__ = ["BackgroundWriter"]

_WRITES_AHEAD = 8
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(slots=True)
class BackgroundWriter:
    """One thread that writes. A few writes may wait; the first that fails stops the run."""

    times: StageTimes
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="write"))
    _waiting: list[Future[Any]] = field(default_factory=list)
    _open: set[Future[PartWriter]] = field(default_factory=set)

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            began = time.perf_counter()
            try:
                self._wait(0)
            finally:
                self.times.wait_write += time.perf_counter() - began
                self._close()
        else:
            self._close()

    def begin(self, writer: SplitWriter, shard: str, *, generation: int | None) -> Future[PartWriter]:
        """Start a part. It is deleted at the end if it was never committed."""
        future = self._pool.submit(writer.begin_part, shard, generation=generation)
        self._open.add(future)
        return future

    def end(self, part: Future[PartWriter]) -> None:
        """The part was committed or given up: let go of it and of all it holds."""
        self._open.discard(part)

    def submit(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Queue a write behind the others; wait while too many are queued."""
        began = time.perf_counter()
        self._wait(_WRITES_AHEAD - 1)
        self.times.wait_write += time.perf_counter() - began
        future = self._pool.submit(self._timed, partial(work, *args, **kwargs))
        self._waiting.append(future)
        return future

    def _timed(self, work: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.times.write += time.perf_counter() - began

    def _wait(self, at_most: int) -> None:
        while len(self._waiting) > at_most or (self._waiting and self._waiting[0].done()):
            self._waiting.pop(0).result()

    def _close(self) -> None:
        """Let what is queued end, for it may be the commit of a whole shard; then delete what is not committed."""
        self._pool.shutdown(wait=True)
        for future in self._open:
            if future.exception() is None:
                future.result().abort()

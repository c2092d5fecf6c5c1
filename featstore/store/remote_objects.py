"""Objects of a store that is no folder of this machine."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from featstore.remote import NETWORK_THREADS, Remote, open_remote
from featstore.store.faults import fault_point
from featstore.store.format import HEARTBEAT
from featstore.store.prefetch import in_order

__all__ = ["RemoteObjects", "open_remote_objects"]

_WRITES_AT_A_TIME = 8
_MOST_WAITING_BYTES = 256 << 20


def open_remote_objects(url: str) -> RemoteObjects:
    """The objects below a URL."""
    return RemoteObjects(open_remote(url))


class RemoteObjects:
    """Objects below a URL.

    The arrays of a part travel side by side: `put` hands an object over and returns, and `settle` waits until the
    server has answered for all of them. A document is put in one request that is waited for.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._pool = ThreadPoolExecutor(NETWORK_THREADS, thread_name_prefix="network")
        self._writes = ThreadPoolExecutor(_WRITES_AT_A_TIME, thread_name_prefix="put")
        self._waiting: dict[str, Future[None]] = {}
        self._waiting_bytes = 0
        self._changed = threading.Condition()

    def __reduce__(self) -> tuple[type[RemoteObjects], tuple[Remote]]:
        return RemoteObjects, (self.remote,)

    @property
    def url(self) -> str:
        """The URL as it was given, without its credentials."""
        return self.remote.url

    @property
    def identity(self) -> str:
        """A hash of where the store is."""
        return self.remote.identity

    @property
    def root(self) -> Path | None:
        """None: there is no folder to map files of."""
        return None

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Get one object."""
        return self.remote.get(key, most_bytes=most_bytes)

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """Get objects side by side, in order, and no more than a few ahead of whoever takes them."""
        return in_order(self._pool, partial(self.remote.get, most_bytes=most_bytes), keys, ahead=NETWORK_THREADS)

    def write(self, key: str, data: bytes) -> None:
        """Put one object: atomic by the contract of object stores."""
        self.remote.put(key, data)
        fault_point("document-written")

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Put one object in the background: joined, for an object store takes it in one piece."""
        data = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
        with self._changed:
            self._changed.wait_for(lambda: self._waiting_bytes == 0 or self._waiting_bytes < _MOST_WAITING_BYTES)
            self._waiting_bytes += len(data)
        self._waiting[key] = self._writes.submit(self._put, key, data)

    def _put(self, key: str, data: bytes) -> None:
        try:
            self.remote.put(key, data)
        finally:
            with self._changed:
                self._waiting_bytes -= len(data)
                self._changed.notify_all()

    def children(self, prefix: str) -> tuple[str, ...]:
        """List one level."""
        return self.remote.children(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        """List all levels."""
        base = f"{prefix}/" if prefix else ""
        return {each.key.removeprefix(base): each.size or 0 for each in self.remote.objects(prefix)}

    def settle(self, prefix: str) -> None:
        """Wait for every object under `prefix` that was put; an object store is durable when it answers."""
        writes = self._taken(prefix)
        wait(writes)  # for all of them where one has failed: none may land after what a deletion finds
        for write in writes:
            write.result()

    def remove(self, key: str) -> None:
        """Delete one object."""
        self.remote.delete([key])

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete the objects named in `first`, then the rest."""
        wait(self._taken(prefix))  # what is still on its way must not land after the deletion
        for name in first:
            self.remove(f"{prefix}/{name}")
            fault_point("deleting-arrays")
        self.remote.delete([each.key for each in self.remote.objects(prefix)])

    def touch(self, prefix: str) -> None:
        """Put an object of its own. A document is not put again for it: late on its way, it might land on a commit."""
        self.remote.put(f"{prefix}/{HEARTBEAT}", b"")

    def last_change(self, prefix: str) -> float | None:
        """The latest time in a listing."""
        times = [each.modified_ns for each in self.remote.objects(prefix)]
        known = [time for time in times if time is not None]
        return max(known) / 1e9 if known and len(known) == len(times) else None

    def clock(self, prefix: str) -> float | None:
        """Put an object, and see what time the server gives it."""
        key = f"{prefix}/.probe.{uuid.uuid4().hex}"
        self.remote.put(key, b"")
        try:
            about = self.remote.head(key)
        finally:
            self.remote.delete([key])
        return None if about is None or about.modified_ns is None else about.modified_ns / 1e9

    def _taken(self, prefix: str) -> list[Future[None]]:
        keys = [key for key in list(self._waiting) if key.startswith(f"{prefix}/")]
        return [self._waiting.pop(key) for key in keys]

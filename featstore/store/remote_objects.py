"""Objects of a remote store."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

from featstore.remote import NETWORK_THREADS, Remote
from featstore.store.faults import fault_point
from featstore.store.format import HEARTBEAT
from featstore.store.prefetch import in_order

__all__ = ["RemoteObjects"]

_PARALLEL_WRITES = 8
_MAX_PENDING_BYTES = 256 << 20


class RemoteObjects:
    """Objects below a URL.

    The arrays of a part are uploaded in parallel: `put` queues an object and returns, and `sync` waits for the
    responses to all queued objects. `write` waits for the response.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._pool = ThreadPoolExecutor(NETWORK_THREADS, thread_name_prefix="network")
        self._writes = ThreadPoolExecutor(_PARALLEL_WRITES, thread_name_prefix="put")
        self._pending: dict[str, Future[None]] = {}
        self._pending_bytes = 0
        self._changed = threading.Condition()

    def __reduce__(self) -> tuple[type[RemoteObjects], tuple[Remote]]:
        return RemoteObjects, (self.remote,)

    @property
    def url(self) -> str:
        """The user's URL without credentials."""
        return self.remote.url

    @property
    def identity(self) -> str:
        """A hash that identifies the store's location."""
        return self.remote.identity

    @property
    def root(self) -> Path | None:
        """None: the store is not a local folder."""
        return None

    def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
        """Read an object."""
        return self.remote.get(key, most_bytes=most_bytes)

    def read_many(self, keys: Iterable[str], *, most_bytes: int | None = None) -> Iterator[bytes | None]:
        """Read objects in parallel, in order, with a limited number of requests ahead of the consumer."""
        return in_order(self._pool, partial(self.remote.get, most_bytes=most_bytes), keys, ahead=NETWORK_THREADS)

    def write(self, key: str, data: bytes) -> None:
        """Write an object; object stores do this atomically."""
        self.remote.put(key, data)
        fault_point("document-written")

    def put(self, key: str, buffers: Iterable[Any]) -> None:
        """Write an object in the background, in one request."""
        data = b"".join(memoryview(buffer).cast("B") for buffer in buffers)
        with self._changed:
            self._changed.wait_for(lambda: self._pending_bytes == 0 or self._pending_bytes < _MAX_PENDING_BYTES)
            self._pending_bytes += len(data)
        self._pending[key] = self._writes.submit(self._put, key, data)

    def _put(self, key: str, data: bytes) -> None:
        try:
            self.remote.put(key, data)
        finally:
            with self._changed:
                self._pending_bytes -= len(data)
                self._changed.notify_all()

    def children(self, prefix: str) -> tuple[str, ...]:
        """List one level."""
        return self.remote.children(prefix)

    def sizes(self, prefix: str) -> dict[str, int]:
        """List all levels."""
        base = f"{prefix}/" if prefix else ""
        return {each.key.removeprefix(base): each.size or 0 for each in self.remote.objects(prefix)}

    def sync(self, prefix: str) -> None:
        """Wait for all uploads under `prefix`; an object store makes an object durable before it responds."""
        writes = self._take_pending(prefix)
        wait(writes)  # also if one has failed: none may arrive after a deletion
        for write in writes:
            write.result()

    def remove(self, key: str) -> None:
        """Delete one object."""
        self.remote.delete([key])

    def delete(self, prefix: str, *, first: Iterable[str] = ()) -> None:
        """Delete the objects named in `first`, then the rest."""
        wait(self._take_pending(prefix))  # an upload in flight must not arrive after the deletion
        for name in first:
            self.remove(f"{prefix}/{name}")
            fault_point("deleting-arrays")
        self.remote.delete([each.key for each in self.remote.objects(prefix)])

    def touch(self, prefix: str) -> None:
        """Write a separate object. Rewriting the document could overwrite a commit if the request arrives late."""
        self.remote.put(f"{prefix}/{HEARTBEAT}", b"")

    def last_change(self, prefix: str) -> float | None:
        """Return the latest time in a listing."""
        times = [each.modified_ns for each in self.remote.objects(prefix)]
        known = [time for time in times if time is not None]
        return max(known) / 1e9 if known and len(known) == len(times) else None

    def clock(self, prefix: str) -> float | None:
        """Return the modification time of a new object."""
        key = f"{prefix}/.probe.{uuid.uuid4().hex}"
        self.remote.put(key, b"")
        try:
            about = self.remote.head(key)
        finally:
            self.remote.delete([key])
        return None if about is None or about.modified_ns is None else about.modified_ns / 1e9

    def _take_pending(self, prefix: str) -> list[Future[None]]:
        keys = [key for key in list(self._pending) if key.startswith(f"{prefix}/")]
        return [self._pending.pop(key) for key in keys]

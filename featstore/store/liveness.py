"""Identifies the process that writes an uncommitted part, and decides whether it is alive.

The document of an uncommitted part names its writer. Other processes delete the parts of dead writers, so they must
decide whether the writer of a part is alive:

1. A process is identified exactly by the boot id of its machine, its pid namespace, its pid and its start time. If boot
   id and namespace are those of the current process, the operating system has the answer, and the part of a killed
   writer is deleted at once.
2. In another container, on another machine, after a reboot, or on a system without these ids, neither a pid nor a host
   name identifies a process. For this case a writer has a heartbeat: every `HEARTBEAT_SECONDS` it updates the time of
   the last change in its part. A writer without a heartbeat for `SILENCE_SECONDS` is considered dead.

The age of a heartbeat is the difference of two times of the store itself: the time of the last change in the part, and
the time of a temporary object. The clocks of two machines are never compared.

A writer that was paused for longer finds its objects deleted when it tries to commit (see
`featstore.store.part_writer.PartInFlight`), so that a wrong decision costs work and never damages the store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from featstore.errors import DamagedPart, StoreError
from featstore.store.documents import read_document
from featstore.store.filesystem import Objects
from featstore.store.format import GROUP_DOCUMENT, HEARTBEAT, DamagedDocument, Writing, is_remains_of_part, seal

__all__ = ["HEARTBEAT_SECONDS", "SILENCE_SECONDS", "Heartbeat", "is_abandoned", "writing_document"]

HEARTBEAT_SECONDS = 300.0
SILENCE_SECONDS = 6 * 3600.0


def writing_document() -> bytes:
    """Encode the document of a part that this process starts to write."""
    return seal({"writing": asdict(replace(_this_process, began_at=datetime.now(UTC).isoformat()))})


def is_abandoned(objects: Objects, path: str, *, clock: Callable[[], float | None]) -> bool:
    """Whether a group without a commit record was left behind by a dead writer or a killed deletion.

    Parameters
    ----------
    clock : callable
        Returns the time of the store, as `Objects.clock` does; it is called only to check a heartbeat.
    """
    try:
        content = read_document(objects, path)
        if content is None:
            # The document is written before the arrays and deleted before them, so arrays without a document are left
            # from a killed deletion. The second read excludes a document written since the first.
            is_leftover = is_remains_of_part(path.rpartition("/")[2], objects.sizes(path))
            return is_leftover and objects.read(f"{path}/{GROUP_DOCUMENT}") is None
        if "writing" not in content:
            return False  # it was committed after the caller listed it
        writer = Writing.from_json(content["writing"])
    except (DamagedPart, DamagedDocument):
        return False  # `verify --repair` handles the damage
    alive = _is_alive(writer)
    if alive is not None:
        return not alive
    now, last = clock(), objects.last_change(path)
    return now is not None and last is not None and now - last > SILENCE_SECONDS


def _is_alive(writer: Writing) -> bool | None:
    """Whether a process is alive; None if this process cannot decide it."""
    here = _this_process
    if writer.writer and writer.writer == here.writer:
        return True
    place = (here.boot_id, here.pid_namespace)
    if None in place or place != (writer.boot_id, writer.pid_namespace):
        return None
    try:
        os.kill(writer.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's process, whose start time may be hidden
    started = _process_started(writer.pid)
    return started is None or writer.process_started is None or started == writer.process_started


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() or None
    except OSError:
        return None


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _process_started(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process, which distinguishes reused pids; None if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[-1].split()
    return -1 if fields[0] in "ZX" else int(fields[19])  # a zombie does not write


class Heartbeat:
    """The heartbeat of one uncommitted part: a thread, from its construction until `stop`."""

    def __init__(self, objects: Objects, path: str) -> None:
        self._objects = objects
        self._path = path
        self._has_beaten = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Update the time of the last change in the part periodically. A failure is ignored until the next beat."""
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._has_beaten = True
            with contextlib.suppress(OSError, StoreError):
                self._objects.touch(self._path)

    def stop(self) -> None:
        """Stop the heartbeat and delete its object. Returns when no beat is in flight."""
        self._stopped.set()
        self._thread.join()
        if self._has_beaten and self._objects.root is None:
            with contextlib.suppress(StoreError):  # a remaining object is harmless
                self._objects.remove(f"{self._path}/{HEARTBEAT}")


def _identify() -> Writing:
    pid = os.getpid()
    return Writing(
        host=socket.gethostname(),
        pid=pid,
        process_started=_process_started(pid),
        began_at="",
        writer=secrets.token_hex(16),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
    )


_this_process = _identify()


def _identify_after_fork() -> None:
    global _this_process  # noqa: PLW0603 - a forked process is another writer
    _this_process = _identify()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_identify_after_fork)

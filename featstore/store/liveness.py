"""Which process writes a part that is not committed yet, and whether it still lives.

The document of an in-flight part names its writer. Another process that finds such a part must know whether the writer
lives, for it deletes what dead writers left:

1. A process is identified exactly by the boot of its machine, its namespace of process ids, its id there and the moment
   it started. Where boot and namespace are also those of the process that asks, the system knows the answer, and a part
   of a killed writer is deleted at once.
2. Anywhere else, in another container, on another machine, after a reboot or on a system that does not tell, a process
   id means nothing and neither does a host name. There the writer shows that it lives: every `HEARTBEAT_SECONDS` it
   renews the time of the last change in its part. A writer that is silent for `SILENCE_SECONDS` is dead.

Silence is the difference of two times that the store itself gives: that of the last change in the part, and that of an
object which is made for the question. The clocks of two machines are never compared.

A writer that was paused for longer than that and wakes up finds its objects gone when it is about to commit (see
`featstore.store.part_writer.PartInFlight`), so that a wrong verdict costs work and never a sound store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
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
    """The document of a part that this process begins to write."""
    return seal({"writing": asdict(replace(_process.identity, began_at=datetime.now(UTC).isoformat()))})


def is_abandoned(objects: Objects, path: str, *, clock: Callable[[], float | None]) -> bool:
    """Whether a group without a commit record is what a dead writer, or a killed deletion, left of a part.

    Parameters
    ----------
    clock : callable
        Gives the time of the store, as `Objects.clock` does; it is called where a heartbeat must be judged.
    """
    try:
        content = read_document(objects, path)
        if content is None:
            # A writer's document comes before its arrays, and goes before them: arrays without a document are what a
            # killed deletion left. One may have been put since it was looked for.
            left = is_remains_of_part(path.rpartition("/")[2], objects.sizes(path))
            return left and objects.read(f"{path}/{GROUP_DOCUMENT}") is None
        if "writing" not in content:
            return False  # it was committed after the look that took it for an orphan
        writer = Writing.from_json(content["writing"])
    except (DamagedPart, DamagedDocument):
        return False  # `verify --repair` decides about damage
    alive = _is_alive(writer)
    return not alive if alive is not None else _is_silent(objects, path, clock())


def _is_alive(writer: Writing) -> bool | None:
    """Whether a process lives; None where this one cannot know."""
    here = _process.identity
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
        return True  # somebody else's process, whose start may be hidden
    started = _process_started(writer.pid)
    return started is None or writer.process_started is None or started == writer.process_started


def _is_silent(objects: Objects, path: str, now: float | None) -> bool:
    last = objects.last_change(path)
    return now is not None and last is not None and now - last > SILENCE_SECONDS


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
    """Clock ticks from boot to the start of a process, where the system tells: a number for a pid used twice."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[-1].split()
    return -1 if fields[0] in "ZX" else int(fields[19])  # a zombie writes no more


@dataclass(eq=False)
class Heartbeat:
    """Shows that the writer of one in-flight part lives, from when it is made until `stop`.

    One thread of the process beats for all of its parts. A part that is committed sooner than the first beat costs
    nothing.
    """

    objects: Objects
    path: str
    _beats: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def __post_init__(self) -> None:
        _process.pulse.add(self)

    def beat(self) -> None:
        """Renew the time of the last change in the part; a server that does not answer is asked again next time."""
        with self._lock:
            if not self._stopped:
                self._beats += 1
                with contextlib.suppress(OSError, StoreError):
                    self.objects.touch(self.path)

    def stop(self) -> None:
        """Beat no more, and leave nothing of it behind; returns when no beat is in flight."""
        _process.pulse.discard(self)
        with self._lock:
            self._stopped = True
            if self._beats and self.objects.root is None:
                with contextlib.suppress(StoreError):  # left behind it harms nothing
                    self.objects.remove(f"{self.path}/{HEARTBEAT}")


class _Pulse:
    """The thread that beats, while there is a part to beat for."""

    def __init__(self) -> None:
        self._hearts: set[Heartbeat] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, heart: Heartbeat) -> None:
        with self._changed:
            self._hearts.add(heart)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()

    def discard(self, heart: Heartbeat) -> None:
        with self._changed:
            self._hearts.discard(heart)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._hearts, timeout=HEARTBEAT_SECONDS)
                if not self._hearts:
                    self._thread = None
                    return
                hearts = tuple(self._hearts)
            for heart in hearts:
                heart.beat()


class _Process:
    """What this process is to others, and its heartbeat."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.pulse = _Pulse()
        self.identity = Writing(
            host=socket.gethostname(),
            pid=pid,
            process_started=_process_started(pid),
            began_at="",
            writer=secrets.token_hex(16),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
        )


_process = _Process()


def _begin_as_fork() -> None:
    global _process  # noqa: PLW0603 - a forked process is another writer, and has none of the threads
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_as_fork)

"""One process of this machine for each device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from featstore.extract.workers.engine import EncoderRequest
from featstore.extract.workers.messages import Event, Failed, Gone, Message, Quit
from featstore.extract.workers.worker import Worker, WorkerSettings
from featstore.system import cores, inheriting

__all__ = ["Processes"]

_QUIT_WITHIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    process: SpawnProcess
    connection: Connection


class Processes:
    """A fleet of processes, started afresh: a fork would inherit the threads of torch in whatever state they are.

    Parameters
    ----------
    request : EncoderRequest
    devices : sequence of str
        One for each worker; a device may be there twice.
    """

    def __init__(self, request: EncoderRequest, *, devices: Sequence[str]) -> None:
        self._request = request
        self._devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, _Running] = {}

    @property
    def size(self) -> int:
        """One for each device."""
        return len(self._devices)

    def start(self, worker: int) -> None:
        """Start a process."""
        settings = WorkerSettings(device=self._devices[worker], cores=max(1, cores() // self.size))
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._request, settings), name=f"featstore {settings.device}", daemon=True
        )
        with inheriting(threads=settings.cores):
            process.start()
        theirs.close()  # the child's end is the child's alone: when it dies, ours says so
        self._running[worker] = _Running(process=process, connection=ours)

    def tell(self, worker: int, message: Message) -> None:
        """Send through the pipe."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._running[worker].connection.send(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait for any pipe."""
        workers = {running.connection: worker for worker, running in self._running.items()}
        return [
            (workers[connection], self._event(workers[connection], connection))
            for connection in wait(list(workers))
            if isinstance(connection, Connection)
        ]

    def close(self) -> None:
        """Ask them to end; kill those that do not."""
        for worker in self._running:
            self.tell(worker, Quit())
        limit = time.monotonic() + _QUIT_WITHIN_SECONDS
        try:
            for running in self._running.values():
                _drain(running, until=limit)
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.join()
                running.connection.close()
            self._running.clear()

    def _event(self, worker: int, connection: Connection) -> Event:
        try:
            event: Event = connection.recv()
            return event
        except (EOFError, OSError):
            return self._gone(worker)
        except Exception as error:  # noqa: BLE001 - what cannot be unpickled here is told as it stands
            return Failed(error=error)

    def _gone(self, worker: int) -> Gone:
        running = self._running.pop(worker)
        running.connection.close()
        running.process.join()
        code = running.process.exitcode or 0
        device = self._devices[worker]
        if code == -signal.SIGKILL:
            return Gone(
                why=f"the process for {device} was killed (SIGKILL)",
                advice="the system kills when its memory runs out: fewer devices, or smaller --batch-seconds and "
                "--workers, take less",
            )
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return Gone(
            why=f"the process for {device} died ({how})",
            advice="the encoder, its driver or a decoder crashed: --device with one device shows what it says",
        )


def _drain(running: _Running, *, until: float) -> None:
    """Let a process end; take what it says meanwhile, for a full pipe would hold it up."""
    with suppress(EOFError, OSError):
        while running.connection.poll(max(0.0, until - time.monotonic())):
            running.connection.recv_bytes()


# --- in the process ---------------------------------------------------------------------------------------------------


def _serve(connection: Connection, request: EncoderRequest, settings: WorkerSettings) -> None:
    """A worker's life. Its stdout is its parent's stderr: an encoder may print, and a command may say JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    sending = threading.Lock()

    def say(event: Event) -> None:
        with sending:
            connection.send(event)

    worker = Worker(request, settings, say=say)
    threading.Thread(target=_listen, args=(connection, worker), name="listen", daemon=True).start()
    worker.run()


def _listen(connection: Connection, worker: Worker) -> None:
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # the parent has died: there is nobody to encode for
        worker.tell(message)
        if isinstance(message, Quit) and not worker.is_encoding:
            os._exit(0)  # it may be loading weights, for minutes

"""Workers that are processes of this machine, one for each device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from featstore.extract.engine import EncoderRequest
from featstore.extract.worker import CoordinatorGone, Died, Event, Failed, Message, WorkerSettings, work
from featstore.extract.workers import END_WITHIN_SECONDS
from featstore.system import cores, inheriting

__all__ = ["Processes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    process: SpawnProcess
    connection: Connection


class Processes:
    """Workers that are spawned processes: a fork would inherit torch's threads in an undefined state.

    Each has a pipe of its own: a queue of `multiprocessing` that all share is left locked by a process that is killed
    while it reads from it.

    Parameters
    ----------
    request : EncoderRequest
    devices : sequence of str
        One for each worker; several workers may have the same.
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
            target=_work_in_process,
            args=(theirs, self._request, settings),
            name=f"featstore {settings.device}",
            daemon=True,
        )
        with inheriting(threads=settings.cores):
            process.start()
        theirs.close()  # only the child has it now, so that the pipe ends when the child does
        self._running[worker] = _Running(process=process, connection=ours)

    def send(self, worker: int, message: Message) -> None:
        """Send through the pipe."""
        with suppress(OSError):
            self._running[worker].connection.send(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait for any pipe."""
        workers = {running.connection: worker for worker, running in self._running.items()}
        ready = [each for each in wait(list(workers)) if isinstance(each, Connection)]
        return [(workers[connection], self._event(workers[connection], connection)) for connection in ready]

    def close(self, *, loading: Collection[int]) -> None:
        """Close the pipes, which ends the processes, and kill those that do not end in time."""
        limit = time.monotonic() + END_WITHIN_SECONDS
        for running in self._running.values():
            running.connection.close()
        try:
            for worker, running in self._running.items():
                if worker not in loading:
                    running.process.join(max(0.0, limit - time.monotonic()))
        finally:
            for running in self._running.values():
                running.process.kill()
                running.process.join()
            self._running.clear()

    def _event(self, worker: int, connection: Connection) -> Event:
        try:
            event: Event = connection.recv()
            return event
        except (EOFError, OSError):
            return self._died(worker)
        except Exception as error:  # noqa: BLE001 - what cannot be unpickled here is raised as it is
            return Failed(error=error)

    def _died(self, worker: int) -> Died:
        running = self._running.pop(worker)
        running.connection.close()
        running.process.join()
        code = running.process.exitcode or 0
        device = self._devices[worker]
        if code == -signal.SIGKILL:
            return Died(
                why=f"the process for {device} was killed (SIGKILL)",
                advice="the system kills when its memory runs out: fewer devices, or smaller --batch-seconds and "
                "--workers, take less",
            )
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return Died(
            why=f"the process for {device} died ({how})",
            advice="the encoder, its driver or a decoder crashed: --device with one device shows its messages",
        )


class _Pipe:
    """The link of a worker that is a process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, event: Event) -> None:
        try:
            with self._sending:
                self._connection.send(event)
        except OSError as error:
            raise CoordinatorGone from error

    def receive(self, timeout: float | None = None) -> Message:
        try:
            if not self._connection.poll(timeout):
                raise TimeoutError
            message: Message = self._connection.recv()
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            raise CoordinatorGone from error
        return message


def _work_in_process(connection: Connection, request: EncoderRequest, settings: WorkerSettings) -> None:
    """Ctrl-C is left to the coordinator. Stdout is its stderr: an encoder may print where a command prints JSON."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    threading.Thread(target=_exit_with_the_coordinator, daemon=True).start()
    work(_Pipe(connection), request, settings)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and the teardown of torch takes 0.4 s


def _exit_with_the_coordinator() -> None:
    """Exit at once when its process is dead: loading weights or encoding a batch may take minutes."""
    if (coordinator := multiprocessing.parent_process()) is not None:
        coordinator.join()
        os._exit(1)

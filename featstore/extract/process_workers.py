"""Workers as processes of this machine, one per device."""

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
    """Workers as spawned processes; a fork would inherit torch's threads in an undefined state.

    Each worker has its own pipe: a shared `multiprocessing` queue stays locked if a process is killed while it reads.

    Parameters
    ----------
    request : EncoderRequest
    devices : sequence of str
        One per worker; several workers may share a device.
    """

    def __init__(self, request: EncoderRequest, *, devices: Sequence[str]) -> None:
        self._request = request
        self._devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._running: dict[int, _Running] = {}

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self._devices)

    def start(self, worker: int) -> None:
        """Start the process of a worker."""
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
        theirs.close()  # only the child keeps it, so that the pipe closes when the child exits
        self._running[worker] = _Running(process=process, connection=ours)

    def send(self, worker: int, message: Message) -> None:
        """Send a message through the worker's pipe."""
        with suppress(OSError):
            self._running[worker].connection.send(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait for events on any pipe."""
        workers = {running.connection: worker for worker, running in self._running.items()}
        ready = [each for each in wait(list(workers)) if isinstance(each, Connection)]
        return [(workers[connection], self._event(workers[connection], connection)) for connection in ready]

    def close(self, *, loading: Collection[int]) -> None:
        """Close the pipes, which ends the processes, and kill processes that do not exit in time."""
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
        except Exception as error:  # noqa: BLE001 - an event that cannot be unpickled is raised as an error
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
                advice="the system kills processes when memory runs out: use fewer devices, or smaller --batch-seconds "
                "and --workers",
            )
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
        return Died(
            why=f"the process for {device} died ({how})",
            advice="the encoder, its driver or a decoder crashed: run with one --device to see its messages",
        )


class _Pipe:
    """Link of a worker process to its coordinator."""

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
    """Run a worker. Ctrl-C is left to the coordinator. Stdout goes to stderr: commands print JSON on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    threading.Thread(target=_exit_with_the_coordinator, daemon=True).start()
    work(_Pipe(connection), request, settings)
    sys.stderr.flush()
    os._exit(0)  # skips the teardown of torch, which takes 0.4 s


def _exit_with_the_coordinator() -> None:
    """Exit at once when the coordinator's process has exited: loading weights or encoding may take minutes."""
    if (coordinator := multiprocessing.parent_process()) is not None:
        coordinator.join()
        os._exit(1)

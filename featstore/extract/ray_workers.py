"""Workers on the nodes of a Ray cluster, or of a cluster that is started here. The only module that imports ray.

A worker is an actor. Ray places it on a node and reports its death; it takes shards from the same queue as a process of
this machine (`workers.ShardQueue`). Its events are the items of one generator call, which returns when the worker ends;
each message to the worker is another, concurrent call.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from featstore.errors import RemoteError, UsageError, WorkerError
from featstore.extract.engine import EncoderRequest
from featstore.extract.worker import CoordinatorGone, Died, Event, Failed, Message, WorkerSettings, work
from featstore.extract.workers import END_WITHIN_SECONDS

__all__ = ["RayWorkers", "Seats", "connected", "seats"]

_CONNECT_WITHIN_SECONDS = 10.0
_PLACED_WITHIN_SECONDS = 300.0
_LOOK_EVERY_SECONDS = 5.0
_CALLS_AT_A_TIME = 3  # the generator of events, a message, and the final call
_DEFAULT_CPUS = 4
_OBJECT_STORE_BYTES = 128 << 20  # only commit records pass through it; Ray's default is a third of the memory


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, ``auto`` or ``host:port``; None starts a cluster on this machine.

    An existing connection of the program (``ray.init``) is used and stays open.
    """
    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto"):
        _check_address(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UsageError(
            f"there is no Ray cluster at --ray-address {address}: `ray start --head` starts one on this machine; "
            "without --ray-address the run starts its own"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that the address answers: Ray itself would retry for minutes without a message."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--ray-address must be auto or host:port, such as 10.0.0.1:6379: got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_WITHIN_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at --ray-address {address} ({error}): see what `ray start --head` prints"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Number of workers that a cluster can run at once, and resources of each. Ray assigns the GPU of a worker."""

    count: int
    device: str
    cpus: int
    gpus: int


def seats(*, device: str, cpus_per_worker: int | None) -> Seats:
    """One worker per GPU of the cluster; without GPUs, or on the CPU, one per `cpus_per_worker` cores.

    Raises
    ------
    UsageError
        The cluster lacks the devices.
    """
    if device not in ("auto", "all", "cpu", "cuda"):
        raise UsageError(f"--engine ray takes --device auto, cpu, cuda or all (Ray assigns the GPUs): got {device!r}")
    nodes = [node["Resources"] for node in _alive_nodes()]
    gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
    if device in ("all", "cuda") and not gpus:
        raise UsageError(f"--device {device} needs a GPU, and the Ray cluster has none: omit it")
    if gpus and device != "cpu":
        cpus = cpus_per_worker or max(1, min(cores // count for count, cores in gpus))
        count = sum(min(count, cores // cpus) for count, cores in gpus)
        most = max(cores for _, cores in gpus)
        found = Seats(count=count, device="cuda", cpus=cpus, gpus=1)
    else:
        each = [int(node.get("CPU", 0)) for node in nodes]
        most = max(each, default=0)
        cpus = cpus_per_worker or max(1, min(_DEFAULT_CPUS, most))
        found = Seats(count=sum(cores // cpus for cores in each), device="cpu", cpus=cpus, gpus=0)
    if not found.count:
        raise UsageError(f"no node of the Ray cluster has {found.cpus} cores: --cpus-per-worker must be at most {most}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Location of an actor. Both fields are empty until the actor has started."""

    host: str = ""
    node: str = ""


@dataclass(slots=True, kw_only=True)
class _Running:
    actor: Any
    events: Any
    place: _Place = field(default_factory=_Place)


class RayWorkers:
    """Workers as Ray actors.

    Parameters
    ----------
    request : EncoderRequest
    seats : Seats
    """

    def __init__(self, request: EncoderRequest, *, seats: Seats) -> None:
        self._request = request
        self._seats = seats
        self._running: dict[int, _Running] = {}
        self._last_start = time.monotonic()
        self._actor_class = ray.remote(_Actor).options(
            num_cpus=seats.cpus,
            num_gpus=seats.gpus,
            scheduling_strategy="SPREAD",
            max_concurrency=_CALLS_AT_A_TIME,
            max_restarts=0,
        )

    @property
    def size(self) -> int:
        """Number of workers that the cluster could run at once when the run started."""
        return self._seats.count

    def start(self, worker: int) -> None:
        """Request an actor from Ray; it starts when a node has its resources free."""
        actor: Any = self._actor_class.remote(
            self._request, WorkerSettings(device=self._seats.device, cores=self._seats.cpus)
        )
        events = actor.events.options(num_returns="streaming").remote()
        self._running[worker] = _Running(actor=actor, events=events)
        self._last_start = time.monotonic()

    def send(self, worker: int, message: Message) -> None:
        """Send a message by calling the actor."""
        if worker in self._running:
            self._running[worker].actor.receive.remote(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        """Wait for the next item of any actor."""
        while True:
            workers = {running.events: worker for worker, running in self._running.items()}
            ready, _ = ray.wait(list(workers), num_returns=1, timeout=_LOOK_EVERY_SECONDS)
            found = [(workers[events], self._event(workers[events])) for events in ready]
            known = [(worker, event) for worker, event in found if event is not None]
            if known:
                return known
            self._check_placed()

    def close(self, *, loading: Collection[int]) -> None:
        """Ask the encoding actors to end; then kill all actors."""
        try:
            ending = [running.actor.end.remote() for worker, running in self._running.items() if worker not in loading]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=END_WITHIN_SECONDS)
        finally:
            for running in self._running.values():
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(running.actor)
            self._running.clear()

    def _event(self, worker: int) -> Event | None:
        """The next event of an actor; None for the first item, which is its location."""
        running = self._running[worker]
        try:
            item: Event | _Place = ray.get(next(running.events))
        except ray.exceptions.RayTaskError as error:
            return Failed(error=WorkerError(f"a Ray worker on {running.place.host} failed: {_last_line(error)}"))
        except (ray.exceptions.RayError, StopIteration) as error:
            del self._running[worker]
            return self._died(running.place, error)
        if isinstance(item, _Place):
            running.place = item
            return None
        return _with_host(item, host=running.place.host)

    def _died(self, place: _Place, error: BaseException) -> Died:
        if not place.host:
            return Died(
                why=f"a Ray worker could not start ({_last_line(error)})",
                advice="featstore and all that the encoder needs must be installed on every node",
            )
        if place.node not in {node["NodeID"] for node in _alive_nodes()}:
            return Died(why=f"a node of the Ray cluster ({place.host}) is gone", advice="other nodes may fail too")
        return Died(
            why=f"a Ray worker on {place.host} died",
            advice="the system kills processes when memory runs out (a larger --cpus-per-worker starts fewer workers); "
            "or the encoder, a driver or a decoder crashed (run with --engine local to see messages)",
        )

    def _check_placed(self) -> None:
        """Wait for resources that other programs use, up to a time limit."""
        if any(running.place.host for running in self._running.values()):
            return
        if time.monotonic() - self._last_start > _PLACED_WITHIN_SECONDS:
            what = f"{self._seats.cpus} cores" + (" and a GPU" if self._seats.gpus else "")
            raise WorkerError(
                f"no node of the Ray cluster has had {what} free for a worker in {_PLACED_WITHIN_SECONDS:.0f} s: "
                "`ray status` lists what uses them; committed shards are kept, and the same command resumes"
            )


def _with_host(event: Event, *, host: str) -> Event:
    """Add the node's name to remote errors: the node differs from the machine where the command was run."""
    if not isinstance(event, Failed) or not isinstance(event.error, RemoteError):
        return event
    return Failed(error=RemoteError(f"a Ray worker on {host}, with the environment of its node: {event.error}"))


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- in the actor -----------------------------------------------------------------------------------------------------


class _ActorLink:
    """Link of a worker, which runs in a thread of an actor."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None marks the end
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closed = threading.Event()

    def send(self, event: Event) -> None:
        if self._closed.is_set():
            raise CoordinatorGone
        self.events.put(event)

    def receive(self, timeout: float | None = None) -> Message:
        try:
            message = self.messages.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if self._closed.is_set():
            raise CoordinatorGone
        return message

    def close(self) -> None:
        self._closed.set()
        self.messages.put(None)  # wakes up `receive`


class _Actor:
    """A worker in a thread of a Ray actor, with up to three concurrent calls."""

    def __init__(self, request: EncoderRequest, settings: WorkerSettings) -> None:
        self._link = _ActorLink()
        self._thread = threading.Thread(target=self._work, args=(request, settings), name="worker", daemon=True)

    def events(self) -> Iterator[Event | _Place]:
        """Start the worker, and yield its location and then its events."""
        yield _Place(host=socket.gethostname(), node=ray.get_runtime_context().get_node_id())
        self._thread.start()
        while (event := self._link.events.get()) is not None:
            yield event

    def receive(self, message: Message) -> None:
        """Pass a message to the worker."""
        self._link.messages.put(message)

    def end(self) -> None:
        """Close the link, and wait until the worker has deleted uncommitted parts."""
        self._link.close()
        self._thread.join()

    def _work(self, request: EncoderRequest, settings: WorkerSettings) -> None:
        try:
            work(self._link, request, settings)
        finally:
            self._link.events.put(None)

"""Encoders on the nodes of a Ray cluster, or of one that is started here: the one door of ray.

A worker is an actor that holds one loaded encoder. It is given shards by the chief of `fleet`, as one process of this
machine is, and Ray says where it lives and whether it does. An actor's calls run one after another, so one call is
always under way: it brings what the actor is told, waits for what the actor has to say, and comes back.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from featstore.errors import RemoteError, UsageError, WorkerError
from featstore.extract.workers.engine import EncoderRequest
from featstore.extract.workers.messages import Event, Failed, Gone, Message, Quit
from featstore.extract.workers.worker import Worker, WorkerSettings

__all__ = ["RayWorkers", "Seats", "connected", "seats"]

_SAY_WITHIN_SECONDS = 0.5
_CONNECT_WITHIN_SECONDS = 10.0
_QUIT_WITHIN_SECONDS = 10.0
_ROOM_WITHIN_SECONDS = 300.0
_DEFAULT_CPUS = 4
_OBJECT_STORE_BYTES = 128 << 20  # Ray would take a third of the memory; what goes through it here are commit records


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be a driver of the cluster at `address`, ``auto`` or ``host:port``; without one, of a cluster started here.

    A program that has called ``ray.init`` keeps its connection.
    """
    if ray.is_initialized():
        yield
        return
    if address not in (None, "auto"):
        _check_somebody_answers(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UsageError(
            f"--ray-address {address} leads to no Ray cluster: `ray start --head` begins one on this machine, and "
            "without --ray-address one is started for the run"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_somebody_answers(address: str) -> None:
    """Ray itself tries for many minutes, and says nothing."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"--ray-address must be auto or host:port, such as 10.0.0.1:6379: got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_WITHIN_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at --ray-address {address} ({error}): it is where `ray start --head` listens"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """How many workers a cluster has room for, and what each takes. `device` is of the worker: Ray picks its GPU."""

    count: int
    device: str
    cpus: int
    gpus: int


def seats(*, device: str, cpus_per_worker: int | None) -> Seats:
    """One worker for each GPU of the cluster; without GPUs, or on the CPU, one for each `cpus_per_worker` cores.

    Raises
    ------
    UsageError
        The cluster has no such devices.
    """
    if device not in ("auto", "all", "cpu", "cuda"):
        raise UsageError(
            f"--engine ray takes --device auto, cpu, cuda or all, for Ray gives each worker its GPU: got {device!r}"
        )
    nodes = [node["Resources"] for node in _alive_nodes()]
    gpus = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
    if device in ("all", "cuda") and not gpus:
        raise UsageError(f"--device {device} takes the GPUs of the Ray cluster, and it has none: leave it out")
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
        raise UsageError(f"no node of the Ray cluster has {found.cpus} cores: --cpus-per-worker takes {most} at most")
    return found


class RayWorkers:
    """A fleet of actors.

    Parameters
    ----------
    request : EncoderRequest
    seats : Seats
    """

    def __init__(self, request: EncoderRequest, *, seats: Seats) -> None:
        self._request = request
        self._seats = seats
        self._actors: dict[int, _Held] = {}
        self._last_answer = time.monotonic()
        self._actor_class = ray.remote(_Actor).options(
            num_cpus=seats.cpus, num_gpus=seats.gpus, scheduling_strategy="SPREAD", max_restarts=0
        )

    @property
    def size(self) -> int:
        """As many as the cluster had room for."""
        return self._seats.count

    def start(self, worker: int) -> None:
        """Ask Ray for an actor; it comes when there is room."""
        settings = WorkerSettings(device=self._seats.device, cores=self._seats.cpus)
        actor = self._actor_class.remote(self._request, settings)
        self._actors[worker] = _Held(actor=actor)
        self._last_answer = time.monotonic()

    def tell(self, worker: int, message: Message) -> None:
        """Keep the message for the actor's next call."""
        if worker in self._actors:
            self._actors[worker].outbox.append(message)

    def events(self) -> Sequence[tuple[int, Event]]:
        """Make calls and wait for what they bring back."""
        while True:
            calls = {self._call(held): worker for worker, held in self._actors.items()}
            done, _ = ray.wait(list(calls), num_returns=1, timeout=_SAY_WITHIN_SECONDS)
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            found = [(calls[call], event) for call in {*done, *more} for event in self._answer(calls[call])]
            if found:
                return found
            self._check_there_is_room()

    def close(self) -> None:
        """Ask them to end; kill them all."""
        try:
            leaving = [held.actor.leave.remote() for held in self._actors.values() if held.host]
            if leaving:
                ray.wait(leaving, num_returns=len(leaving), timeout=_QUIT_WITHIN_SECONDS + 2 * _SAY_WITHIN_SECONDS)
        finally:
            for held in self._actors.values():
                with contextlib.suppress(ray.exceptions.RayError):
                    ray.kill(held.actor)
            self._actors.clear()

    def _call(self, held: _Held) -> Any:
        if held.call is None:
            held.call = held.actor.exchange.remote(tuple(held.outbox))
            held.outbox.clear()
        return held.call

    def _answer(self, worker: int) -> tuple[Event, ...]:
        held = self._actors[worker]
        try:
            answer: _Answer = ray.get(held.call)
        except ray.exceptions.RayTaskError as error:
            told = str(error).strip().splitlines()[-1]
            return (Failed(error=WorkerError(f"a Ray worker on {held.host} failed: {told}")),)
        except ray.exceptions.RayError as error:
            del self._actors[worker]
            return (self._gone(held, error),)
        held.call, held.host, held.node = None, answer.host, answer.node
        self._last_answer = time.monotonic()
        return tuple(_placed(event, host=answer.host) for event in answer.events)

    def _gone(self, held: _Held, error: ray.exceptions.RayError) -> Gone:
        if not held.host:
            return Gone(
                why=f"a Ray worker could not begin ({_last_line(error)})",
                advice="featstore and all that the encoder needs must be installed on every node",
            )
        if held.node not in {node["NodeID"] for node in _alive_nodes()}:
            return Gone(why=f"a node of the Ray cluster ({held.host}) is gone", advice="other nodes may be unwell too")
        return Gone(
            why=f"a Ray worker on {held.host} died",
            advice="the system kills when its memory runs out, and a larger --cpus-per-worker makes fewer workers; "
            "else its encoder, a driver or a decoder crashed, and --engine local shows what it says",
        )

    def _check_there_is_room(self) -> None:
        """Wait for room, and for what other programs hold, but not for ever."""
        if any(held.host for held in self._actors.values()):
            return
        if time.monotonic() - self._last_answer > _ROOM_WITHIN_SECONDS:
            what = f"{self._seats.cpus} cores" + (" and a GPU" if self._seats.gpus else "")
            raise WorkerError(
                f"no node of the Ray cluster has had {what} free for a worker in {_ROOM_WITHIN_SECONDS:.0f} s: "
                "`ray status` tells who holds them; what is committed is kept, and the same command goes on from there"
            )


@dataclass(slots=True, kw_only=True)
class _Held:
    """An actor, what it is to be told, the call under way, and where it is; that is not known before it answers."""

    actor: Any
    outbox: list[Message] = field(default_factory=list)
    call: Any = None
    host: str = ""
    node: str = ""


def _placed(event: Event, *, host: str) -> Event:
    """Say where it is that a server does not let a worker in, or cannot be reached: not where the command was run."""
    if not isinstance(event, Failed) or not isinstance(event.error, RemoteError):
        return event
    return Failed(error=RemoteError(f"a Ray worker on {host}, with the environment of its node: {event.error}"))


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# --- in the actor -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    events: tuple[Event, ...]
    host: str
    node: str


class _Actor:
    """A worker in a thread of a Ray actor, so that calls are answered while it encodes."""

    def __init__(self, request: EncoderRequest, settings: WorkerSettings) -> None:
        self._said: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._worker = Worker(request, settings, say=self._said.put)
        self._thread = threading.Thread(target=self._worker.run, name="worker", daemon=True)
        self._thread.start()

    def exchange(self, messages: Sequence[Message]) -> _Answer:
        """Tell the worker, and bring back what it says, after half a second at most."""
        for message in messages:
            self._worker.tell(message)
        return _Answer(
            events=tuple(self._events()), host=socket.gethostname(), node=ray.get_runtime_context().get_node_id()
        )

    def leave(self) -> None:
        """Give up what is not committed; return when that is done."""
        self._worker.tell(Quit())
        if self._worker.is_encoding:
            self._thread.join(_QUIT_WITHIN_SECONDS)

    def _events(self) -> Iterator[Event]:
        with contextlib.suppress(queue.Empty):
            yield self._said.get(timeout=_SAY_WITHIN_SECONDS)
            while True:
                yield self._said.get_nowait()

"""Engines: where the shards of a run are encoded. In this process, in one process for each device, or on Ray.

A run plans, an engine encodes, and the run writes down what came of it. Each engine is imported when it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from featstore.errors import UsageError
from featstore.extract.workers.engine import EncoderRequest, Engine

__all__ = ["RAY_SETTINGS", "EncoderRequest", "Engine", "open_engine"]

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, and warns of
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # of a worker that dies it tells in a paragraph, and a run in a line
}
"""Of the environment, where it says nothing else; Ray reads some of them when it is imported."""

_ATTEMPTS = 2
_ATTEMPTS_ON_RAY = 3  # a node that is taken away is nobody's fault


@contextmanager
def open_engine(
    request: EncoderRequest,
    *,
    device: str = "auto",
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    cpus_per_worker: int | None = None,
    local_rank: int | None = None,
) -> Iterator[Engine]:
    """Open an engine, to be handed to `featstore.extract.extract_task`; its workers end when it is left.

    Parameters
    ----------
    request : EncoderRequest
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``: this process encodes. ``all``, or several with commas between, such
        as ``cuda:0,cuda:1``: a process for each.
    engine : str
        ``local``: this machine. ``ray``: a Ray cluster, with a worker for each GPU, or on each `cpus_per_worker` cores
        where it has none or `device` is ``cpu``.
    ray_address : str, optional
        ``auto`` or ``host:port``; None starts a cluster on this machine.
    cpus_per_worker : int, optional
        Cores of a Ray worker; None picks.
    local_rank : int, optional
        Number of this process among those of its machine, where a scheduler has started several: its GPU.

    Raises
    ------
    UsageError
        A device or a cluster is not there.
    """
    if engine == "ray":
        with _on_ray(request, device=device, address=ray_address, cpus_per_worker=cpus_per_worker) as opened:
            yield opened
        return
    if ray_address is not None or cpus_per_worker is not None:
        raise UsageError("--ray-address and --cpus-per-worker go with --engine ray")
    from featstore.encoders.devices import pick_devices

    devices = pick_devices(device, local_rank=local_rank)
    if len(devices) == 1:
        yield _local(request, device=devices[0])
        return
    from featstore.extract.workers.coordinator import FleetEngine
    from featstore.extract.workers.processes import Processes

    with FleetEngine(Processes(request, devices=devices), attempts=_ATTEMPTS) as several:
        yield several


@contextmanager
def _on_ray(
    request: EncoderRequest, *, device: str, address: str | None, cpus_per_worker: int | None
) -> Iterator[Engine]:
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from featstore.extract.workers.ray_workers import RayWorkers, connected, seats
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs {error.name}, which is not installed: pip install 'featstore[ray]'"
        ) from error
    from featstore.extract.workers.coordinator import FleetEngine

    with connected(address):
        workers = RayWorkers(request, seats=seats(device=device, cpus_per_worker=cpus_per_worker))
        with FleetEngine(workers, attempts=_ATTEMPTS_ON_RAY) as engine:
            yield engine


def _local(request: EncoderRequest, *, device: str) -> Engine:
    from featstore.encoders.devices import meant_by_cuda
    from featstore.extract.workers.local import LocalEngine

    with meant_by_cuda(device):
        return LocalEngine(request.load(), device=device)

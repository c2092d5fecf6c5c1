"""Chooses and opens an engine: this process, one process for each device, or workers on Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from featstore.errors import UsageError, missing_extra
from featstore.extract.engine import EncoderRequest, Engine
from featstore.extract.job import DeviceEncoder

__all__ = ["RAY_SETTINGS", "open_engine"]

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; suppresses its warning
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # replaces Ray's paragraph about a dead worker by the run's single line
}
"""Defaults of environment variables. Ray reads some of them on import."""

_ATTEMPTS = 2
_ATTEMPTS_ON_RAY = 3  # a node may be preempted


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
    """Open an engine for `featstore.extract.plan_tasks`; leaving the context ends its workers.

    Parameters
    ----------
    request : EncoderRequest
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1``: encode in this process. ``all``, or a comma-separated list such as
        ``cuda:0,cuda:1``: one process per device.
    engine : str
        ``local``: this machine. ``ray``: a Ray cluster with one worker per GPU, or per `cpus_per_worker` cores if it
        has no GPU or `device` is ``cpu``.
    ray_address : str, optional
        ``auto`` or ``host:port``; None starts a cluster on this machine.
    cpus_per_worker : int, optional
        Cores of a Ray worker; chosen automatically by default.
    local_rank : int, optional
        Rank of this process on its machine, set by a scheduler: selects the GPU.

    Raises
    ------
    UsageError
        The device or the cluster does not exist.
    """
    if engine == "ray":
        with _on_ray(request, device=device, address=ray_address, cpus_per_worker=cpus_per_worker) as opened:
            yield opened
        return
    if ray_address is not None or cpus_per_worker is not None:
        raise UsageError("--ray-address and --cpus-per-worker require --engine ray")
    from featstore.encoders.devices import pick_devices

    devices = pick_devices(device, local_rank=local_rank)
    if len(devices) == 1:
        from featstore.encoders.devices import meant_by_cuda

        with meant_by_cuda(devices[0]):
            encoder = request.load()
        yield DeviceEncoder(encoder, device=devices[0])
        return
    from featstore.extract.process_workers import Processes
    from featstore.extract.workers import WorkersEngine

    with WorkersEngine(Processes(request, devices=devices), attempts=_ATTEMPTS) as several:
        yield several


@contextmanager
def _on_ray(
    request: EncoderRequest, *, device: str, address: str | None, cpus_per_worker: int | None
) -> Iterator[Engine]:
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from featstore.extract.ray_workers import RayWorkers, connected, seats
    except ModuleNotFoundError as error:
        raise missing_extra("--engine ray", error, "ray") from error
    from featstore.extract.workers import WorkersEngine

    with connected(address):
        workers = RayWorkers(request, seats=seats(device=device, cpus_per_worker=cpus_per_worker))
        with WorkersEngine(workers, attempts=_ATTEMPTS_ON_RAY) as engine:
            yield engine

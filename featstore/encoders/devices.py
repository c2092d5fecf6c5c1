"""Devices by the names that `--device` takes."""

from __future__ import annotations

import torch

from featstore.encoders.running import pick_device
from featstore.errors import UsageError

__all__ = ["pick_devices", "settle_on"]


def pick_devices(asked: str, *, local_rank: int | None = None) -> tuple[str, ...]:
    """Devices to run on: ``all`` is every CUDA device; several have commas between, and ``cpu`` may be there twice.

    Raises
    ------
    UsageError
        A device is not there, is named twice, or is of another kind than its neighbours.
    """
    if asked == "all":
        count = torch.cuda.device_count()
        if not count:
            raise UsageError("--device all takes every CUDA device, and this machine has none: leave it out")
        return tuple(f"cuda:{number}" for number in range(count))
    names = tuple(name.strip() for name in asked.split(","))
    if len(names) == 1:
        return (pick_device(names[0], local_rank=local_rank),)
    if "auto" in names or "all" in names:
        raise UsageError(f"--device takes auto and all alone: got {asked!r}")
    devices = tuple(f"cuda:{torch.device(pick_device(name)).index or 0}" if name != "cpu" else name for name in names)
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError(
            f"--device takes devices of one kind, for a CPU and a GPU differ in the last bits: got {asked!r}"
        )
    twice = sorted({device for device in devices if device != "cpu" and devices.count(device) > 1})
    if twice:
        raise UsageError(f"--device names {twice[0]} twice: one process takes the whole GPU")
    return devices


def settle_on(device: str, *, threads: int) -> None:
    """Let all that this process does with torch be done there: one process for each device."""
    torch.set_num_threads(threads)
    if ":" in device:
        torch.cuda.set_device(device)  # else each would hold some of the first GPU

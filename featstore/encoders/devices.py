"""Devices by the names that `--device` takes, moving an encoder to one, and its float32 precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featstore.errors import EncoderError, UsageError

__all__ = [
    "cpu_multiplies_bfloat16",
    "float32_products",
    "gpu_multiplies_bfloat16",
    "idle_gpus",
    "meant_by_cuda",
    "move",
    "pick_device",
    "pick_devices",
    "settle_on",
]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While it lasts, products are rounded where `precision` is ``"tf32"``, and nowhere else; cuDNN would by itself."""
    before = _Settings.now()
    rounds = precision == "tf32"
    torch.set_float32_matmul_precision("high" if rounds else "highest")
    torch.backends.cudnn.allow_tf32 = rounds
    for operations in _newer():
        operations.fp32_precision = "tf32" if rounds else "ieee"
    try:
        yield
    finally:
        before.restore()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """``older`` is None where they were set by the newer names, and the older ones refuse to tell."""

    older: tuple[str, bool] | None
    newer: tuple[str, ...]

    @classmethod
    def now(cls) -> _Settings:
        newer = tuple(operations.fp32_precision for operations in _newer())
        try:
            return cls(older=(torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32), newer=newer)
        except RuntimeError:
            return cls(older=None, newer=newer)

    def restore(self) -> None:
        if self.older is not None:
            torch.set_float32_matmul_precision(self.older[0])
            torch.backends.cudnn.allow_tf32 = self.older[1]
            return
        for operations, was in zip(_newer(), self.newer, strict=True):
            operations.fp32_precision = was


def _newer() -> tuple[Any, ...]:
    """What has a precision of its own by the newer names; nothing before PyTorch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return ()
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def move(module: nn.Module, device: torch.device) -> None:
    """Move parameters, buffers, and tensors that are plain attributes or lie in a dictionary that is one.

    ``Module.to`` leaves the latter behind. Loading runs every encoder once on the CPU, and what it keeps of that for
    inputs of the same length, such as a table of positions, would be found there again: rotary embeddings of
    transformers' conformers are kept so.
    """
    module.to(device)
    for each in module.modules():
        for name, value in vars(each).items():
            if name not in _OF_ANY_MODULE:
                vars(each)[name] = _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict and any(isinstance(kept, Tensor) for kept in value.values()):
        return {key: _moved(kept, device) for key, kept in value.items()}
    return value


def pick_device(asked: str, *, local_rank: int | None = None) -> str:
    """The device to run on: ``auto`` is a GPU where there is one.

    Where there are several, ``auto`` and ``cuda`` are that of `local_rank`: else all processes of a machine would take
    the first.

    Raises
    ------
    UsageError
        The device is not there, or torch cannot use it.
    """
    if asked == "auto":
        return gpu_of(local_rank, torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}")
    if device.type == "cuda" and (device.index or 0) >= (count := _gpus_for(asked)):
        raise UsageError(f"--device {asked} is not there: this machine has {count} CUDA devices")
    return gpu_of(local_rank, count) if asked == "cuda" else asked


def gpu_of(local_rank: int | None, n_gpus: int) -> str:
    """The GPU of a process among those of its machine; a scheduler may show each process its own GPU alone.

    >>> gpu_of(None, 8), gpu_of(3, 8), gpu_of(3, 1), gpu_of(5, 4)
    ('cuda', 'cuda:3', 'cuda', 'cuda:1')
    """
    return "cuda" if local_rank is None or n_gpus < 2 else f"cuda:{local_rank % n_gpus}"


def pick_devices(asked: str, *, local_rank: int | None = None) -> tuple[str, ...]:
    """Devices to run on: ``all`` is every CUDA device; several have commas between, and ``cpu`` may be there twice.

    Raises
    ------
    UsageError
        A device is not there, is named twice, or is of another kind than its neighbours.
    """
    if asked == "all":
        count = _gpus_for(asked)
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


def _gpus_for(asked: str) -> int:
    """CUDA devices. The driver's own library counts them, whether or not this torch can use them."""
    count = torch.cuda.device_count()
    if count and not torch.cuda.is_available():
        raise UsageError(
            f"--device {asked}: PyTorch {torch.__version__} cannot use the GPUs of this machine, mostly because their "
            f"driver is older than its CUDA {torch.version.cuda}: update the driver, or install the PyTorch for the "
            "CUDA that `nvidia-smi` tells"
        )
    return count


def idle_gpus(device: str) -> int:
    """GPUs of this machine beside the one that a run took by itself; none where it was told which."""
    return max(0, torch.cuda.device_count() - 1) if device == "cuda" else 0


def settle_on(device: str, *, threads: int) -> None:
    """Let all that this process does with torch be done there: one process for each device."""
    torch.set_num_threads(threads)
    if ":" in device:
        with _refusal_told(device):
            torch.cuda.set_device(device)  # else each would hold some of the first GPU


@contextmanager
def meant_by_cuda(device: str) -> Iterator[None]:
    """While it lasts, ``"cuda"`` is the GPU of that number, where it has one: an encoder may go there as it is made."""
    with ExitStack() as stack:
        if ":" in device:
            with _refusal_told(device):
                stack.enter_context(torch.cuda.device(device))
        yield


def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for it, which take half the time of float32's."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))


def gpu_multiplies_bfloat16(device: str) -> bool:
    """Whether a GPU has instructions for it; older ones than NVIDIA's Ampere make it of others, slower than float32."""
    with _refusal_told(device), torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@contextmanager
def _refusal_told(device: str) -> Iterator[None]:
    """One line where a GPU lets nobody in: another process may have it for itself, or it may be broken."""
    try:
        yield
    except RuntimeError as error:
        raise EncoderError(f"{device} cannot be used: {' '.join(str(error).split())[:200]}") from error

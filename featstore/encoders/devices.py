"""Devices by ``--device`` name, moving an encoder to a device, and the precision of float32 products."""

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
    "set_up_device",
]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """Context in which products are rounded to TF32 if `precision` is ``"tf32"``, and in float32 otherwise."""
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
    """``older`` is None if the settings were made by the newer API, which makes the older getters fail."""

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
    """Backends with a precision of their own in the newer API; empty before PyTorch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return ()
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn


_OF_ANY_MODULE = frozenset(vars(nn.Module()))


def move(module: nn.Module, device: torch.device) -> None:
    """Move parameters, buffers, and tensors in plain attributes or in dictionaries that are attributes.

    ``Module.to`` does not move the latter. Loading runs every encoder once on the CPU; tables that it caches for an
    input length, such as the rotary embeddings of conformers in transformers, would stay there.
    """
    module.to(device)
    for each in module.modules():
        for name, value in vars(each).items():
            if name not in _OF_ANY_MODULE:
                vars(each)[name] = _moved(value, device)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) is dict and any(isinstance(each, Tensor) for each in value.values()):
        return {key: _moved(each, device) for key, each in value.items()}
    return value


def pick_device(requested: str, *, local_rank: int | None = None) -> str:
    """Return the device to run on; ``auto`` is a GPU if there is one.

    On a machine with several GPUs, ``auto`` and ``cuda`` select the one of `local_rank`; otherwise all processes of a
    machine would use the first.

    Raises
    ------
    UsageError
        The device does not exist, or torch cannot use it.
    """
    if requested == "auto":
        return gpu_of(local_rank, torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {requested!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {requested!r}")
    if device.type == "cuda" and (device.index or 0) >= (count := _gpus_for(requested)):
        raise UsageError(f"--device {requested} is not there: this machine has {count} CUDA devices")
    return gpu_of(local_rank, count) if requested == "cuda" else requested


def gpu_of(local_rank: int | None, n_gpus: int) -> str:
    """Return the GPU of a process among those of its machine; a scheduler can show each process only its own GPU.

    >>> gpu_of(None, 8), gpu_of(3, 8), gpu_of(3, 1), gpu_of(5, 4)
    ('cuda', 'cuda:3', 'cuda', 'cuda:1')
    """
    return "cuda" if local_rank is None or n_gpus < 2 else f"cuda:{local_rank % n_gpus}"


def pick_devices(requested: str, *, local_rank: int | None = None) -> tuple[str, ...]:
    """Return the devices to run on: a comma-separated list, or ``all`` CUDA devices. ``cpu`` can be listed repeatedly.

    Raises
    ------
    UsageError
        A device does not exist, a GPU is listed twice, or a list mixes kinds of devices.
    """
    if requested == "all":
        count = _gpus_for(requested)
        if not count:
            raise UsageError("--device all selects every CUDA device, and this machine has none: omit it")
        return tuple(f"cuda:{number}" for number in range(count))
    names = tuple(name.strip() for name in requested.split(","))
    if len(names) == 1:
        return (pick_device(names[0], local_rank=local_rank),)
    if "auto" in names or "all" in names:
        raise UsageError(f"--device auto and all cannot be combined with others: got {requested!r}")
    devices = tuple(f"cuda:{torch.device(pick_device(name)).index or 0}" if name != "cpu" else name for name in names)
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError(
            f"--device takes devices of one kind, since a CPU and a GPU differ in the last bits: got {requested!r}"
        )
    twice = sorted({device for device in devices if device != "cpu" and devices.count(device) > 1})
    if twice:
        raise UsageError(f"--device names {twice[0]} twice: one process takes the whole GPU")
    return devices


def _gpus_for(requested: str) -> int:
    """Count the CUDA devices. The driver's library counts them even if this build of torch cannot use them."""
    count = torch.cuda.device_count()
    if count and not torch.cuda.is_available():
        raise UsageError(
            f"--device {requested}: PyTorch {torch.__version__} cannot use the GPUs of this machine, usually because "
            f"their driver is older than CUDA {torch.version.cuda}: update the driver, or install a PyTorch build for "
            "the CUDA version that `nvidia-smi` prints"
        )
    return count


def idle_gpus(device: str) -> int:
    """Count the GPUs that a run leaves idle; 0 if the user chose a device."""
    return max(0, torch.cuda.device_count() - 1) if device == "cuda" else 0


def set_up_device(device: str, *, threads: int) -> None:
    """Make a device the default of this process for all of torch; each device has its own process."""
    torch.set_num_threads(threads)
    if ":" in device:
        with _device_errors_reported(device):
            torch.cuda.set_device(device)  # otherwise each process would allocate memory on the first GPU


@contextmanager
def meant_by_cuda(device: str) -> Iterator[None]:
    """Context in which ``"cuda"`` is the GPU `device`, if it has a number: constructors of encoders may use it."""
    with ExitStack() as stack:
        if ":" in device:
            with _device_errors_reported(device):
                stack.enter_context(torch.cuda.device(device))
        yield


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has bfloat16 instructions, which take half the time of float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16"))


def gpu_multiplies_bfloat16(device: str) -> bool:
    """Return whether a GPU has bfloat16 instructions; GPUs before NVIDIA Ampere emulate them, slower than float32."""
    with _device_errors_reported(device), torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@contextmanager
def _device_errors_reported(device: str) -> Iterator[None]:
    """Report a GPU that cannot be used, because it is broken or another process has exclusive access, in one line."""
    try:
        yield
    except RuntimeError as error:
        raise EncoderError(f"{device} cannot be used: {' '.join(str(error).split())[:200]}") from error

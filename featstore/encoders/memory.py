"""Peak memory of a function, free memory, and detection of out-of-memory errors.

On Linux, the peak of the resident memory of the process is reset before the call and read after it (proc(5),
``clear_refs`` and ``VmHWM``). Memory that the allocator caches is released first, so that it does not hide in the
figure. On a GPU, PyTorch counts memory. Other systems have no figure, since ``ru_maxrss`` never decreases.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from featstore.system import free_memory_bytes

__all__ = ["free_bytes", "is_out_of_memory", "peak_bytes"]

_STATUS = Path("/proc/self/status")
_TOO_LITTLE = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|(CUDA|HIP|MPS backend) out of memory"
    r"|(CUDA error|CUDA driver error|HIP error|Triton Error \[(CUDA|HIP)\]): out of memory"
    r"|[A-Z]+_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"  # since cuDNN 9
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(Lt)?Create"
)


def peak_bytes(work: Callable[[], object], *, device: str) -> int | None:
    """Run `work` and return its peak memory in bytes beyond what was in use before; None if it cannot be measured."""
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
        before = torch.cuda.memory_allocated(where)
        work()
        return int(torch.cuda.max_memory_allocated(where)) - before
    started = _reset_peak()
    work()
    ended = _status_bytes("VmHWM")
    return None if started is None or ended is None else max(0, ended - started)


def free_bytes(*, device: str) -> int | None:
    """Return the free bytes of a device, or None if they cannot be determined."""
    where = torch.device(device)
    if where.type == "cuda":
        free, _ = torch.cuda.mem_get_info(where)
        return int(free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where))
    return free_memory_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports exhausted memory of a device or of the machine, so that a smaller batch may fit.

    PyTorch has an exception class only for its own allocator on a device. If the machine or a library (cuBLAS, cuDNN,
    cuFFT, Triton) runs out of memory, only the text of a RuntimeError shows it. cuBLAS creates its handle on first use
    and usually reports "not initialized" if there is no memory for it. ``CUDNN_STATUS_NOT_SUPPORTED`` is not included:
    it refers to a layout or shape, which half a batch has too.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _TOO_LITTLE.search(str(error)) is not None


def _reset_peak() -> int | None:
    # allocators other than glibc keep memory of earlier work, which lowers the figure
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None

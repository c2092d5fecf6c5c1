"""Memory that a piece of work takes at its peak, memory that is free, and errors that say that there is too little.

On Linux a process's peak of resident memory is reset before the work and read after it (proc(5), ``clear_refs`` and
``VmHWM``), and what the allocator has kept of earlier work is given back first: neither hides in the figure. PyTorch
counts a GPU's. Elsewhere nothing is told, for ``ru_maxrss`` never falls.
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
    r"|CUDNN_STATUS_INTERNAL_ERROR_(HOST|DEVICE)_ALLOCATION_FAILED"  # the same, since cuDNN 9
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling `cublas(Lt)?Create"
)


def peak_bytes(work: Callable[[], object], *, device: str) -> int | None:
    """Run `work`; bytes that it takes at its peak beyond those taken before, or None where that cannot be told."""
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


def free_bytes(*, device: str, root: Path = Path("/")) -> int | None:
    """Bytes that new work may take on a device, or None where that cannot be told."""
    where = torch.device(device)
    if where.type == "cuda":
        free, _ = torch.cuda.mem_get_info(where)
        return int(free + torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where))
    return free_memory_bytes(root=root)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine, so that less may still fit.

    PyTorch has a class for its own allocator on a device alone: that the libraries under it ran out (cuBLAS, cuDNN,
    cuFFT, Triton), or the machine, only the text of a RuntimeError tells. A handle of cuBLAS is made when it is first
    needed, and "not initialized" is what it mostly says where there is no room for one. ``CUDNN_STATUS_NOT_SUPPORTED``
    is of a layout or a shape, which half a batch has too.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _TOO_LITTLE.search(str(error)) is not None


def _reset_peak() -> int | None:
    # not glibc: then what the allocator keeps of earlier work makes the figure smaller
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

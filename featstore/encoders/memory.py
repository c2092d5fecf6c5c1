"""Memory that a piece of work takes at its peak, and memory that is free.

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

from featstore.machine import free_memory_bytes

__all__ = ["free_bytes", "peak_bytes"]

_STATUS = Path("/proc/self/status")


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

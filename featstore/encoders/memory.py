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

__all__ = ["free_bytes", "peak_bytes", "spoken_bytes"]

_STATUS = Path("/proc/self/status")
_CGROUPS = (  # version 2, version 1: limit, use, and where the use says how much of it is only cached files
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
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
    told = [_kib(root / "proc/meminfo", "MemAvailable"), *(_left_in_cgroup(root, *names) for names in _CGROUPS)]
    return min((each for each in told if each is not None), default=None)


def spoken_bytes(n_bytes: float) -> str:
    """A size as it is read.

    >>> spoken_bytes(9_200_000), spoken_bytes(2_345_000_000)
    ('9 MB', '2.3 GB')
    """
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


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
    return _kib(_STATUS, name)


def _kib(path: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _left_in_cgroup(root: Path, limit_name: str, used_name: str, stat_name: str) -> int | None:
    cgroup = root / "sys/fs/cgroup"
    limit, used = _text(cgroup / limit_name).strip(), _text(cgroup / used_name).strip()
    if not (limit.isdigit() and used.isdigit()):  # "max", or no such file
        return None
    cached = re.search(r"^inactive_file (\d+)$", _text(cgroup / stat_name), re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

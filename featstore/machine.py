"""What this process may use of the machine: cores, and memory within its limits and those of its control group."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

__all__ = ["CPU_BATCH_SECONDS", "LIGHT_BATCH_SECONDS", "cores", "free_memory_bytes"]

CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS = 16.0, 32.0
"""Audio in a batch on a CPU: of an encoder, and of a light one. Here, for the command line prints them in its help."""


_CGROUPS = (  # version 2, version 1: limit, use, and where the use says how much of it is only cached files
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes(*, root: Path = Path("/")) -> int | None:
    """Bytes that new work may take, or None where that cannot be told. ``root`` is where ``proc`` and ``sys`` are."""
    told = [
        _kib(root / "proc/meminfo", "MemAvailable"),
        *(_left_in_cgroup(root, *names) for names in _CGROUPS),
        *_limits_of_the_process(),
    ]
    return min((each for each in told if each is not None), default=None)


def _limits_of_the_process() -> list[int]:
    if importlib.util.find_spec("resource") is None:
        return []
    import resource

    limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


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

"""Cores and memory of this machine, and the environment and signals of child processes."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "CPU_BATCH_SECONDS",
    "LIGHT_BATCH_SECONDS",
    "cores",
    "free_memory_bytes",
    "inheriting",
    "with_numpys_kernels",
]


CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS = 16.0, 32.0
"""Seconds of audio in a batch on a CPU, for ordinary and for light encoders. Defined here for the command's help."""


_CGROUPS = (  # version 2, version 1: limit, usage, and the file that states how much of the usage is page cache
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes(*, root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process may still allocate; None if unknown. `root` contains ``proc`` and ``sys``."""
    limits = [
        _kib(root / "proc/meminfo", "MemAvailable"),
        *(_free_in_cgroup(root, *names) for names in _CGROUPS),
        *_process_limits(),
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _process_limits() -> list[int]:
    if importlib.util.find_spec("resource") is None:
        return []
    import resource

    limits = (resource.getrlimit(each)[0] for each in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return [limit for limit in limits if limit != resource.RLIM_INFINITY]


def _kib(path: Path, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _text(path), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_in_cgroup(root: Path, limit_name: str, used_name: str, stat_name: str) -> int | None:
    cgroup = root / "sys/fs/cgroup"
    limit, used = _text(cgroup / limit_name).strip(), _text(cgroup / used_name).strip()
    if not (limit.isdigit() and used.isdigit()):  # "max", or the file does not exist
        return None
    cached = re.search(r"^inactive_file (\d+)$", _text(cgroup / stat_name), re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def inheriting(*, threads: int) -> Iterator[None]:
    """Child processes that start in the block use `threads` threads and ignore SIGINT, which the parent handles."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update({name: str(threads) for name in _THREAD_SETTINGS})
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_KERNELS = {
    "SkylakeX": "SkylakeX", "Cooperlake": "SkylakeX", "SapphireRapids": "SkylakeX", "Haswell": "Haswell", "Zen": "Zen"
}  # fmt: skip
"""OpenBLAS's name of the processor that NumPy's OpenBLAS detects -> the nearest name that releases of 2021 know."""


@contextmanager
def with_numpys_kernels() -> Iterator[None]:
    """An OpenBLAS that is loaded in the block multiplies matrices by the instructions that NumPy's OpenBLAS uses.

    The wheels of FAISS carry OpenBLAS 0.3.15 of 2021, which takes each later Intel processor for one without AVX and
    is then nine times slower (OpenBLAS issue 3453). The variable ``OPENBLAS_CORETYPE`` has precedence.
    """
    from threadpoolctl import threadpool_info

    found = [_KERNELS.get(each.get("architecture", "")) for each in threadpool_info()]
    kernels = next(filter(None, found), None)
    if kernels is None or "OPENBLAS_CORETYPE" in os.environ:
        yield
        return
    os.environ["OPENBLAS_CORETYPE"] = kernels
    try:
        yield
    finally:
        del os.environ["OPENBLAS_CORETYPE"]

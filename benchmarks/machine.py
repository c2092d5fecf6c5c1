"""The machine, in words, and the versions of what was measured."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path

__all__ = ["available_memory_bytes", "cores", "filesystem_of", "machine_line", "versions_line"]

LIBRARIES = (
    "numpy", "torch", "zarr", "zarrs", "h5py", "faiss-cpu", "scikit-learn", "soundfile", "soxr", "google-crc32c",
)  # fmt: skip


def machine_line() -> str:
    memory = _meminfo("MemTotal") / 2**30
    files = filesystem_of(Path(tempfile.gettempdir()))
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return (
        f"{_processor()}, {cores()} cores, {memory:.0f} GiB of memory, {platform.system()} {platform.release()}, "
        f"files on {files}; load average {busy:.1f} when the run began"
    )


def versions_line() -> str:
    from featstore import __version__

    found = [f"featstore {__version__}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} (not installed)")
    return ", ".join(found)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes() -> int:
    return _meminfo("MemAvailable")


def filesystem_of(path: Path) -> str:
    """Type of the file system that holds a folder: ``ext4``, ``tmpfs``."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "an unknown file system"
    known = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(where, kind) for where, kind in known if path.resolve().is_relative_to(where)]
    return max(holding, key=lambda entry: len(entry[0]))[1]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _meminfo(name: str) -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

"""What becomes of a run in other processes: who of them lives, and what they have committed."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path


def members_of(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            try:
                if os.getpgid(int(each.name)) == group and (each / "cmdline").read_bytes():  # a zombie has none
                    found.append(int(each.name))
            except (ProcessLookupError, FileNotFoundError):
                pass
    return found


def wait_until_nobody_is_left(group: int, *, seconds: float = 15) -> None:
    limit = time.monotonic() + seconds
    while left := members_of(group):
        assert time.monotonic() < limit, left
        time.sleep(0.05)


def n_committed(store: Path) -> int:
    return sum('"commit"' in path.read_text() for path in store.glob("*/*/*/*/zarr.json"))


def n_parts(store: Path) -> int:
    """Parts and what is left of them; a folder that was only begun may be anybody's, and is for a later sweep."""
    return sum(any(not path.name.startswith(".") for path in part.iterdir()) for part in store.glob("*/*/*/*/"))


def wait_for_commits(store: Path, run: subprocess.Popen[str], n: int) -> None:
    limit = time.monotonic() + 240
    while n_committed(store) < n:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < limit
        time.sleep(0.01)

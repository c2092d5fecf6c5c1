"""Fault points: named points in the commit protocol at which a test can kill the process.

``FEATSTORE_FAULT_POINT=arrays-synced`` kills the process with SIGKILL when it first reaches that point, and
``arrays-synced:3`` when it reaches it for the third time. Without the variable a fault point costs one look-up.
"""

from __future__ import annotations

import os
import signal

__all__ = ["FAULT_POINTS", "fault_point"]

FAULT_POINTS = (
    "part-begun",
    "frames-written",
    "arrays-written",
    "arrays-synced",
    "document-written",
    "committed",
    "catalogue-written",
    "deleting-document",
    "deleting-arrays",
    "swept",
)

_passed: dict[str, int] = {}


def fault_point(name: str) -> None:
    """Kill the process if ``FEATSTORE_FAULT_POINT`` selects this point."""
    wanted = os.environ.get("FEATSTORE_FAULT_POINT")
    if wanted is None:
        return
    point, _, times = wanted.partition(":")
    if point == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(times or 1):
            os.kill(os.getpid(), signal.SIGKILL)

"""Tasks: TOML manifests, the built-in tasks, labels, and splits.

Names are imported on first use: splits need NumPy only, manifests need pydantic.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.tasks.builtin import builtin_tasks, find_task
    from featstore.tasks.manifest import (
        Data,
        Kind,
        Label,
        Manifest,
        MetricArgs,
        Probe,
        Retrieve,
        Splits,
        ZeroShot,
        load_manifest,
    )
    from featstore.tasks.rules import METRICS_BY_KIND

__all__ = [
    "METRICS_BY_KIND",
    "Data",
    "Kind",
    "Label",
    "Manifest",
    "MetricArgs",
    "Probe",
    "Retrieve",
    "Splits",
    "ZeroShot",
    "builtin_tasks",
    "find_task",
    "load_manifest",
]

_HOME = {"METRICS_BY_KIND": "rules", "builtin_tasks": "builtin", "find_task": "builtin"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"featstore.tasks.{_HOME.get(name, 'manifest')}"), name)

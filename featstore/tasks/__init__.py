"""Tasks as data: TOML manifests, the tasks that come with featstore, and the labels that a manifest reads."""

from __future__ import annotations

from featstore.tasks import labels
from featstore.tasks.builtin import builtin_tasks, find_task
from featstore.tasks.manifest import Data, Kind, Label, Manifest, MetricArgs, Probe, Retrieve, Splits, load_manifest
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
    "builtin_tasks",
    "find_task",
    "labels",
    "load_manifest",
]

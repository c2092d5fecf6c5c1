"""Tasks as data: TOML manifests, the tasks that come with featstore, and the labels that a manifest reads."""

from __future__ import annotations

from featstore.manifest import labels
from featstore.manifest.catalog import builtin_tasks, find_task
from featstore.manifest.load import load_manifest
from featstore.manifest.model import Data, Kind, Label, Manifest, MetricArgs, Probe, Retrieve, Splits
from featstore.manifest.rules import METRICS_BY_KIND

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

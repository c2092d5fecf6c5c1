from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from featstore.tasks import Manifest

MINIMAL: dict[str, Any] = {
    "name": "birds",
    "title": "Birds",
    "kind": "clip",
    "metric": "accuracy",
    "eval_weight": 1,
    "data": {"dataset": "birds"},
    "splits": {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"},
    "label": {"field": "species"},
}
METRIC_OF_KIND = {
    "clip": "accuracy",
    "multilabel": "mAP",
    "frame": "segment_f1_macro",
    "regression": "pearson",
    "contrastive": "recall_at_1",
    "ctc": "wer_inv",
    "asr": "wer_inv",
}


def raw_task(**changes: Any) -> dict[str, Any]:
    """A small manifest as TOML would give it; a change to None removes a key."""
    raw = {**MINIMAL, **changes}
    if "kind" in changes and "metric" not in changes:
        raw["metric"] = METRIC_OF_KIND[changes["kind"]]
    return {key: value for key, value in raw.items() if value is not None}


@pytest.fixture(scope="session")
def raw() -> Callable[..., dict[str, Any]]:
    return raw_task


@pytest.fixture(scope="session")
def task() -> Callable[..., Manifest]:
    return lambda **changes: Manifest.model_validate(raw_task(**changes))

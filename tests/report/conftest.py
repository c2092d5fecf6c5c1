"""Scores to report on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from featstore.records import ScoreRecord

_DEFAULTS: dict[str, Any] = {
    "task": "words",
    "title": "Words",
    "track": "A",
    "protocol": "strict",
    "encoder": "logmel",
    "fingerprint": "3f9c2a71",
    "metric": "accuracy",
    "value": 0.5,
    "std": 0.0,
    "ci_low": 0.5,
    "ci_high": 0.5,
    "seeds": (0, 1, 2),
    "n_train": 100,
    "n_valid": 10,
    "n_test": 20,
    "n_skipped": 0,
    "eval_weight": 20.0,
    "private": False,
    "seconds": {"train": 1.5},
    "manifest_sha256": "ab" * 32,
    "versions": {"featstore": "0.1.0"},
    "settings": {"head": "linear"},
    "features": {"words/test": "cd" * 8},
    "details": {"per_seed": [0.5, 0.5, 0.5]},
}


@pytest.fixture
def score() -> Callable[..., ScoreRecord]:
    """Make a score; what is not said is ordinary."""
    return lambda **fields: ScoreRecord(**{**_DEFAULTS, **fields})

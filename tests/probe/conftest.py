from __future__ import annotations

import pytest


@pytest.fixture
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends long before it has converged, which on a few separable clips takes all 200 epochs."""
    monkeypatch.setattr("featstore.probe.training.MAX_EPOCHS", 8)

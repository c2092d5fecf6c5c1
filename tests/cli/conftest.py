from __future__ import annotations

from pathlib import Path

import pytest

from handmade import write_pitches


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task and its shards; the test runs there."""
    write_pitches(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path

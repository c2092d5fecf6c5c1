from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from handmade import write_pitches


@pytest.fixture(scope="session")
def pitches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pitches")
    write_pitches(folder)
    return folder


@pytest.fixture
def folder(pitches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task and its shards; the test runs there."""
    shutil.copytree(pitches, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path

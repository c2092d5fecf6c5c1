from __future__ import annotations

from pathlib import Path

import pytest

from featstore.cli import main
from handmade import Outcome, Run, write_pitches


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; a bug would come out as an exception, and fail the test."""

    def runs(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code=int(done.value.code or 0), out=captured.out, err=captured.err)

    return runs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task and its shards; the test runs there."""
    write_pitches(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path

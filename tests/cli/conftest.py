from __future__ import annotations

from pathlib import Path

import pytest

from featstore.cli import main
from handmade import Outcome, Run, clip, noise, task_toml, write_split

TONES = {"low": 3, "middle": 9, "high": 15}  # the seed that `noise` makes a pitch of


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
    """A task and its shards, by hand: three pitches, to be told apart."""
    for split, count in (("train", 24), ("valid", 6), ("test", 9)):
        clips = []
        for number in range(count):
            label, seed = list(TONES.items())[number % 3]
            clips.append(clip(f"{split}-{number}", noise(0.3 + number % 5 / 10, seed=seed + 20 * number), label=label))
        write_split(tmp_path / "data/tiny", split, clips, shards=2)
    task_toml(tmp_path, probe={"epochs": 60, "learning_rate": 0.02, "batch_size": 8})
    monkeypatch.chdir(tmp_path)
    return tmp_path

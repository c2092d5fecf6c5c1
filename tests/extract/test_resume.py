"""An interrupted run resumes, and the store is the same bit for bit; killed runs are in `tests/crash`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.errors import ShardError
from featstore.store.filesystem import LocalObjects
from featstore.store.verify import verify_store
from handmade import (
    XARES_ENCODER,
    assert_equal_stores,
    clip,
    environment,
    extract,
    noise,
    task_toml,
    write_split,
)
from tiny import task
from watched import n_committed, wait_for_commits

N_SHARDS = 8
SLOW_ENCODER = XARES_ENCODER.replace("import torch", "import os\nimport time\n\nimport torch", 1).replace(
    "        padded = torch.nn",
    '        time.sleep(float(os.environ.get("SLEEP_OF_A_TEST", "0")))\n        padded = torch.nn',
    1,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clips = [clip(f"clip-{number:03d}", noise(0.1 + number % 7 / 10, seed=number)) for number in range(48)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=N_SHARDS)
    (tmp_path / "my_encoder.py").write_text(SLOW_ENCODER)
    task_toml(tmp_path)
    return tmp_path


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "featstore", "extract", "tiny.toml", "--encoder", "./my_encoder.py", "--data", "data",
         "--store", "store", "--split", "train", "--frames", "always"],
        cwd=folder, env=environment(SLEEP_OF_A_TEST="0.05"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(folder: Path, store: str) -> int:
    """Run to the end in this process; returns the shards that had to be encoded."""
    [record] = extract(task(), folder / "data", folder / store, encoder=str(folder / "my_encoder.py"), frames="always")
    assert record.shards_done + record.shards_reused == N_SHARDS
    return record.shards_done


def test_an_interrupted_run_is_reported_in_one_line_and_the_same_command_goes_on(folder: Path) -> None:
    interrupted = start(folder)
    wait_for_commits(folder / "store", interrupted, 1)
    interrupted.send_signal(signal.SIGINT)
    out, err = interrupted.communicate(timeout=30)
    assert interrupted.returncode == 130
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("featstore: interrupted")
    assert "Traceback" not in err
    assert n_committed(folder / "store") == len(list((folder / "store").glob("*/*/*/*/")))
    assert 0 < finish(folder, "store") < N_SHARDS
    finish(folder, "uninterrupted")
    assert_equal_stores(folder / "store", folder / "uninterrupted")


def test_a_part_that_loses_an_array_while_it_is_written_costs_its_shard_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something deletes an array behind the writer's back, just before the commit."""
    sync = LocalObjects.sync

    def then_one_is_gone(self: LocalObjects, prefix: str) -> None:
        sync(self, prefix)
        if "train-003" in prefix:
            (self.root / prefix / "utterance" / "c" / "0" / "0").unlink()

    with monkeypatch.context() as harmed:
        harmed.setattr(LocalObjects, "sync", then_one_is_gone)
        with pytest.raises(ShardError, match=r"\b1\b.*\b8\b.*train-003\.tar"):
            finish(folder, "store")
    assert n_committed(folder / "store") == N_SHARDS - 1
    assert not list((folder / "store").glob("*/*/*/train-003.*"))
    assert verify_store(str(folder / "store")).sound
    assert finish(folder, "store") == 1
    finish(folder, "uninterrupted")
    assert_equal_stores(folder / "store", folder / "uninterrupted")

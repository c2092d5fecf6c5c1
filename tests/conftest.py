"""What every test may count on."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from browsing import Browser, launched
from featstore.cli import main
from handmade import Outcome, Run

# A test fails for what it finds, never for how long it took.
settings.register_profile("untimed", deadline=None, max_examples=50)
settings.load_profile("untimed")

# A runner that was started in the background ignores Ctrl-C, and its children would inherit that: tests that interrupt
# a run need what a person at a terminal has.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["extract/fuzz_target.py"]  # a script: it imports atheris, which is not everywhere

# copies of remote stores, and shares of a scheduler that the tests may run under, do not apply here
_cache = tempfile.TemporaryDirectory(prefix="featstore-test-cache-")
os.environ["FEATSTORE_CACHE"] = _cache.name
os.environ["XDG_STATE_HOME"] = str(Path(_cache.name) / "state")  # the key that saved indexes are signed with
for _name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *(name for name in os.environ if name.startswith("SLURM_"))):
    os.environ.pop(_name, None)

# Tests compare, bit for bit, what a CPU makes, where there is a GPU too: none sees it, nor a process that one starts,
# but those that `on_cuda/test_here.py` shows it to, one after the other
if "FEATSTORE_TEST_GPUS" not in os.environ:
    os.environ["FEATSTORE_TEST_GPUS"] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


# Only a power failure would show that a file was not fsynced; on a disk, tests spend a third of their time on that.
os.fsync = lambda _: None

# What collection imports stays: the garbage collector need not look through it while it comes, nor in every test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


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
def brief_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`featstore check` with clips of 10 s at most and batches of two windows; `test_checking` has ten minutes."""
    monkeypatch.setattr("featstore.encoders.check.length._LENGTHS_SECONDS", (3.0, 10.0))
    monkeypatch.setattr("featstore.encoders.check.speed._MOST_WINDOWS", {"cpu": 2})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium; the test is skipped where there is none."""
    with launched(tmp_path_factory.mktemp("pages")) as found:
        yield found

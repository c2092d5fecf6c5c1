"""Progress on stderr: a live bar on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from featstore.cli.progress import downloading, progress_bar, scoring, steps
from featstore.extract import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _split(watcher: Progress, *, shards: int, reused: int, seconds: float = 60.0) -> None:
    watcher.begin(label="words/train", shards_total=shards, shards_reused=reused)
    for _ in range(shards - reused):
        watcher.advance(clips=50, audio_seconds=seconds)
        watcher.advance(clips=50, audio_seconds=seconds)
        watcher.shard_done()
    watcher.end()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress reads, in a list."""
    found = [0.0]
    monkeypatch.setattr("featstore.cli.progress.time", SimpleNamespace(monotonic=lambda: found[0]))
    return found


def test_a_short_run_writes_nothing_to_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", out := io.StringIO())
    with progress_bar() as watcher:
        _split(watcher, shards=3, reused=1)
    assert out.getvalue() == ""


def test_a_log_gets_a_plain_line_every_ten_seconds_across_splits(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    monkeypatch.setattr("sys.stderr", out := io.StringIO())
    with progress_bar() as watcher:
        for label in ("words/train", "words/test"):
            watcher.begin(label=label, shards_total=3, shards_reused=1)
            for _ in range(500):
                now[0] += 0.1
                watcher.advance(clips=1, audio_seconds=2.0)
            watcher.shard_done()
            watcher.end()
    lines = out.getvalue().splitlines()
    assert 9 <= len(lines) <= 10
    assert re.fullmatch(r"words/train: 0/2 shards, 10[01] clips, 20 x", lines[0])
    assert lines[-1].startswith("words/test: 0/2 shards, ")
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_progress_on_a_terminal_never_wraps(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with progress_bar() as watcher:
        watcher.begin(label="a-very-long-data-set-name/training-split " * 2, shards_total=12_345, shards_reused=0)
        watcher.advance(clips=1_234_567, audio_seconds=1e7)
        watcher.shard_done()
        watcher.end()
    with scoring() as show:
        show(1, 1000, "task by encoder " * 10)
    with steps() as begin:
        begin("a long step " * 20)
    with downloading() as watcher:
        watcher.begin(label="a-very-long-task-name " * 4, bytes_total=10**12)
        watcher.advance(10**11)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    assert max(map(len, shown.splitlines())) <= width
    assert len({line[:8] for line in shown.splitlines() if "shards" in line}) <= 12  # the spinner alone changes


def test_quiet_shows_no_progress(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    monkeypatch.setattr("featstore.cli.progress.is_quiet", lambda: True)
    out, log = Terminal(), io.StringIO()
    for stream in (out, log):
        monkeypatch.setattr("sys.stderr", stream)
        with progress_bar() as watcher:
            watcher.begin(label="words/train", shards_total=1, shards_reused=0)
            now[0] += 60
            watcher.advance(clips=1, audio_seconds=1.0)
            watcher.end()
    assert (out.getvalue().strip(), log.getvalue()) == ("", "")


def test_a_terminal_gets_a_bar_with_shards_clips_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", out := Terminal())
    with progress_bar() as watcher:
        _split(watcher, shards=3, reused=1)
        _split(watcher, shards=1, reused=1)
    assert "2/2 shards" in out.getvalue()
    assert "200 clips" in out.getvalue()


def test_a_log_hears_of_scores_at_most_every_ten_seconds_and_a_terminal_of_each(
    monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    log, terminal = io.StringIO(), Terminal()
    for out in (log, terminal):
        monkeypatch.setattr("sys.stderr", out)
        with scoring() as tell:
            for number in range(40):
                now[0] += 1.0
                tell(number + 1, 40, f"task{number} by [logmel]")
    assert log.getvalue().splitlines() == [f"{n}/40 scores, the last task{n - 1} by [logmel]" for n in (10, 20, 30)]
    assert "40/40 scores" in terminal.getvalue()
    assert "by [logmel]" in terminal.getvalue()

"""Progress on stderr: a live bar on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import io

from featstore.cli.progress import PlainProgress, progress_bar, scoring
from featstore.extract import Progress


def _split(watcher: Progress, *, shards: int, reused: int, seconds: float = 60.0) -> None:
    watcher.begin(label="words/train", shards_total=shards, shards_reused=reused)
    for _ in range(shards - reused):
        watcher.advance(clips=50, audio_seconds=seconds)
        watcher.advance(clips=50, audio_seconds=seconds)
        watcher.shard_done()
    watcher.end()


def test_a_log_gets_plain_lines_without_control_characters() -> None:
    out = io.StringIO()
    with progress_bar(stream=out) as watcher:
        _split(watcher, shards=3, reused=1)
    first, last = out.getvalue().splitlines()
    assert first == "words/train: 2 shards to encode, 1 reused"
    assert last.startswith("words/train: 2/2 shards, 200 clips")
    assert "\x1b" not in out.getvalue()


def test_a_log_gets_at_most_a_line_every_ten_seconds() -> None:
    written: list[str] = []
    now = [0.0]
    watcher = PlainProgress(written.append, clock=lambda: now[0])
    watcher.begin(label="words/train", shards_total=1, shards_reused=0)
    for _ in range(1000):
        now[0] += 0.1
        watcher.advance(clips=1, audio_seconds=2.0)
    watcher.shard_done()
    watcher.end()
    assert 10 <= len(written) <= 13
    assert written[-1] == "words/train: 1/1 shards, 1,000 clips, 10 clips/s, 20 x real time\n"


def test_a_split_that_is_all_there_is_one_line() -> None:
    written: list[str] = []
    _split(PlainProgress(written.append, clock=lambda: 0.0), shards=2, reused=2)
    assert written == ["words/train: 0 shards to encode, 2 reused\n"]


def test_a_terminal_gets_a_bar_with_shards_clips_and_speed() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with progress_bar(stream=out) as watcher:
        _split(watcher, shards=3, reused=1)
        _split(watcher, shards=1, reused=1)
    assert "2/2 shards" in out.getvalue()
    assert "200 clips" in out.getvalue()


def test_a_log_hears_of_scores_at_most_every_ten_seconds_and_a_terminal_of_each() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    log, terminal, now = io.StringIO(), Terminal(), [0.0]
    for out in (log, terminal):
        with scoring(stream=out, clock=lambda: now[0]) as tell:
            for number in range(40):
                now[0] += 1.0
                tell(number + 1, 40, f"task{number} by [logmel]")
    assert log.getvalue().splitlines() == [f"{n}/40 scores, the last task{n - 1} by [logmel]" for n in (10, 20, 30)]
    assert "40/40 scores" in terminal.getvalue()
    assert "by [logmel]" in terminal.getvalue()

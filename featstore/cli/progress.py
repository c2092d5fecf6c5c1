"""Progress on stderr, none with --quiet.

A terminal shows live bars of one line each, at any width; a log gets a plain line at most every ten seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column
from rich.text import Text

from featstore.cli.options import is_quiet
from featstore.formatting import counted, printable, spoken_bytes

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

    from featstore.extract.results import Progress as Watcher

__all__ = ["Downloads", "counting", "downloading", "progress_bar", "scoring", "steps"]

PLAIN_EVERY_SECONDS = 10.0
_DESCRIPTION_COLUMNS = 30
_BAR_COLUMNS = 8


class _Lines:
    """Lines of a log, at most one every ten seconds, and none in the first ten."""

    def __init__(self, console: Console) -> None:
        self._write = console.file.write
        self._written_at = time.monotonic()

    def __call__(self, line: Callable[[], str]) -> None:
        if time.monotonic() - self._written_at >= PLAIN_EVERY_SECONDS and not is_quiet():
            self._written_at = time.monotonic()
            self._write(f"{line()}\n")


def _console() -> Console:
    return Console(file=sys.stderr, highlight=False)


def _one_line() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")


def _text(template: str, *, columns: int | None = None) -> TextColumn:
    return TextColumn(template, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=columns))


def _description() -> TextColumn:
    return _text("{task.description}", columns=_DESCRIPTION_COLUMNS)


def _bars(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress:
    return Progress(*columns, console=console, transient=transient, disable=is_quiet())


@contextmanager
def progress_bar() -> Iterator[Watcher]:
    """Show the progress of an extraction on stderr, a bar for each split."""
    console = _console()
    if not console.is_terminal:
        yield _Extraction(None, _Lines(console))
        return
    bars = _bars(
        console,
        SpinnerColumn(),
        _description(),
        BarColumn(bar_width=_BAR_COLUMNS),
        _text("{task.completed:.0f}/{task.total:.0f} shards"),
        _Throughput(table_column=_one_line()),
        TimeRemainingColumn(compact=True, table_column=_one_line()),
    )
    with bars:
        yield _Extraction(bars, None)


class _Extraction:
    """Progress of the split that is encoded: a line of a live display, or lines of a log."""

    def __init__(self, bars: Progress | None, lines: _Lines | None) -> None:
        self._bars, self._lines = bars, lines
        self._task: TaskID | None = None
        self._label = ""
        self._shards_total = self._shards_done = self._clips = 0
        self._audio_seconds = self._started_at = 0.0

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Reset the counts, which are of the shards to encode: reused ones would distort the time that remains."""
        self._label, self._shards_total, self._shards_done = label, shards_total - shards_reused, 0
        self._clips, self._audio_seconds, self._started_at = 0, 0.0, time.monotonic()
        if self._bars is not None:
            shown = escape(printable(label))
            self._task = self._bars.add_task(shown, total=self._shards_total, clips=0, audio_seconds=0.0)

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Count clips, and write a line when one is due."""
        self._clips += clips
        self._audio_seconds += audio_seconds
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, clips=self._clips, audio_seconds=self._audio_seconds)
        elif self._lines is not None:
            self._lines(self._line)

    def shard_done(self) -> None:
        """Count a shard."""
        self._shards_done += 1
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task)

    def end(self) -> None:
        """Stop the clock of the line."""
        if self._bars is not None and self._task is not None:
            self._bars.stop_task(self._task)

    def _line(self) -> str:
        rate = _throughput(self._clips, self._audio_seconds, time.monotonic() - self._started_at)
        return f"{printable(self._label)}: {self._shards_done}/{self._shards_total} shards, {rate}"


class _Throughput(ProgressColumn):
    """Clips, and seconds of audio per second."""

    def render(self, task: Task) -> Text:
        text = _throughput(task.fields["clips"], task.fields["audio_seconds"], task.elapsed or 0.0)
        return Text(text, style="progress.data.speed")


@contextmanager
def counting(what: str) -> Iterator[Callable[[], None]]:
    """Count on stderr if it is a terminal; the callable adds one."""
    console = _console()
    if not console.is_terminal:
        yield lambda: None
        return
    count = _text("{task.completed:,.0f} {task.description}")
    with _bars(console, SpinnerColumn(), count, TimeElapsedColumn(table_column=_one_line()), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda: bars.advance(task)


@contextmanager
def steps(*, prefix: str = "checking") -> Iterator[Callable[[str], None]]:
    """Show the current step on stderr; the callable takes the name of the step that starts."""
    console = _console()
    if not console.is_terminal:
        lines = _Lines(console)
        yield lambda step: lines(lambda: f"{prefix}: {printable(step)}")
        return
    elapsed = TimeElapsedColumn(table_column=_one_line())
    with _bars(console, SpinnerColumn(), _text("{task.description}"), elapsed, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda step: bars.update(task, description=escape(printable(step)))


@contextmanager
def scoring() -> Iterator[Callable[[int, int, str], None]]:
    """Show the number of finished scores on stderr, until all are finished.

    The callable takes the number of finished scores, the total and the name of the last one.
    """
    console = _console()
    if not console.is_terminal:
        lines = _Lines(console)

        def write(done: int, total: int, last: str) -> None:
            if 0 < done < total:
                lines(lambda: f"{done}/{total} scores, the last {printable(last)}")

        yield write
        return
    bars = _bars(
        console,
        SpinnerColumn(),
        _text("{task.completed:.0f}/{task.total:.0f} scores"),
        BarColumn(bar_width=_BAR_COLUMNS),
        TimeElapsedColumn(table_column=_one_line()),
        _text("{task.description}"),
        transient=True,
    )
    with bars:
        task = bars.add_task("", total=0, visible=False)

        def show(done: int, total: int, last: str) -> None:
            description = escape(printable(f"last: {last}")) if last else ""
            bars.update(task, completed=done, total=total, description=description, visible=True)

        yield show


@contextmanager
def downloading() -> Iterator[Downloads]:
    """Show the progress of downloads on stderr."""
    console = _console()
    if not console.is_terminal:
        yield Downloads(None, _Lines(console))
        return
    bars = _bars(
        console,
        _description(),
        BarColumn(bar_width=_BAR_COLUMNS),
        DownloadColumn(table_column=_one_line()),
        TransferSpeedColumn(table_column=_one_line()),
        TimeRemainingColumn(compact=True, table_column=_one_line()),
    )
    with bars:
        yield Downloads(bars, None)


class Downloads:
    """Progress of a download, called from several threads."""

    def __init__(self, bars: Progress | None, lines: _Lines | None) -> None:
        self._bars, self._lines = bars, lines
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._label = ""
        self._done = self._total = 0

    def begin(self, *, label: str, bytes_total: int) -> None:
        """Add a bar."""
        self._label, self._done, self._total = label, 0, bytes_total
        if self._bars is not None:
            self._task = self._bars.add_task(escape(printable(label)), total=bytes_total)

    def advance(self, n_bytes: int) -> None:
        """Count bytes; a negative number takes back bytes that were discarded."""
        with self._lock:
            self._done += n_bytes
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, completed=self._done)
            elif self._lines is not None:
                self._lines(
                    lambda: f"{printable(self._label)}: {spoken_bytes(self._done)} of {spoken_bytes(self._total)}"
                )


def _throughput(clips: int, audio_seconds: float, elapsed_seconds: float) -> str:
    speed = f", {audio_seconds / elapsed_seconds:,.0f} x" if elapsed_seconds > 0 and clips else ""
    return f"{counted(clips, 'clip')}{speed}"

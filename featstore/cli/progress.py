"""Progress, on stderr.

On a terminal a run is a live bar; in a log it is a plain line every ten seconds, as a bar would be thousands there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

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
from rich.text import Text

from featstore.formatting import counted, printable, spoken_bytes

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

    from featstore.extract.results import Progress as Watcher

__all__ = [
    "Downloads",
    "PlainProgress",
    "PlainSteps",
    "RichProgress",
    "counting",
    "downloading",
    "progress_bar",
    "scoring",
    "steps",
]

PLAIN_EVERY_SECONDS = 10.0


@contextmanager
def progress_bar(*, stream: TextIO | None = None) -> Iterator[Watcher]:
    """Watch extraction on stderr (or `stream`): a bar for each split on a terminal, plain lines elsewhere."""
    console = Console(file=sys.stderr if stream is None else stream, highlight=False)
    if not console.is_terminal:
        yield PlainProgress(console.file.write, clock=time.monotonic)
        return
    columns: tuple[ProgressColumn, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} shards"),
        _Throughput(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bars:
        yield RichProgress(bars)


class RichProgress:
    """One line of a live display for each split."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._clips = 0
        self._audio_seconds = 0.0

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Add a line for a split."""
        self._clips, self._audio_seconds = 0, 0.0
        reused = f" [dim]({shards_reused} reused)[/]" if shards_reused else ""
        # Reused shards are no part of the bar: its estimate of the time left would take them for speed.
        self._task = self._bars.add_task(
            escape(printable(label)) + reused, total=shards_total - shards_reused, clips=0, audio_seconds=0.0
        )

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Count clips."""
        if self._task is not None:
            self._clips += clips
            self._audio_seconds += audio_seconds
            self._bars.update(self._task, clips=self._clips, audio_seconds=self._audio_seconds)

    def shard_done(self) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task)

    def end(self) -> None:
        """Stop the line's clock."""
        if self._task is not None:
            self._bars.stop_task(self._task)
            self._task = None


class _Throughput(ProgressColumn):
    """Clips, clips a second, and seconds of audio a second."""

    def render(self, task: Task) -> Text:
        return Text(
            _throughput(task.fields["clips"], task.fields["audio_seconds"], task.elapsed or 0.0),
            style="progress.data.speed",
        )


class PlainProgress:
    """A line when a split begins and ends, and at most every ten seconds between.

    Parameters
    ----------
    write : callable
        Takes text.
    clock : callable
        Seconds that only go forward.
    """

    def __init__(self, write: Callable[[str], object], *, clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._label = ""
        self._shards_total = self._shards_done = self._clips = 0
        self._audio_seconds = self._began = self._told = 0.0

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Tell what is to be done."""
        self._label, self._shards_total, self._shards_done = label, shards_total - shards_reused, 0
        self._clips, self._audio_seconds = 0, 0.0
        self._began = self._told = self._clock()
        reused = f", {shards_reused} reused" if shards_reused else ""
        self._write(f"{printable(label)}: {counted(self._shards_total, 'shard')} to encode{reused}\n")

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Count clips, and tell about them when the last line is old enough."""
        self._clips += clips
        self._audio_seconds += audio_seconds
        if self._clock() - self._told >= PLAIN_EVERY_SECONDS:
            self._tell()

    def shard_done(self) -> None:
        """Count a shard."""
        self._shards_done += 1

    def end(self) -> None:
        """Tell how it went, where anything was done."""
        if self._clips or self._shards_done:
            self._tell()

    def _tell(self) -> None:
        self._told = self._clock()
        rate = _throughput(self._clips, self._audio_seconds, self._told - self._began)
        self._write(f"{printable(self._label)}: {self._shards_done}/{self._shards_total} shards, {rate}\n")


@contextmanager
def counting(what: str) -> Iterator[Callable[[], None]]:
    """Count something on stderr where it is a terminal; the callable counts one."""
    console = Console(file=sys.stderr, highlight=False)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda: bars.advance(task)


@contextmanager
def steps(*, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Tell on stderr (or `stream`) which step is going on: a live line on a terminal, elsewhere few plain ones.

    The callable takes what is begun.
    """
    console = Console(file=sys.stderr if stream is None else stream, highlight=False)
    if not console.is_terminal:
        yield PlainSteps(console.file.write, clock=time.monotonic).begin
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda step: bars.update(task, description=escape(printable(step)))


class PlainSteps:
    """A line for the step that begins, where the last line is ten seconds old or the work has gone on for as long."""

    def __init__(self, write: Callable[[str], object], *, clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._told = clock()

    def begin(self, step: str) -> None:
        """A step begins."""
        if self._clock() - self._told >= PLAIN_EVERY_SECONDS:
            self._told = self._clock()
            self._write(f"checking: {printable(step)}\n")


@contextmanager
def scoring(
    *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int, str], None]]:
    """Show on stderr (or `stream`) how many scores are done; the callable takes done, total and the name of the last.

    A bar on a terminal, which goes when all are there; elsewhere a line at most every ten seconds.
    """
    console = Console(file=sys.stderr if stream is None else stream, highlight=False)
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} scores"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("", total=0, visible=False)

            def show(done: int, total: int, last: str) -> None:
                description = escape(printable(f"last: {last}")) if last else ""
                bars.update(task, completed=done, total=total, description=description, visible=True)

            yield show
        return
    written_at = clock()

    def write(done: int, total: int, last: str) -> None:
        nonlocal written_at
        if 0 < done < total and clock() - written_at >= PLAIN_EVERY_SECONDS:
            written_at = clock()
            console.file.write(f"{done}/{total} scores, the last {printable(last)}\n")

    yield write


@contextmanager
def downloading(*, stream: TextIO | None = None) -> Iterator[Downloads]:
    """Watch a download on stderr (or `stream`): a bar on a terminal, plain lines elsewhere."""
    console = Console(file=sys.stderr if stream is None else stream, highlight=False)
    if not console.is_terminal:
        yield Downloads(None, console.file.write, clock=time.monotonic)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bars:
        yield Downloads(bars, console.file.write, clock=time.monotonic)


class Downloads:
    """How far a download is: a bar, or a line at most every ten seconds. Told by several threads."""

    def __init__(self, bars: Progress | None, write: Callable[[str], object], *, clock: Callable[[], float]) -> None:
        self._bars, self._write, self._clock = bars, write, clock
        self._lock = threading.Lock()
        self._task: TaskID | None = None
        self._label = ""
        self._done = self._total = 0
        self._told = 0.0

    def begin(self, *, label: str, bytes_total: int) -> None:
        """Start a bar, or a first line."""
        self._label, self._done, self._total, self._told = label, 0, bytes_total, self._clock()
        if self._bars is not None:
            self._task = self._bars.add_task(escape(printable(label)), total=bytes_total)
        else:
            self._write(f"{printable(label)}: {spoken_bytes(bytes_total)}\n")

    def advance(self, n_bytes: int) -> None:
        """Count bytes."""
        with self._lock:
            self._done += n_bytes
            if self._bars is not None and self._task is not None:
                self._bars.update(self._task, completed=self._done)
            elif self._clock() - self._told >= PLAIN_EVERY_SECONDS:
                self._told = self._clock()
                self._write(f"{printable(self._label)}: {spoken_bytes(self._done)} of {spoken_bytes(self._total)}\n")


def _throughput(clips: int, audio_seconds: float, elapsed_seconds: float) -> str:
    if elapsed_seconds <= 0 or not clips:
        return f"{clips:,} clips"
    return (
        f"{clips:,} clips, {clips / elapsed_seconds:,.0f} clips/s, {audio_seconds / elapsed_seconds:,.0f} x real time"
    )

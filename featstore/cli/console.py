"""The one door of rich: progress on stderr, and tables. Imported by a command when it has something to show.

On a terminal a run is a live bar; in a log it is a plain line every ten seconds, as a bar would be thousands there.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
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
from rich.table import Table
from rich.text import Text

from featstore.report import Grid, GridCell, GridRow, grid
from featstore.wording import counted, harmless, printable, spoken_bytes

if TYPE_CHECKING:
    from rich.progress import Task, TaskID

    from featstore.extract.progress import Progress as Watcher
    from featstore.report import Leaderboard

__all__ = [
    "Downloads",
    "PlainProgress",
    "PlainSteps",
    "RichProgress",
    "counting",
    "downloading",
    "leaderboard_tables",
    "painted",
    "plain_table",
    "progress_bar",
    "scoring",
    "show",
    "steps",
    "verdict_table",
]

PLAIN_EVERY_SECONDS = 10.0
FILE_COLUMNS = 10_000


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
    total: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[str], None]]:
    """Watch so many scores come on stderr (or `stream`); the callable takes the name of one that is done.

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
            task = bars.add_task("", total=total)
            yield lambda name: bars.update(task, advance=1, description=escape(printable(f"last: {name}")))
        return
    done, told = 0, clock()

    def tell(name: str) -> None:
        nonlocal done, told
        done += 1
        if done < total and clock() - told >= PLAIN_EVERY_SECONDS:
            told = clock()
            console.file.write(f"{done}/{total} scores, the last {printable(name)}\n")

    yield tell


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


# --- tables -----------------------------------------------------------------------------------------------------------


def show(*renderables: RenderableType, stream: TextIO | None = None) -> None:
    """Print on stdout (or `stream`): in colour on a terminal, and in a file as wide as it takes."""
    console = Console(file=sys.stdout if stream is None else stream, highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS  # a table is no wider than its content: nothing is cut, nothing is padded
    for renderable in renderables:
        console.print(renderable)


def _text(text: str, *, style: str = "") -> Text:
    """Words of others, of which neither rich nor a terminal takes any for a command."""
    return Text(harmless(text, keep="\n"), style=style)


def _table(title: str | None) -> Table:
    told = None if title is None else _text(title, style="bold")
    return Table(title=told, title_justify="left", box=box.SIMPLE_HEAD)


def leaderboard_tables(board: Leaderboard) -> Group:
    """Paint every table of a leaderboard."""
    return painted(grid(table) for table in board.tables)


def painted(grids: Iterable[Grid]) -> Group:
    """Paint tables."""
    return Group(*map(_painted, grids))


def _painted(laid_out: Grid) -> Group:
    notes = (_text(f"  {note}", style="dim") for note in laid_out.notes)
    return Group(_Fitting(laid_out), *notes, Text())


class _Fitting:
    """A table that no terminal is too narrow for: columns that do not fit go into a further one below, unbroken."""

    def __init__(self, laid_out: Grid) -> None:
        self._grid = laid_out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(max_width=FILE_COLUMNS)
        left = list(range(2, len(self._grid.header)))
        title: str | None = self._grid.title
        while left or title is not None:
            fits = len(left)
            while fits > 1 and console.measure(self._table(left[:fits]), options=wide).maximum > options.max_width:
                fits -= 1
            yield self._table(left[:fits], title=title)
            left, title = left[fits:], None

    def _table(self, columns: Sequence[int], *, title: str | None = None) -> Table:
        table = _table(title)
        for index in (0, 1, *columns):
            table.add_column(_text(self._grid.header[index]), justify="left" if index < 2 else "right", overflow="fold")
        for section in (self._grid.rows, self._grid.averages):
            for row in section:
                entries = _entries(row)
                table.add_row(*(entries[index] for index in (0, 1, *columns)))
            table.add_section()
        return table


def _entries(row: GridRow) -> tuple[Text, ...]:
    return (_text(row.head), _text(row.metric, style="dim"), *map(_entry, row.cells))


def _entry(cell: GridCell) -> Text:
    # A mark is a letter of the text as well as a style: a log and a colour-blind reader see it too.
    if cell.best:
        return Text(f"▸ {cell.text}", style="bold green")
    return Text(f"≈ {cell.text}") if cell.inside_noise else Text(cell.text)


_NUMBER = re.compile(r"[0-9][0-9.,]*(?=[\s%]|$)")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """Lay out rows of text. A column whose every entry begins with a number (a hash is none) is set flush right."""
    table = _table(title)
    for index, heading in enumerate(header):
        numeric = bool(rows) and all(_NUMBER.match(row[index]) for row in rows)
        table.add_column(_text(heading), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


_VERDICTS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_PROSE_COLUMNS = 100


def verdict_table(rows: Sequence[tuple[str, str, str, str]], *, title: str) -> Table:
    """Lay out checks: name, verdict, what was measured, and under it what to do where there is something."""
    table = _table(title)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("measured", max_width=_PROSE_COLUMNS)
    for name, verdict, measured, advice in rows:
        style = _VERDICTS[verdict]
        told = _text(measured)
        if advice:
            told.append(f"\n→ {harmless(advice)}", style=style)
        table.add_row(_text(name), Text(verdict.upper() if verdict == "failed" else verdict, style=style), told)
    return table

"""The resolution of a leaderboard in words: columns for ranks and tie groups, and lines below the table."""

from __future__ import annotations

from collections.abc import Sequence

from featstore.report.resolution import Resolution
from featstore.report.tables import Average, Row, Table

__all__ = ["rank_columns", "ranking_line", "resolution_notes", "resolution_sentence", "short_letters"]


def ranking_line(table: Table) -> Row | Average:
    """The line that orders the encoders: the average over all tasks, or the only task."""
    return table.rows[0] if len(table.rows) == 1 else table.averages[-1]


def rank_columns(table: Table) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Header and entries of the columns of ranks and ties, with one entry for each column of the table."""
    line = ranking_line(table)
    if line.resolution is None:
        return ()
    columns = [
        ("Rank", _ranks(line.resolution)),
        ("Tie", tuple(map(short_letters, line.resolution.letters))),
    ]
    if isinstance(line, Average) and line.over_tasks is not None:
        columns.append(("Rank,\nnew tasks", _ranks(line.over_tasks)))
    return tuple(columns)


def _ranks(resolution: Resolution) -> tuple[str, ...]:
    return tuple(
        "" if ends is None else f"{ends[0]}" if ends[0] == ends[1] else f"{ends[0]}–{ends[1]}"
        for ends in resolution.ranks
    )


def short_letters(letters: str) -> str:
    """Shorten three or more consecutive letters.

    >>> short_letters("abcdf"), short_letters("ab")
    ('a–df', 'ab')
    """
    runs: list[str] = []
    for each in letters:
        if runs and ord(each) == ord(runs[-1][-1]) + 1:
            runs[-1] += each
        else:
            runs.append(each)
    return "".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else run for run in runs)


def resolution_notes(table: Table) -> Sequence[str]:
    """Lines that define ranks and ties, and state what the test clips can resolve."""
    line = ranking_line(table)
    if line.resolution is None:
        return ()
    notes = [
        "Rank: 95 % interval for all encoders together, over other test clips",
        "Tie: encoders that share a letter are not significantly different",
    ]
    if isinstance(line, Average) and line.over_tasks is not None:
        notes.append(f"Rank, new tasks: over other tasks of this kind, from the {line.over_tasks.n} tasks here")
    notes.append("Resolution: smallest true difference that is found with 80 % power, median over pairs")
    return [*notes, resolution_sentence(table)]


def resolution_sentence(table: Table) -> str:
    """State what cannot be resolved, and how many more clips separate the first pair that is not separated."""
    line = ranking_line(table)
    if line.resolution is None:
        return ""
    resolution, labels = line.resolution, [column.label for column in table.columns]
    if resolution.smallest_difference is None:
        return "differences do not vary over the test clips: the resolution is unknown"
    where = f" of {line.n_tasks} tasks" if isinstance(line, Average) and line.n_tasks > 1 else ""
    found = (
        f"differences below {resolution.smallest_difference:.3f} cannot be resolved with the {resolution.n:,} test "
        f"clips{where}"
    )
    for pair in resolution.adjacent:
        if pair.more_clips is not None:
            kind = " of new groups" if resolution.over == "groups" else ""
            found += (
                f"; about {pair.more_clips:,} more{kind} would separate {labels[pair.better]} from {labels[pair.worse]}"
            )
            break
    n_pairs = f"{resolution.n_pairs} pairs" if resolution.n_pairs > 1 else "1 pair"
    return f"{found} (80 % power, 5 % over {n_pairs})"

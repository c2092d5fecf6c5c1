"""The picture that the page opens with: the score of every encoder in every task, one panel for each track.

All panels share one axis. A task is a group of lanes, one for each encoder, in the same order everywhere, so that the
place of a marker identifies its encoder as its colour does. The template draws the numbers as SVG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featstore.report.grids import measure_title, table_title
from featstore.report.page_boards import board_anchor, entry_of, task_anchor
from featstore.report.tables import NOT_AVERAGED, Average, Row, Table, ranked

__all__ = ["MAX_LANES", "Band", "Group", "Lane", "Panel", "Picture", "picture_of"]

MAX_LANES = 16
"""Encoders in a panel; of more, the best by their average."""

MAX_GROUPS = 14
"""Tasks in one band; more tasks continue in further bands below."""

_HEIGHT = 170
_AXIS, _TOP = 34, 10
_CHARACTER = 6.8
"""Width of a character of labels, whose font has 12 px."""

_SLANT = 0.71
"""Cosine of the angle of slanted labels."""

MAX_NAME = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One score: its place in pixels, the ends of its interval, and whether it ties with the best."""

    x: float
    y: float
    low: float
    high: float
    style: int
    tied: bool
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One task, or the average: its name below the lanes, its left edge and its scores."""

    name: str
    title: str
    anchor: str
    left: float
    width: float
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Groups side by side. ``top`` is the place of the highest value of the axis in the panel."""

    top: float
    right: float
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One table as a picture of ``width`` x ``height`` pixels, whose axis is at ``left``.

    Labels are ``slanted`` if they are longer than their group.
    """

    name: str
    title: str
    text: str
    left: float
    width: float
    height: float
    lane_width: float
    slanted: bool
    bands: tuple[Band, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Panels on one axis.

    Attributes
    ----------
    ticks : tuple of (float, float)
        Value and distance from the top of a band in pixels.
    encoders : tuple of (str, int)
        Label and style of each lane, in their order.
    n_not_drawn : int
        Number of further encoders.
    other_scales : tuple of str
        Tasks whose metric has another scale.
    """

    panels: tuple[Panel, ...]
    ticks: tuple[tuple[float, float], ...]
    band_height: float
    encoders: tuple[tuple[str, int], ...]
    n_not_drawn: int
    other_scales: tuple[str, ...]

    @property
    def has_ties(self) -> bool:
        """Whether a lane is shaded."""
        groups = (group for panel in self.panels for band in panel.bands for group in band.groups)
        return any(lane.tied for group in groups for lane in group.lanes)


def picture_of(tables: Sequence[Table], *, styles: Mapping[str, int]) -> Picture | None:
    """Lay out tables of one protocol; None if no metric is from 0 to 1.

    Parameters
    ----------
    styles : mapping
        Label of an encoder -> number of its colour and marker.
    """
    lines = [(table, _lines(table)) for table in tables]
    lines = [(table, of) for table, of in lines if of]
    if not lines:
        return None
    labels = dict.fromkeys(
        table.columns[at].label for table, _ in lines for at in ranked(table) if not table.columns[at].published
    )
    lanes = [_lanes(table, list(labels)) for table, _ in lines]
    shown = [label for label in labels if any(label in of for of in lanes)]
    axis = _axis([line for _, of in lines for line in of])
    return Picture(
        panels=tuple(
            _panel(table, of, tuple(here.values()), axis=axis, styles=styles)
            for (table, of), here in zip(lines, lanes, strict=True)
        ),
        ticks=tuple(
            (round(float(value), 2), round(_y(float(value), axis), 1))
            for value in np.linspace(*axis, 1 + round((axis[1] - axis[0]) / (0.1 if axis[1] - axis[0] < 0.55 else 0.2)))
        ),
        band_height=_HEIGHT,
        encoders=tuple((label, styles.get(label, 0)) for label in shown),
        n_not_drawn=len(labels) - len(shown),
        other_scales=tuple(
            dict.fromkeys(row.task for table in tables for row in table.rows if row.metric in NOT_AVERAGED)
        ),
    )


def _lanes(table: Table, labels: Sequence[str]) -> dict[str, int]:
    """Columns of a table by their label, in the order of labels."""
    column_of = {column.label: at for at, column in enumerate(table.columns)}
    return {label: column_of[label] for label in [each for each in labels if each in column_of][:MAX_LANES]}


def _lines(table: Table) -> list[Row | Average]:
    rows = [row for row in table.rows if row.metric not in NOT_AVERAGED]
    average = table.averages[-1]
    with_average = [average] if average.n_tasks > 1 and not average.lower_is_better else []
    return [*with_average, *rows] if rows else []


def _ends(line: Row | Average, at: int) -> tuple[float, float, float] | None:
    """Value, and the ends of its interval."""
    cell = line.cell(at)
    if cell is None:
        return None
    return cell.value, cell.value if cell.low is None else cell.low, cell.value if cell.high is None else cell.high


def _axis(lines: Sequence[Row | Average]) -> tuple[float, float]:
    """From the lowest to the highest end of an interval, rounded outwards to 0.1 or 0.2."""
    found = [
        end
        for line in lines
        for at in range(len(line.cells if isinstance(line, Row) else line.values))
        for end in _ends(line, at) or ()
    ]
    low, high = min(found), max(found)
    step = 0.1 if high - low < 0.5 else 0.2
    low, high = np.floor(low / step + 1e-9) * step, np.ceil(high / step - 1e-9) * step
    return round(float(low), 1), round(float(max(high, low + step)), 1)


def _y(value: float, axis: tuple[float, float]) -> float:
    return _HEIGHT * (axis[1] - value) / (axis[1] - axis[0])


def _panel(
    table: Table,
    lines: Sequence[Row | Average],
    lanes: Sequence[int],
    *,
    axis: tuple[float, float],
    styles: Mapping[str, int],
) -> Panel:
    n_bands = -(-len(lines) // MAX_GROUPS)
    in_band = -(-len(lines) // n_bands)
    lane = float(np.clip(390 / in_band / (len(lanes) + 0.8), 5.0, 36.0))
    gap = max(12.0, 0.8 * lane)
    width = len(lanes) * lane + gap
    lengths = [_CHARACTER * len(_short(_name(line))) for line in lines]
    slanted = max(lengths) > width
    below = 18 + _SLANT * max(lengths) if slanted else 24.0
    hanging = [_SLANT * length - (at % in_band + 0.5) * width for at, length in enumerate(lengths)]
    left = max(_AXIS, *hanging) if slanted else float(_AXIS)
    bands = []
    for number in range(n_bands):
        groups = []
        for place, line in enumerate(lines[number * in_band : (number + 1) * in_band]):
            at = left + place * width + gap / 2
            groups.append(_group(table, line, lanes, left=at, lane=lane, axis=axis, styles=styles))
        right = left + len(groups) * width
        bands.append(Band(top=_TOP + number * (_HEIGHT + below), right=right, groups=tuple(groups)))
    return Panel(
        name=measure_title(table.measure),
        title=table_title(table.measure, table.protocol),
        left=round(left, 1),
        text=_text(table, lines),
        width=round(max(260.0, bands[0].right + 2)),
        height=round(_TOP + n_bands * (_HEIGHT + below)),
        lane_width=round(lane, 1),
        slanted=slanted,
        bands=tuple(bands),
    )


def _group(
    table: Table,
    line: Row | Average,
    lanes: Sequence[int],
    *,
    left: float,
    lane: float,
    axis: tuple[float, float],
    styles: Mapping[str, int],
) -> Group:
    drawn = []
    for number, at in enumerate(lanes):
        ends = _ends(line, at)
        if ends is not None:
            value, low, high = ends
            label = table.columns[at].label
            tip = entry_of(line, at).tip if isinstance(line, Row) else f"{value:.4f}, {low:.4f} to {high:.4f}"
            drawn.append(
                Lane(
                    x=round(left + (number + 0.5) * lane, 1),
                    y=round(_y(value, axis), 1),
                    low=round(_y(low, axis), 1),
                    high=round(_y(high, axis), 1),
                    style=styles.get(label, 0),
                    tied=at in line.best or at in line.inside_noise,
                    tip=f"{label}, {_name(line)}: {tip}",
                )
            )
    return Group(
        name=_short(_name(line)),
        title=_name(line) if isinstance(line, Average) else f"{line.title}, {line.metric}",
        anchor=board_anchor(table) if isinstance(line, Average) else task_anchor(line.task),
        left=round(left, 1),
        width=round(len(lanes) * lane, 1),
        lanes=tuple(drawn),
    )


def _name(line: Row | Average) -> str:
    return "Average" if isinstance(line, Average) else line.task


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def _text(table: Table, lines: Sequence[Row | Average]) -> str:
    """The best of each task in words: the picture's alternative text."""
    found = []
    for line in lines:
        best = [table.columns[at].label for at in sorted(line.best)]
        if best:
            tied = sum(table.columns[at].label not in best for at in line.inside_noise)
            found.append(f"{_name(line)} {' and '.join(best)}" + (f" ({tied} tied)" if tied else ""))
    return f"Best encoder of each task: {', '.join(found)}." if found else "Scores of one encoder by task."

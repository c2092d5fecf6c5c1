"""What a benchmark says: a table of figures, their ratios to one of them, and what was to be reached. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Row", "Table", "Target", "at_least", "at_least_times", "at_most", "at_most_times", "figure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A limit on a row's figure, or on its ratio to the table's baseline."""

    of: Literal["figure", "ratio"]
    limit: float
    better: Literal["more", "less"]

    def is_met(self, *, figure: float, ratio: float) -> bool:
        value = figure if self.of == "figure" else ratio
        return value >= self.limit if self.better == "more" else value <= self.limit

    def text(self, *, unit: str, baseline: str) -> str:
        bound = "at least" if self.better == "more" else "at most"
        return f"{bound} {self.limit:g} " + (unit if self.of == "figure" else f"x {baseline}")


def at_least(limit: float) -> Target:
    return Target(of="figure", limit=limit, better="more")


def at_most(limit: float) -> Target:
    return Target(of="figure", limit=limit, better="less")


def at_least_times(limit: float) -> Target:
    return Target(of="ratio", limit=limit, better="more")


def at_most_times(limit: float) -> Target:
    return Target(of="ratio", limit=limit, better="less")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure, in the unit of its table."""

    what: str
    value: float
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures of one unit.

    ``measures`` says in a sentence what a row is; ``baseline`` names the row that every ratio is to.
    """

    title: str
    measures: str
    unit: str
    baseline: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        names = [row.what for row in self.rows]
        if self.baseline not in names:
            raise ValueError(f"the baseline must be one of the rows {names}: got {self.baseline!r}")

    def ratio(self, row: Row) -> float:
        base = next(each.value for each in self.rows if each.what == self.baseline)
        return row.value / base

    def cells(self) -> list[tuple[str, ...]]:
        header = ("", self.unit, f"x {self.baseline}", "target", "")
        return [header, *(self._row_cells(row) for row in self.rows)]

    def _row_cells(self, row: Row) -> tuple[str, ...]:
        ratio = self.ratio(row)
        texts = [target.text(unit=self.unit, baseline=self.baseline) for target in row.targets]
        verdicts = ["met" if t.is_met(figure=row.value, ratio=ratio) else "missed" for t in row.targets]
        return (row.what, figure(row.value), figure(ratio), "; ".join(texts), "; ".join(verdicts))

    def as_text(self) -> str:
        cells = self.cells()
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(pad(cell, w) for pad, cell, w in zip(_PADS, line, widths, strict=True)) for line in cells]
        return "\n".join([self.title, self.measures, *(f"  {line}".rstrip() for line in lines)])

    def as_markdown(self) -> str:
        header, *rows = self.cells()
        lines = [_markdown(header), "|---|---:|---:|---|---|", *map(_markdown, rows)]
        return "\n".join([f"### {self.title}", "", self.measures, "", *lines])


_PADS = (str.ljust, str.rjust, str.rjust, str.ljust, str.ljust)


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def figure(value: float) -> str:
    """Three digits that count, and no more than are needed.

    >>> figure(1234.5), figure(12.345), figure(0.01234), figure(0.0)
    ('1,234', '12.3', '0.0123', '0')
    """
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 1:
        return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return f"{value:#.3g}" if size else "0"

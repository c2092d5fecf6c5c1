"""A table of words and figures side by side. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Grid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Cells as they are to be read; the first column stands left, the others right.

    ``measures`` says in a sentence or two what a row is.
    """

    title: str
    measures: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"every row must have {len(self.header)} cells, as the header")

    def as_text(self) -> str:
        cells = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for first, *rest in cells:
            lines.append("  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]))
        return "\n".join([self.title, self.measures, *(f"  {line}".rstrip() for line in lines)])

    def as_markdown(self) -> str:
        lines = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.header, *self.rows)
        ]
        lines.insert(1, "|---|" + "---:|" * (len(self.header) - 1))
        return "\n".join([f"### {self.title}", "", self.measures, "", *lines])

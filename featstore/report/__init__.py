"""From scores on disk to leaderboards: results, what they add up to, and how that is written as text."""

from featstore.report.leaderboard import Average, Cell, Column, Leaderboard, Row, Table, build
from featstore.report.render import Grid, GridCell, GridRow, grid, to_csv, to_json, to_markdown
from featstore.report.results import read_scores, write_score

__all__ = [
    "Average",
    "Cell",
    "Column",
    "Grid",
    "GridCell",
    "GridRow",
    "Leaderboard",
    "Row",
    "Table",
    "build",
    "grid",
    "read_scores",
    "to_csv",
    "to_json",
    "to_markdown",
    "write_score",
]

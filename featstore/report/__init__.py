"""Reports on scores: result files, leaderboards, comparisons, and their text, CSV, JSON and HTML."""

from featstore.report.comparison import Comparison, Difference, compare
from featstore.report.grids import Grid, GridCell, GridRow, comparison_grids, grid
from featstore.report.latex import grids_to_latex
from featstore.report.leaderboard import build
from featstore.report.published import PublishedScores, published_scores
from featstore.report.resolution import Resolution, Separation
from featstore.report.results import Results, read_certificates, read_results, read_scores, write_score
from featstore.report.tables import LOWER_IS_BETTER, Average, Cell, Column, Leaderboard, Row, Table
from featstore.report.text import (
    board_to_json,
    comparison_to_csv,
    comparison_to_json,
    grids_to_markdown,
    to_csv,
    to_json,
    to_markdown,
)
from featstore.report.warnings import WarningLine, warning_lines

__all__ = [
    "LOWER_IS_BETTER",
    "Average",
    "Cell",
    "Column",
    "Comparison",
    "Difference",
    "Grid",
    "GridCell",
    "GridRow",
    "Leaderboard",
    "PublishedScores",
    "Resolution",
    "Results",
    "Row",
    "Separation",
    "Table",
    "WarningLine",
    "board_to_json",
    "build",
    "compare",
    "comparison_grids",
    "comparison_to_csv",
    "comparison_to_json",
    "grid",
    "grids_to_latex",
    "grids_to_markdown",
    "published_scores",
    "read_certificates",
    "read_results",
    "read_scores",
    "to_csv",
    "to_json",
    "to_markdown",
    "warning_lines",
    "write_score",
]

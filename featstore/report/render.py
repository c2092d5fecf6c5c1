"""Scores as the text of one file: HTML, Markdown, LaTeX, CSV or JSON."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

from featstore.errors import UsageError
from featstore.records import ScoreRecord
from featstore.report.grids import grid
from featstore.report.latex import grids_to_latex
from featstore.report.leaderboard import build
from featstore.report.published import published_scores
from featstore.report.text import board_to_json, to_csv, to_json, to_markdown

if TYPE_CHECKING:
    from featstore.store import Store

__all__ = ["FORMAT_OF_SUFFIX", "Format", "render"]

Format = Literal["html", "markdown", "latex", "csv", "json", "leaderboard-json"]
FORMAT_OF_SUFFIX: Mapping[str, Format] = {
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
}


def render(
    scores: Sequence[ScoreRecord],
    form: Format,
    *,
    title: str = "Audio encoders",
    published: bool = False,
    store: Store | None = None,
    certified: Collection[str] = frozenset(),
) -> str:
    """Render the leaderboard of scores.

    Parameters
    ----------
    title : str
        Title of an HTML page.
    published : bool
        Add the published scores of X-ARES to the tables; an HTML page always has them, and ``json``, which is the score
        records, never.
    store : Store, optional
        For an HTML page: also show the health of the embedding spaces of the scores.
    certified : collection of str
        Hashes of the scores that are marked as certified; see `featstore.report.build`.

    Raises
    ------
    UsageError
        `form` is not a format, `store` is given for a format other than HTML, or a library of the page is missing.
    """
    if form not in get_args(Format):
        raise UsageError(f"format must be one of {', '.join(get_args(Format))}: got {form!r}")
    if form == "html":
        from featstore.report.page import render_page
        from featstore.report.spaces import spaces_of

        health = () if store is None else spaces_of(store, scores)
        return render_page(scores, published=published_scores(), health=health, title=title, certified=certified)
    if store is not None:
        raise UsageError("only the format html shows the health of a store")
    if form == "json":
        return to_json(scores, certified=certified)
    board = build(scores, published=published_scores() if published else None, certified=certified)
    if form == "latex":
        return grids_to_latex(grid(table) for table in board.tables)
    if form == "leaderboard-json":
        return board_to_json(board)
    return to_csv(board) if form == "csv" else to_markdown(board)

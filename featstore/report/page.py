"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np

from featstore import __version__
from featstore.diagnostics import Health, health_notes
from featstore.records import ScoreRecord
from featstore.report.leaderboard import build
from featstore.report.page_boards import sections_of
from featstore.report.page_charts import N_COLOURS, Chart, chart_svg, matrix_png
from featstore.report.page_health import health_by_encoder
from featstore.report.page_picture import picture_of
from featstore.report.page_summary import opening_tables, problems_of, result_sentence
from featstore.report.page_tasks import Confusion, recipes_of, task_views
from featstore.report.published import PublishedScores
from featstore.report.tables import Leaderboard, natural
from featstore.report.templating import as_markup, environment, writable

__all__ = ["render_page", "styles_of"]


def render_page(
    records: Iterable[ScoreRecord],
    *,
    published: PublishedScores | None = None,
    health: Sequence[Health] = (),
    title: str = "Audio encoders",
    made_at: datetime | None = None,
    certified: Collection[str] = frozenset(),
) -> str:
    """Render scores as one HTML page.

    Parameters
    ----------
    records : iterable of ScoreRecord
        The newest scores, from `featstore.report.read_scores`.
    published : PublishedScores, optional
        Shown separately in the tables of their protocol and tasks.
    health : sequence of Health
        Health of the feature sets of the scores.
    title : str
    made_at : datetime, optional
        The current time by default.
    certified : collection of str
        Hashes of the scores that are marked as certified.

    Raises
    ------
    UsageError
        jinja2 or matplotlib is not installed.
    """
    templates = environment(what="the HTML report")
    templates.filters |= {"number": _number, "counts": _counts, "png": _png}
    scores = tuple(records)
    board = build(scores, published=published, certified=certified)
    styles = styles_of(board)
    opening = opening_tables(board.tables)
    numbers = count(1)

    def draw(chart: Chart, *, task: str, metric: str) -> Any:
        # every untrusted text in it is escaped
        return as_markup(chart_svg(chart, number=next(numbers), task=task, metric=metric))

    page = templates.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        made_at=(made_at or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        result=result_sentence(opening),
        picture=picture_of(opening, styles=styles),
        problems=problems_of(board.tables),
        sections=sections_of(board.tables, styles=styles),
        tasks=task_views(board, scores, styles=styles),
        recipes=recipes_of(scores),
        n_encoders=len({(each.encoder, each.fingerprint) for each in scores}),
        n_scores=len(scores),
        health=health_by_encoder(health),
        health_notes=health_notes(health, with_label=any(each.space.separability is not None for each in health)),
        published_source="" if published is None else published.source,
        draw=draw,
        media="",
    )
    return writable(page)


def styles_of(board: Leaderboard) -> Mapping[str, int]:
    """Number of the colour and marker of each label, the same in every table and chart.

    The last digit is the colour, which is that of the encoder; settings of one encoder, such as heads, have further
    markers. Encoders after the tenth use the colours again with other markers.
    """
    own = [column for table in board.tables for column in table.columns if not column.published]
    encoders = sorted({(each.encoder, each.fingerprint) for each in own}, key=lambda place: natural("@".join(place)))
    styles: dict[str, int] = {}
    for at, place in enumerate(encoders):
        labels = {each.label for each in own if (each.encoder, each.fingerprint) == place}
        for variant, label in enumerate(sorted(labels, key=lambda label: (len(label), natural(label)))):
            styles.setdefault(label, at % N_COLOURS + N_COLOURS * (at // N_COLOURS + variant))
    return styles


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _counts(rows: Sequence[Sequence[int]]) -> str:
    """A matrix as the text of an attribute; zeros are empty."""
    return ";".join(",".join(str(n) if n else "" for n in row) for row in rows)


def _png(found: Confusion) -> str:
    counts = np.array(found.counts, np.float64)
    return matrix_png(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))

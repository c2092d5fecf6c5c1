"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore import __version__
from featstore.errors import missing_extra
from featstore.records import ScoreRecord
from featstore.report.leaderboard import build
from featstore.report.page_boards import sections_of
from featstore.report.page_charts import N_COLOURS, CurveView, PointView
from featstore.report.page_health import health_by_encoder
from featstore.report.page_picture import picture_of
from featstore.report.page_summary import opening_tables, problems_of, result_sentence
from featstore.report.page_tasks import Confusion, recipes_of, task_views
from featstore.report.published import PublishedScores
from featstore.report.tables import Leaderboard, natural
from featstore.report.templating import as_markup, environment, writable

if TYPE_CHECKING:
    from jinja2 import Environment

    from featstore.diagnostics import Health

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
    templates = _templates()
    scores = tuple(records)
    board = build(scores, published=published, certified=certified)
    styles = styles_of(board)
    opening = opening_tables(board.tables)
    charts = _Charts()
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
        health_notes=_health_notes(health),
        published_source="" if published is None else published.source,
        draw=charts.draw,
        media="",
        matrix_picture=_matrix_picture,
    )
    return writable(page)


def _templates() -> Environment:
    try:
        from featstore.report import page_charts as charts  # noqa: F401 - fails before any work if matplotlib is missing
    except ImportError as error:
        raise missing_extra("the HTML report", error, "report") from error
    found = environment(what="the HTML report")
    found.filters["number"] = _number
    found.filters["counts"] = _counts
    return found


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


def _health_notes(health: Sequence[Health]) -> tuple[str, ...]:
    from featstore.diagnostics import health_notes

    return health_notes(health, with_label=any(each.space.separability is not None for each in health))


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _counts(rows: Sequence[Sequence[int]]) -> str:
    """A matrix as the text of an attribute; zeros are empty."""
    return ";".join(",".join(str(n) if n else "" for n in row) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """A matrix as an image, with its alternative text."""

    uri: str
    tip: str


def _matrix_picture(found: Confusion) -> _Picture:
    from featstore.report.page_charts import matrix_png

    counts = np.array(found.counts, np.float64)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    most = "; ".join(f"{true} predicted as {predicted} {n} of {of} times" for true, predicted, n, of in found.pairs[:3])
    tip = f"Confusion matrix of {found.label}, {len(found.classes)} classes. Most confused: {most or 'no classes'}."
    return _Picture(uri=matrix_png(shares), tip=tip)


def _tip(point: PointView) -> str:
    interval = "" if point.low is None or point.high is None else f", {point.low:.4f} to {point.high:.4f}"
    return f"{point.x:g}: {point.y:.4f}{interval}"


class _Charts:
    """Draws curves; each chart has its own number."""

    def __init__(self) -> None:
        from featstore.report.page_charts import Plotter

        self._plotter = Plotter()
        self._numbers: Iterator[int] = count(1)

    def draw(self, view: CurveView, *, task: str, metric: str) -> Any:
        """The chart as safe markup."""
        from featstore.report.page_charts import Curve, Point

        curves = [
            Curve(
                label=label,
                colour=colour,
                points=tuple(
                    Point(x=each.x, y=each.y, low=each.low, high=each.high, tip=f"{label}, {_tip(each)}")
                    for each in points
                ),
            )
            for label, colour, points in view.curves
        ]
        ends = "; ".join(
            f"{curve.label} from {curve.points[0].y:.3f} at {curve.points[0].x:g} "
            f"to {curve.points[-1].y:.3f} at {curve.points[-1].x:g}"
            for curve in curves
        )
        svg = self._plotter.curves_svg(
            curves,
            number=next(self._numbers),
            title=f"{view.title}: {task}, {metric}",
            description=f"{metric if view.y_label == 'score' else view.y_label} by {view.x_label}. {ends}.",
            x_label=view.x_label,
            y_label=view.y_label,
            x_scale="linear" if view.kind in ("layer", "weights") else "log",
            as_bars=view.kind == "weights",
        )
        return as_markup(svg)  # every untrusted text in it is escaped

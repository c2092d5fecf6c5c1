"""Charts of the page: curves as SVG, and confusion matrices."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featstore.errors import missing_extra
from featstore.records import ScoreRecord

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.image import imsave
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
except ImportError as error:
    raise missing_extra("the HTML report", error, "report") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

__all__ = ["N_COLOURS", "Chart", "Curve", "Point", "chart_svg", "charts_of", "matrix_png"]


N_COLOURS = 10
"""Series colours of the style sheet of the page, ``--c0`` to ``--c9``."""

MAX_BANDS = 4
"""Maximum number of curves with interval bands; the tooltips of points always have the interval."""

# Placeholder colours, which are replaced by CSS variables in the SVG.
_INK, _GRID, _SERIES = "#fedc00", "#fedc01", "#fedd{:02x}"
_AXES_POINTS = 4.4 * 72 * 0.85
"""Width of the axes."""

_DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (4, 2)), (0, (1, 1.5)))  # type: ignore[assignment]
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, for search, copy and screen readers
    "svg.hashsalt": "featstore",
    "text.parse_math": False,
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


CurveKind = Literal["k", "shots", "layer", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a curve, with the ends of its interval, if any."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points of one encoder. ``colour`` is a number from 0; after the last colour, lines are dashed."""

    label: str
    colour: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves on common axes; of kind ``weights``, bars from 0. ``n_not_drawn`` is the number of further curves."""

    kind: CurveKind
    title: str
    x_label: str
    curves: tuple[Curve, ...]
    n_not_drawn: int
    y_label: str = "score"

    @property
    def xs(self) -> tuple[float, ...]:
        """The x of every point: the columns of the chart as a table."""
        return tuple(sorted({point.x for curve in self.curves for point in curve.points}))

    @property
    def rows(self) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
        """Label of each curve and its score at each of ``xs``; None without a point."""
        known = [(curve.label, {point.x: point.y for point in curve.points}) for curve in self.curves]
        return tuple((label, tuple(y.get(x) for x in self.xs)) for label, y in known)


def chart_svg(chart: Chart, *, number: int, task: str, metric: str) -> str:
    """Draw a chart as an ``<svg>`` element of a page.

    Parameters
    ----------
    number : int
        Different for every chart of a page: ids begin with it.
    task, metric : str
        For the text alternative.
    """
    curves, as_bars = chart.curves, chart.kind == "weights"
    x_scale: Literal["linear", "log"] = "linear" if chart.kind in ("layer", "weights") else "log"
    with mpl.rc_context(_STYLE):
        figure, axes = _empty_axes(x_scale, as_bars=as_bars)
        for at, curve in enumerate(curves):
            if as_bars:
                _draw_bars(axes, at, curve, n_curves=len(curves))
            else:
                _draw(axes, at, curve, with_band=len(curves) <= MAX_BANDS)
        if as_bars:
            highest = max(point.y if point.high is None else point.high for each in curves for point in each.points)
            axes.set(xlim=(chart.xs[0] - 0.5, chart.xs[-1] + 0.5), ylim=(0.0, 1.05 * highest))
        if len(chart.xs) <= 8:
            axes.xaxis.set_major_locator(FixedLocator(chart.xs))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True) if x_scale == "linear" else LogLocator())
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    ends = "; ".join(
        f"{curve.label} from {curve.points[0].y:.3f} at {curve.points[0].x:g} "
        f"to {curve.points[-1].y:.3f} at {curve.points[-1].x:g}"
        for curve in curves
    )
    return _for_a_page(
        text.getvalue(),
        curves,
        number=number,
        title=f"{chart.title}: {task}, {metric}",
        description=f"{metric if chart.y_label == 'score' else chart.y_label} by {chart.x_label}. {ends}.",
    )


def _empty_axes(x_scale: Literal["linear", "log"], *, as_bars: bool) -> tuple[Figure, Axes]:
    """Axes of earlier charts are used again: to create them and their ticks takes a third of the time of a chart."""
    figure, axes = _new_axes(x_scale, as_bars)
    for artist in (*axes.lines, *axes.collections):
        artist.remove()
    axes.relim()
    return figure, axes


@cache
def _new_axes(x_scale: Literal["linear", "log"], as_bars: bool) -> tuple[Figure, Axes]:  # noqa: ARG001, FBT001 - bars set limits
    figure = Figure(figsize=(4.4, 2.5))
    figure.subplots_adjust(left=0.13, right=0.98, bottom=0.18, top=0.97)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.set_xscale(x_scale)
    axes.grid(axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.patch.set_visible(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _draw(axes: Axes, at: int, curve: Curve, *, with_band: bool) -> None:
    colour = _SERIES.format(curve.colour % N_COLOURS)
    dashes = _DASHES[curve.colour // N_COLOURS % len(_DASHES)]
    x, y = [point.x for point in curve.points], [point.y for point in curve.points]
    known = [point for point in curve.points if point.low is not None and point.high is not None]
    if with_band and len(known) > 1:
        low, high = [point.low or 0.0 for point in known], [point.high or 0.0 for point in known]
        axes.fill_between([point.x for point in known], low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(x, y, color=colour, linewidth=1.4, linestyle=dashes, clip_on=False)
    axes.plot(x, y, "o", color=colour, markersize=4, clip_on=False, gid=f"points-{at}")


def _draw_bars(axes: Axes, at: int, curve: Curve, *, n_curves: int) -> None:
    """Draw bars beside those of other curves, their intervals, and a point with the tooltip at the end of each."""
    colour, width = _SERIES.format(curve.colour % N_COLOURS), 0.8 / n_curves
    x = [point.x + (at - (n_curves - 1) / 2) * width for point in curve.points]
    n_places = curve.points[-1].x - curve.points[0].x + 1
    points_wide = 0.8 * _AXES_POINTS * width / n_places
    axes.vlines(x, 0.0, [point.y for point in curve.points], color=colour, alpha=0.4, linewidth=points_wide)
    known = [(place, point) for place, point in zip(x, curve.points, strict=True) if point.low is not None]
    axes.vlines(
        [place for place, _ in known],
        [point.low or 0.0 for _, point in known],
        [point.high or 0.0 for _, point in known],
        color=colour,
        linewidth=0.8,
    )
    axes.plot(x, [point.y for point in curve.points], "o", color=colour, markersize=2.5, gid=f"points-{at}")


def _for_a_page(svg: str, curves: Sequence[Curve], *, number: int, title: str, description: str) -> str:
    """Remove metadata and styles, use colours and fonts of the style sheet, and add title, description and tooltips."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    svg = re.sub(r"#fedd([0-9a-f]{2})", lambda found: f"var(--c{int(found[1], 16)})", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?|font: [^;\"]*; ?", "", svg)
    svg = re.sub(r"font-size: 8px; ?|; fill: currentColor(?=\"( x=| transform=))", "", svg)

    def named(found: re.Match[str]) -> str:
        curve = curves[int(found[1])]
        points = iter(curve.points)
        return re.sub(
            r"<use[^>]*/>",
            lambda use: f'<g class="point"><title>{escape(_tip(curve, next(points)))}</title>{use[0]}</g>',
            f"<g>{found[2]}",
        )

    svg = re.sub(r'<g id="points-(\d+)">(.*?</g>\s*</g>)', named, svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)  # it would apply to the page
    svg = re.sub(r' id="[a-zA-Z.]\w*[._]\w+"', "", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>chart{number}-", svg)
    svg = re.sub(r" transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("> <", "><")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    opening = (
        f'<svg role="img" aria-labelledby="chart{number}-title chart{number}-text" '
        f'{view_box[0] if view_box else ""} xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="chart{number}-title">{escape(title)}</title>'
        f'<desc id="chart{number}-text">{escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()


def _tip(curve: Curve, point: Point) -> str:
    interval = "" if point.low is None or point.high is None else f", {point.low:.4f} to {point.high:.4f}"
    return f"{curve.label}, {point.x:g}: {point.y:.4f}{interval}"


def matrix_png(shares: NDArray[np.float64]) -> str:
    """A matrix (n, n) of numbers from 0 to 1 as a PNG data URI: one pixel per cell, whose opacity is the number."""
    pixels = np.zeros((*shares.shape, 4))
    pixels[..., :3] = (0.16, 0.44, 0.78)
    pixels[..., 3] = np.clip(shares, 0.0, 1.0)
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


MAX_CURVES = 12
LAYER = re.compile(r"(?P<name>.+)\.layer(?P<layer>[0-9]+)(\.(?P<pool>max|std))?")
"""Name of a layer of an encoder, with its pooling unless it is the mean."""


def charts_of(scored: Sequence[tuple[str, int, ScoreRecord]]) -> tuple[Chart, ...]:
    """The charts of a task with at least two points, for scores with labels and colours."""
    charts = [_k_curve(scored), _shots_curve(scored), _layer_curve(scored), _layer_weights(scored)]
    return tuple(chart for chart in charts if chart is not None)


def _k_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> Chart | None:
    curves = []
    for label, colour, record in scored:
        points = [Point(x=x, y=y) for x, y in _numbered(record.details.get("k_curve"))]
        curves.append(Curve(label=label, colour=colour, points=tuple(points)))
    return _chart("k", curves, title="Score by number of neighbours", x_label="k, number of neighbours")


def _shots_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> Chart | None:
    curves = []
    for label, colour, record in scored:
        raw = record.details.get("shots")
        points = []
        for shots, found in sorted(raw.items(), key=lambda item: int(item[0])) if isinstance(raw, Mapping) else ():
            points.append(Point(x=int(shots), y=found["mean"], low=found["low"], high=found["high"]))
        curves.append(Curve(label=label, colour=colour, points=tuple(points)))
    return _chart("shots", curves, title="Score by number of training clips", x_label="training clips per class")


def _layer_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> Chart | None:
    """A curve for each encoder with several layers, in the colour of its first layer."""
    by_name: dict[str, dict[int, ScoreRecord]] = {}
    colour_of: dict[str, dict[int, int]] = {}
    for _, colour, record in scored:
        found = LAYER.fullmatch(record.encoder)
        if found is not None:
            name = f"{found['name']} ({found['pool']})" if found["pool"] else found["name"]
            by_name.setdefault(name, {}).setdefault(int(found["layer"]), record)
            colour_of.setdefault(name, {}).setdefault(int(found["layer"]), colour)
    curves = [
        Curve(
            label=name,
            colour=colour_of[name][min(layers)],
            points=tuple(
                Point(
                    x=layer,
                    y=record.value,
                    low=None if record.ci_low == record.ci_high else record.ci_low,
                    high=None if record.ci_low == record.ci_high else record.ci_high,
                )
                for layer, record in sorted(layers.items())
            ),
        )
        for name, layers in sorted(by_name.items())
    ]
    return _chart("layer", curves, title="Score by layer", x_label="layer of the encoder")


def _layer_weights(scored: Sequence[tuple[str, int, ScoreRecord]]) -> Chart | None:
    """Mean weight of each layer, with one standard deviation over rounds and seeds."""
    curves = []
    for label, colour, record in scored:
        raw = record.details.get("layer_weights")
        if isinstance(raw, Mapping):
            spread = raw["std"] or [None] * len(raw["mean"])
            points = [
                Point(x=x, y=y, low=None if std is None else y - std, high=None if std is None else y + std)
                for x, y, std in zip(raw["layers"], raw["mean"], spread, strict=True)
            ]
            curves.append(Curve(label=label, colour=colour, points=tuple(points)))
    chart = _chart("weights", curves, title="Weights of the layer mix", x_label="layer of the encoder")
    return None if chart is None else replace(chart, y_label="weight")


def _chart(
    kind: CurveKind,
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
) -> Chart | None:
    """A chart of the curves with at least two points; None if there is none."""
    drawn = [curve for curve in curves if len(curve.points) > 1]
    if not drawn:
        return None
    return Chart(
        kind=kind,
        title=title,
        x_label=x_label,
        curves=tuple(drawn[:MAX_CURVES]),
        n_not_drawn=max(0, len(drawn) - MAX_CURVES),
    )


def _numbered(raw: object) -> list[tuple[int, float]]:
    if not isinstance(raw, Mapping):
        return []
    return sorted((int(name), float(value)) for name, value in raw.items())

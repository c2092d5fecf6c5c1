"""Curves of a task's scores, decided before anything is drawn: by neighbours, by training clips, by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from featstore.records import ScoreRecord

__all__ = ["CurveView", "PointView", "curves_of"]

MAX_CURVES = 12
LAYER = re.compile(r"(?P<name>.+)\.layer(?P<layer>[0-9]+)(\.(?P<pool>max|std))?")
"""How one layer of an encoder is called, and one layer pooled otherwise than by its mean."""

CurveKind = Literal["k", "shots", "layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointView:
    """One point of a curve."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveView:
    """A chart: curves by label, with the colour of each. ``left_out`` curves were too many to tell apart."""

    kind: CurveKind
    title: str
    x_label: str
    curves: tuple[tuple[str, int, tuple[PointView, ...]], ...]
    left_out: int

    @property
    def xs(self) -> tuple[float, ...]:
        """Where any of the curves has a point: columns of the chart as a table."""
        return tuple(sorted({point.x for _, _, points in self.curves for point in points}))

    @property
    def rows(self) -> tuple[tuple[str, tuple[float | None, ...]], ...]:
        """Label of each curve and its score at each of ``xs``; None where it has no point."""
        known = [(label, {point.x: point.y for point in points}) for label, _, points in self.curves]
        return tuple((label, tuple(y.get(x) for x in self.xs)) for label, y in known)


def curves_of(scored: Sequence[tuple[str, int, ScoreRecord]]) -> tuple[CurveView, ...]:
    """Every chart that some scores of a task, with their labels and colours, have two points for."""
    charts = [_k_curve(scored), _shots_curve(scored), _layer_curve([record for _, _, record in scored])]
    return tuple(chart for chart in charts if chart is not None)


def _k_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> CurveView | None:
    curves = []
    for label, colour, record in scored:
        points = [PointView(x=x, y=y) for x, y in _numbered(record.details.get("k_curve"))]
        curves.append((label, colour, tuple(points)))
    return _chart("k", curves, title="Score by number of neighbours", x_label="k, neighbours that vote")


def _shots_curve(scored: Sequence[tuple[str, int, ScoreRecord]]) -> CurveView | None:
    curves = []
    for label, colour, record in scored:
        raw = record.details.get("shots")
        points = []
        for shots, found in sorted(raw.items(), key=lambda item: int(item[0])) if isinstance(raw, Mapping) else ():
            points.append(PointView(x=int(shots), y=found["mean"], low=found["low"], high=found["high"]))
        curves.append((label, colour, tuple(points)))
    return _chart("shots", curves, title="Score by number of training clips", x_label="training clips of each class")


def _layer_curve(scored: Sequence[ScoreRecord]) -> CurveView | None:
    by_name: dict[str, dict[int, ScoreRecord]] = {}
    for record in scored:
        found = LAYER.fullmatch(record.encoder)
        if found is not None:
            name = f"{found['name']} ({found['pool']})" if found["pool"] else found["name"]
            by_name.setdefault(name, {}).setdefault(int(found["layer"]), record)
    curves = [
        (
            name,
            colour,
            tuple(
                PointView(
                    x=layer,
                    y=record.value,
                    low=None if record.ci_low == record.ci_high else record.ci_low,
                    high=None if record.ci_low == record.ci_high else record.ci_high,
                )
                for layer, record in sorted(layers.items())
            ),
        )
        for colour, (name, layers) in enumerate(sorted(by_name.items()))
    ]
    return _chart("layer", curves, title="Score by layer", x_label="layer of the encoder")


def _chart(
    kind: CurveKind,
    curves: Sequence[tuple[str, int, tuple[PointView, ...]]],
    *,
    title: str,
    x_label: str,
) -> CurveView | None:
    """A chart of the curves that have two points or more; None where there is none."""
    drawn = [curve for curve in curves if len(curve[2]) > 1]
    if not drawn:
        return None
    return CurveView(
        kind=kind,
        title=title,
        x_label=x_label,
        curves=tuple(drawn[:MAX_CURVES]),
        left_out=max(0, len(drawn) - MAX_CURVES),
    )


def _numbered(raw: object) -> list[tuple[int, float]]:
    if not isinstance(raw, Mapping):
        return []
    return sorted((int(name), float(value)) for name, value in raw.items())

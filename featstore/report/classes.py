"""Classes of a task, as the page shows them: how well each encoder tells them, and what it takes for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featstore.records import ScoreRecord

__all__ = ["ClassRow", "ClassTable", "Confusion", "class_table", "confusions_of"]

MAX_CLASS_ROWS = 60
MAX_TABLE_CLASSES = 12
MAX_PAIRS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """A class, its test clips, and its score by each encoder."""

    name: str
    support: int | None
    scores: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTable:
    """Classes by encoder; of very many classes, those that are hardest on average."""

    labels: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    n_classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """What one encoder takes for what.

    Attributes
    ----------
    counts : tuple of tuple of int
        True classes by predicted ones; empty where a task has too many classes to show all.
    pairs : tuple of (str, str, int, int)
        Most confused: true class, predicted class, how often, and of how many (0 where that is not known).
    """

    label: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str, int, int], ...]

    @property
    def is_small(self) -> bool:
        """Whether every count can be read in a table."""
        return 0 < len(self.counts) <= MAX_TABLE_CLASSES


def class_table(scored: Sequence[tuple[str, ScoreRecord]]) -> ClassTable:
    """Lay out the classes of some scores, with their labels; no rows where none keeps its classes."""
    known = [(label, record) for label, record in scored if _has_classes(record)]
    if not known:
        return ClassTable(labels=(), rows=(), n_classes=0)
    names = known[0][1].details["classes"]
    known = [(label, record) for label, record in known if record.details["classes"] == names]
    support = known[0][1].details.get("support")
    table = np.array([record.details["by_class"] for _, record in known], np.float64)
    seen = ~np.isnan(table)
    mean = np.where(seen, table, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    shown = np.arange(len(names))
    if len(names) > MAX_CLASS_ROWS:
        hardest = np.argsort(np.where(seen.any(axis=0), mean, np.inf), kind="stable")
        shown = np.sort(hardest[:MAX_CLASS_ROWS])
    rows = tuple(
        ClassRow(
            name=str(names[at]),
            support=int(support[at]) if isinstance(support, list) and len(support) == len(names) else None,
            scores=tuple(float(value) if not np.isnan(value) else None for value in table[:, at]),
        )
        for at in shown
    )
    return ClassTable(labels=tuple(label for label, _ in known), rows=rows, n_classes=len(names))


def _has_classes(record: ScoreRecord) -> bool:
    classes, scores = record.details.get("classes"), record.details.get("by_class")
    return isinstance(classes, list) and isinstance(scores, list) and len(classes) == len(scores) > 0


def confusions_of(scored: Sequence[tuple[str, ScoreRecord]]) -> tuple[Confusion, ...]:
    """Matrices of the encoders that were scored on the same classes as the best."""
    found = [each for label, record in scored if (each := _confusion(label, record)) is not None]
    return tuple(each for each in found if each.classes == found[0].classes)


def _confusion(label: str, record: ScoreRecord) -> Confusion | None:
    classes = record.details.get("classes")
    counts, confused = record.details.get("confusion"), record.details.get("confused")
    if not isinstance(classes, list):
        return None
    names = tuple(map(str, classes))
    if isinstance(counts, list) and len(counts) == len(names):
        matrix = np.array(counts, np.int64)
        off = matrix.copy()
        np.fill_diagonal(off, 0)
        most = [divmod(int(at), len(names)) for at in np.argsort(-off, axis=None, kind="stable")[:MAX_PAIRS]]
        pairs = [(names[a], names[b], int(off[a, b]), int(matrix[a].sum())) for a, b in most if off[a, b]]
        rows = tuple(tuple(int(count) for count in line) for line in matrix.tolist())
        return Confusion(label=label, classes=names, counts=rows, pairs=tuple(pairs))
    if isinstance(confused, list):
        support = record.details.get("support")
        pairs = [
            (names[a], names[b], n, int(support[a]) if isinstance(support, list) else 0)
            for a, b, n in confused[:MAX_PAIRS]
        ]
        return Confusion(label=label, classes=names, counts=(), pairs=tuple(pairs))
    return None

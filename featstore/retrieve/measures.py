"""The measures of Track B by name, and `score_measures`, which scores several of them for one task and encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from featstore.errors import UsageError
from featstore.evaluation.runner import ScoreFailure, attempt
from featstore.records import Protocol, ScoreRecord
from featstore.retrieve.api import score_knn, why_no_vote
from featstore.retrieve.clustering import score_clustering
from featstore.retrieve.maeb import METRICS, score_maeb, why_no_type
from featstore.retrieve.measured import MeasuredTask
from featstore.retrieve.pairs import score_same_pairs
from featstore.retrieve.ranking import score_retrieval
from featstore.retrieve.saved_index import Notify
from featstore.retrieve.zero_shot import score_text_retrieval, score_zero_shot, why_no_text, why_no_zero_shot

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["MEASURES", "Measure", "check_measures", "default_measures", "measures_of", "score_measures", "why_not"]

KINDS = ("clip", "multilabel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One evaluation without training.

    Attributes
    ----------
    score : callable
        Takes the task and encoder, and returns the record; raises FeatstoreError.
    why_not : callable
        Takes the manifest and returns why the task has no such measure, or an empty text.
    protocols : tuple of str
        Protocols that define it.
    by_default : bool
        Whether it is computed where no measure is named.
    """

    score: Callable[[MeasuredTask], ScoreRecord]
    why_not: Callable[[Manifest], str]
    protocols: tuple[Protocol, ...] = ("strict",)
    by_default: bool = False


def _why_no_classes(manifest: Manifest) -> str:
    return "" if manifest.kind in KINDS else f"is of kind {manifest.kind!r}, which has no classes to compare clips by"


MEASURES: Mapping[str, Measure] = {
    "knn": Measure(score=score_knn, why_not=why_no_vote, protocols=("strict", "xares"), by_default=True),
    "retrieval": Measure(score=score_retrieval, why_not=_why_no_classes),
    "clustering": Measure(score=score_clustering, why_not=_why_no_classes),
    "pairs": Measure(score=score_same_pairs, why_not=_why_no_classes),
    "zero-shot": Measure(score=score_zero_shot, why_not=why_no_zero_shot, protocols=("strict", "xares")),
    "text": Measure(score=score_text_retrieval, why_not=why_no_text, protocols=("strict", "xares")),
}
"""Name, as in ``--measure``, to measure, in the order of tables."""


def _of_mteb(name: str) -> Measure:
    return Measure(
        score=lambda of: score_maeb(of.maeb, name),
        why_not=partial(why_no_type, name),
        protocols=("maeb",),
        by_default=True,
    )


OF_MTEB: Mapping[str, Measure] = {name: _of_mteb(name) for name in METRICS}
"""Types of mteb tasks: the measures of the protocol ``maeb``."""


def measures_of(protocol: Protocol) -> Mapping[str, Measure]:
    """Return the measures that a protocol defines, by name."""
    known = OF_MTEB if protocol == "maeb" else MEASURES
    return {name: measure for name, measure in known.items() if protocol in measure.protocols}


def default_measures(protocol: Protocol) -> tuple[str, ...]:
    """Return the names of the measures that a protocol computes if none is named."""
    return tuple(name for name, measure in measures_of(protocol).items() if measure.by_default)


def check_measures(
    measures: Sequence[str],
    protocol: Protocol,
    *,
    k: int | Sequence[int] | None = None,
    index: str = "flat",
    shots: Sequence[int] = (),
) -> None:
    """Raise UsageError unless measures are known, distinct and defined by the protocol, and the options are of one."""
    if not measures:
        raise UsageError(f"no measure is given: name one or more of {', '.join(measures_of(protocol))}")
    for name in measures:
        if name not in measures_of(protocol):
            raise UsageError(f"protocol {protocol} has no measure {name!r}; it has {', '.join(measures_of(protocol))}")
    if len(set(measures)) < len(measures):
        raise UsageError(f"measures must be unique, got {', '.join(measures)}")
    if "knn" not in measures and (k is not None or index != "flat" or shots):
        raise UsageError(f"k, index and shots are options of the measure knn, got {', '.join(measures)}")


def why_not(measure: str, manifest: Manifest, protocol: Protocol) -> str:
    """Return why a task has no such measure of a protocol, as one line, or an empty text."""
    reason = measures_of(protocol)[measure].why_not(manifest)
    return f"task {manifest.name} {reason}" if reason else ""


def score_measures(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None = None,
    protocol: Protocol = "strict",
    measures: Sequence[str] | None = None,
    k: int | Sequence[int] | None = None,
    index: str = "flat",
    shots: tuple[int, ...] = (),
    notify: Notify = lambda _: None,
) -> list[ScoreRecord | ScoreFailure]:
    """Score measures of one task and encoder; its embeddings are read once. One that fails does not stop the others.

    A measure that the task does not have is skipped, with a line to ``notify``, unless it has none of them.

    Parameters
    ----------
    measures : sequence of str, optional
        Names of `measures_of`; by default those of `default_measures` that the task has.
    store, manifest, encoder, protocol, k, index, shots, notify
        As of `featstore.retrieve.retrieve_task`; ``k``, ``index`` and ``shots`` apply to ``knn``.

    Returns
    -------
    list of ScoreRecord or ScoreFailure
        One for each measure, in their order.

    Raises
    ------
    UsageError
        A measure is unknown, or the task has none of them.
    FeatstoreError
        The task cannot be read; see `featstore.evaluation.load_task`.
    """
    named = default_measures(protocol) if measures is None else measures
    check_measures(named, protocol, k=k, index=index, shots=shots)
    reasons = {name: why_not(name, manifest, protocol) for name in named}
    there = [name for name in named if not reasons[name]]
    if not there:
        raise UsageError(next(iter(reasons.values())))
    for name, reason in reasons.items():
        if reason and measures is not None:
            notify(f"measure {name} is skipped: {reason}")
    of = MeasuredTask(
        store=store,
        manifest=manifest,
        encoder=encoder,
        protocol=protocol,
        k=k,
        index=index,
        shots=shots,
        notify=notify,
    )
    if len(there) == 1:
        return [measures_of(protocol)[there[0]].score(of)]
    _ = of.maeb if protocol == "maeb" else of.task  # a task that cannot be read is one failure
    return [
        attempt(
            partial(measures_of(protocol)[name].score, of),
            task=manifest.name,
            encoder=encoder,
            measure="" if name == "knn" else name,
        )
        for name in there
    ]

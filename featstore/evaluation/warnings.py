"""Warnings about the validity of a score, stored as a list in ``ScoreRecord.details["warnings"]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from featstore.formatting import counted

__all__ = ["ScoreWarning", "warnings_of_details"]

MAX_CLASSES_NAMED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWarning:
    """One warning.

    Attributes
    ----------
    kind : str
        ``shards_on_both_sides``, ``keys_on_both_sides``, ``exact_duplicates``, ``near_duplicates``,
        ``classes_not_in_training``, ``skipped_clips``, ``not_converged``, ``at_or_below_majority``,
        ``best_epoch_at_edge``, ``below_neighbours``.
    message : str
        One clause, without the names of task and encoder.
    count : int
        The count in the message.
    figures : mapping
        More numbers of this kind of warning.
    """

    kind: str
    message: str
    count: int
    figures: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"kind": self.kind, "message": self.message, "count": self.count, **self.figures}


def warnings_of_details(
    details: Mapping[str, Any], *, metric: str, value: float, skipped: Mapping[str, int]
) -> Iterator[ScoreWarning]:
    """Yield the warnings that a record's details imply.

    ``fit`` has flags by round and fit, ``at_or_below_majority`` and ``best_epoch_at_edge`` are flags, and
    ``neighbours_vote`` has a score and a flag. Details without them give no warning.

    Parameters
    ----------
    details : mapping
        Details of the record.
    metric, value
        Its metric and score.
    skipped : mapping
        Split or fold to the number of its clips that are not in the store.
    """
    unseen = details.get("classes_not_in_training") or []
    if unseen:
        shown = ", ".join(unseen[:3]) + (", ..." if len(unseen) > 3 else "")
        what = "class of the test clips is" if len(unseen) == 1 else "classes of the test clips are"
        yield ScoreWarning(
            kind="classes_not_in_training",
            message=f"{len(unseen):,} {what} absent from training: {shown}",
            count=len(unseen),
            figures={"classes": list(unseen[:MAX_CLASSES_NAMED])},
        )
    by_split = {name: n for name, n in skipped.items() if n}
    if by_split:
        total = sum(by_split.values())
        shown = ", ".join(f"{name} {n:,}" for name, n in by_split.items())
        yield ScoreWarning(
            kind="skipped_clips",
            message=f"{counted(total, 'clip')} skipped: {shown}",
            count=total,
            figures={"by_split": by_split},
        )
    fit = details.get("fit")
    if isinstance(fit, Mapping):
        fit = fit.get("rounds", fit)  # beside rounds, its own flag is their summary
    fits = [bool(flag) for flag in _named("converged", fit)]
    if not all(fits):
        failed = fits.count(False)
        yield ScoreWarning(
            kind="not_converged",
            message=f"the fit did not converge ({failed:,} of {len(fits):,})",
            count=failed,
            figures={"fits": len(fits)},
        )
    majority = _majority(details) if metric == "accuracy" else None
    if details.get("at_or_below_majority") or (majority is not None and value <= majority):
        against = "" if majority is None else f": {value:.3f} against {majority:.3f}"
        yield ScoreWarning(
            kind="at_or_below_majority",
            message=f"the score is at or below that of the majority class{against}",
            count=1,
            figures={} if majority is None else {"majority": majority},
        )
    vote = details.get("neighbours_vote")
    if vote and vote["above_interval"]:
        yield ScoreWarning(
            kind="below_neighbours",
            message=f"the probe, {value:.3f}, is below the vote of the neighbours, {vote['score']:.3f}",
            count=1,
            figures={"neighbours": vote["score"]},
        )
    if details.get("best_epoch_at_edge"):
        yield ScoreWarning(
            kind="best_epoch_at_edge",
            message="the best epoch is the first or the last allowed (1 of 1)",
            count=1,
            figures={"fits": 1},
        )


def _named(name: str, value: object) -> Iterator[object]:
    """Yield the values of a key at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == name:
                yield inner
            else:
                yield from _named(name, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _named(name, inner)


def _majority(details: Mapping[str, Any]) -> float | None:
    """Return the share of the largest class among the test clips: the accuracy of the best constant prediction."""
    support = details.get("support")
    if not isinstance(support, list) or not sum(support):
        return None
    return float(max(support) / sum(support))

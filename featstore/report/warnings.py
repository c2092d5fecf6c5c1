"""Warnings of scores as lines under a table: one for each task and kind, whatever the number of encoders."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featstore.records import ScoreRecord

__all__ = ["WarningLine", "below_neighbours", "warning_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningLine:
    """What some scores of one task are warned of: the message of the encoder that has most of it.

    Attributes
    ----------
    encoders : tuple of str
        Every encoder that it concerns, the one that the message is of first.
    """

    task: str
    kind: str
    message: str
    encoders: tuple[str, ...]

    def __str__(self) -> str:
        others = len(self.encoders) - 1
        also = "" if not others else f" and {others} more {'encoder' if others == 1 else 'encoders'}"
        return f"{self.task}: {self.message} ({self.encoders[0]}{also})"


def warning_lines(
    records: Iterable[ScoreRecord], *, more: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
) -> tuple[WarningLine, ...]:
    """Aggregate the warnings of scores of one protocol and track by task and kind, in the order of tasks.

    Parameters
    ----------
    records : iterable of ScoreRecord
        ``details["warnings"]`` of each is read; what is no list of warnings is passed over.
    more : mapping, optional
        `ScoreRecord.key` -> further warnings of that score, such as those of `below_neighbours`.
    """
    found: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for record in records:
        for each in (*_listed(record.details.get("warnings")), *(more or {}).get(record.key, ())):
            count = each.get("count", 0)
            rank = float(count) if isinstance(count, int | float) else 0.0
            place = (record.task, str(each["kind"]))
            found.setdefault(place, []).append((rank, record.encoder, str(each["message"])))
    lines = []
    for (task, kind), concerned in sorted(found.items(), key=lambda item: item[0][0]):
        most_first = sorted(concerned, key=lambda each: -each[0])
        encoders = tuple(dict.fromkeys(encoder for _, encoder, _ in most_first))
        lines.append(WarningLine(task=task, kind=kind, message=most_first[0][2], encoders=encoders))
    return tuple(lines)


def _listed(raw: object) -> list[Mapping[str, Any]]:
    entries = raw if isinstance(raw, list | tuple) else ()
    return [each for each in entries if isinstance(each, Mapping) and "kind" in each and "message" in each]


def below_neighbours(
    records: Iterable[ScoreRecord], *, lower_is_better: Collection[str]
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Find probes that the vote of the neighbours beats: their key -> the warning.

    A linear layer that learned all it can is seldom below it. The vote counts as better where it is outside the 95 %
    interval of the probe, on the same task, metric, protocol, encoder, manifest and embeddings. `lower_is_better` names
    the metrics that are errors.
    """
    scores = tuple(records)
    votes: dict[tuple[str, ...], float] = {}
    for record in scores:
        if record.track == "B":
            better = min if record.metric in lower_is_better else max
            votes[_same(record)] = better(record.value, votes.get(_same(record), record.value))
    found: dict[str, tuple[Mapping[str, Any], ...]] = {}
    for record in scores:
        vote = votes.get(_same(record))
        if record.track != "A" or vote is None or record.ci_low is None or record.ci_high is None:
            continue
        is_below = vote < record.ci_low if record.metric in lower_is_better else vote > record.ci_high
        if is_below:
            message = f"the probe, {record.value:.3f}, is below the vote of the neighbours, {vote:.3f}"
            found[record.key] = ({"kind": "below_neighbours", "message": message, "count": 1, "neighbours": vote},)
    return found


def _same(record: ScoreRecord) -> tuple[str, ...]:
    features = tuple(f"{name} {content}" for name, content in sorted(record.features.items()))
    return (
        record.task,
        record.metric,
        record.protocol,
        record.encoder,
        record.fingerprint,
        record.manifest_sha256,
        *features,
    )

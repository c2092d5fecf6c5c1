"""Warnings of scores as lines below a table: one for each task and kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featstore.records import ScoreRecord

__all__ = ["WarningLine", "warning_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarningLine:
    """A warning of some scores of one task, with the message of the encoder with the highest count.

    Attributes
    ----------
    encoders : tuple of str
        Every encoder with this warning, first that of the message.
    """

    task: str
    kind: str
    message: str
    encoders: tuple[str, ...]

    def __str__(self) -> str:
        others = len(self.encoders) - 1
        also = "" if not others else f" and {others} more {'encoder' if others == 1 else 'encoders'}"
        return f"{self.task}: {self.message} ({self.encoders[0]}{also})"


def warning_lines(records: Iterable[ScoreRecord]) -> tuple[WarningLine, ...]:
    """Aggregate the warnings of scores of one protocol and track by task and kind, in the order of tasks.

    Parameters
    ----------
    records : iterable of ScoreRecord
        ``details["warnings"]`` of each is read; anything but a list of warnings is ignored.
    """
    found: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for record in records:
        for each in _listed(record.details.get("warnings")):
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

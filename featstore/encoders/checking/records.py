"""What one check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Check", "Verdict"]

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One property of an encoder, measured.

    Attributes
    ----------
    name : str
        Such as ``"batch invariance"``.
    verdict : str
        ``"ok"``; ``"warning"``: fit for use, with a care that `advice` names; ``"failed"``: not fit for use as it is.
    measured : str
        What was measured, with its units.
    advice : str
        What to do; never empty where the verdict is not ``"ok"``.
    figures : mapping
        The same in numbers, for programs; names carry units.
    """

    name: str
    verdict: Verdict
    measured: str
    advice: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict != "ok" and not self.advice:
            raise ValueError(f"check {self.name} is {self.verdict}: it must say what to do")

    def as_json(self) -> dict[str, Any]:
        """The check as plain JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "measured": self.measured,
            "advice": self.advice,
            "figures": dict(self.figures),
        }

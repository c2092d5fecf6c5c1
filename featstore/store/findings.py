"""What a verification says: each thing that is wrong, where, and what a repair would do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Remedy", "VerifyReport"]

Remedy = Literal["drop the part", "write the document again", "delete the object", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. ``where`` is the path of the part, group or object; `remedy` is what a repair does."""

    where: str
    problem: str
    remedy: Remedy
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification read, and found."""

    url: str
    parts: int
    objects: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that was not repaired."""
        return all(finding.repaired for finding in self.findings)

    @property
    def repairable(self) -> bool:
        """Whether a repair would do anything."""
        return any(finding.remedy != "none" and not finding.repaired for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

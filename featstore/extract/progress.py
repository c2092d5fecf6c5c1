"""What a run tells whoever watches it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Watches one split at a time; called from one thread."""

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """A split begins; `shards_reused` of its shards are in the store already."""

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """So many more clips have been encoded or left out."""

    def shard_done(self) -> None:
        """One more shard has been encoded; its commit is on its way."""

    def end(self) -> None:
        """The split has ended, one way or another."""


class Silent:
    """Tells nobody."""

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Ignore."""

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Ignore."""

    def shard_done(self) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""

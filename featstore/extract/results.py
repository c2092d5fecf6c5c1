"""Results of encoding shards, stage times, and the interface of progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from featstore.errors import ShardError
from featstore.extract.shards import AnyShard
from featstore.store import Member

__all__ = ["EncodeResult", "EncodeSettings", "Outcome", "Progress", "Silent", "StageTimes", "StoredShard"]


class Progress(Protocol):
    """Watches one split at a time; called from one thread."""

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """A split begins; `shards_reused` of its shards are in the store already."""

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """N more clips have been encoded or skipped."""

    def shard_done(self) -> None:
        """One more shard has been encoded; its commit is pending."""

    def end(self) -> None:
        """The split has ended, one way or another."""


class Silent:
    """No-op progress."""

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Ignore."""

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Ignore."""

    def shard_done(self) -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""


@dataclass(slots=True)
class StageTimes:
    """Seconds by stage. ``wait_*`` are of the encoding thread; reading, decoding and writing run beside it.

    ``busy`` is what the device spent on batches, of ``total``. There were ``batches`` of them, and ``budgets`` adds up
    which share of its budget each of them held, at most 1.
    """

    read: float = 0.0
    decode: float = 0.0
    encode: float = 0.0
    busy: float = 0.0
    write: float = 0.0
    wait_clips: float = 0.0
    wait_write: float = 0.0
    total: float = 0.0
    batches: int = 0
    budgets: float = 0.0

    def as_json(self) -> dict[str, float]:
        """Seconds by name, rounded to the millisecond."""
        return {name: round(getattr(self, name), 3) for name in self.__slots__ if name not in ("batches", "budgets")}

    @property
    def batch_fill(self) -> float | None:
        """How much of its budget a batch held in the mean, 0 to 1."""
        return self.budgets / self.batches if self.batches else None

    def bottleneck(self, *, decode_threads: int) -> str:
        """The stage that held the run back: what the encoding thread spent most of its time on or waiting for."""
        ahead = "decode" if self.decode / decode_threads > self.read else "read"
        spent = {"encode": self.encode, ahead: self.wait_clips, "write": self.wait_write}
        return max(spent, key=lambda stage: spent[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """How shards are encoded; none of it decides the numbers beyond the last bits.

    ``device`` and ``batch_seconds`` are for the record: the encoder and the batcher have them.
    """

    device: str
    batch_seconds: float
    sample_rate_hz: int
    max_clip_seconds: float
    decode_threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """What a run keeps of a commit to one feature set: the shard's share of it, and the bytes of its objects."""

    member: Member
    n_bytes: int


Outcome = Mapping[int, StoredShard] | ShardError
"""What one shard came to: what was stored of it, by output, or why there is nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """What a run over shards came to: what was stored, by output in order; what broke, and why; and the time by stage.

    Where several workers encoded, ``times`` adds up theirs, the total apart, and ``deaths`` tells of those that died on
    the way: others encoded their shards. ``settings`` are None where nothing was to be encoded.
    """

    stored: Mapping[int, tuple[StoredShard, ...]]
    broken: tuple[tuple[AnyShard, str], ...]
    times: StageTimes
    settings: EncodeSettings | None
    workers: int = 1
    deaths: tuple[str, ...] = ()

"""Results of encoding, the events of the pipeline, stage times, and the progress interface."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from featstore.errors import ShardError
from featstore.extract.shards import AnyShard
from featstore.store import Member

__all__ = [
    "ClipTaken",
    "EncodeResult",
    "EncodeSettings",
    "Finished",
    "Outcome",
    "PipelineEvent",
    "Progress",
    "ShardEncoded",
    "ShardFailed",
    "ShardRead",
    "Silent",
    "StageTimes",
    "StoredShard",
    "collect",
]


class Progress(Protocol):
    """Progress of one split at a time; called from one thread."""

    def begin(self, *, label: str, shards_total: int, shards_reused: int) -> None:
        """Start a split; `shards_reused` of its shards are in the store already."""

    def advance(self, *, clips: int, audio_seconds: float) -> None:
        """Count further clips that have been encoded or skipped."""

    def shard_done(self) -> None:
        """Count a shard that has been encoded; its commit is pending."""

    def end(self) -> None:
        """End the split, whether it succeeded or failed."""


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
    """Seconds by stage. ``wait_*`` are waits of the encoding thread; reading, decoding and writing run concurrently.

    ``busy`` is the time of ``total`` that the device spent on batches. ``batches`` is their number; ``budgets`` is the
    sum of the fraction of its budget that each batch filled, at most 1.
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
        """Seconds by name, rounded to milliseconds."""
        return {name: round(getattr(self, name), 3) for name in self.__slots__ if name not in ("batches", "budgets")}

    @property
    def batch_fill(self) -> float | None:
        """Mean fraction of its budget that a batch filled, 0 to 1."""
        return self.budgets / self.batches if self.batches else None

    def bottleneck(self, *, decode_threads: int) -> str:
        """The slowest stage: what the encoding thread spent most of its time on or waiting for."""
        ahead = "decode" if self.decode / decode_threads > self.read else "read"
        spent = {"encode": self.encode, ahead: self.wait_clips, "write": self.wait_write}
        return max(spent, key=lambda stage: spent[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """Settings of encoding that affect only the last bits of embeddings."""

    device: str
    batch_seconds: float
    sample_rate_hz: int
    max_clip_seconds: float
    decode_threads: int
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShard:
    """A commit to one feature set: the stored shard, and the size of its objects in bytes."""

    member: Member
    n_bytes: int


Outcome = Mapping[int, StoredShard] | ShardError
"""Result of one shard: its commits by output, or the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeResult:
    """Result of encoding shards: commits by output in order, failures with reasons, and stage times.

    With several workers, ``times`` is the sum over the workers except for its total, and ``deaths`` lists workers that
    died, whose shards others encoded. ``settings`` is None if nothing had to be encoded.
    """

    stored: Mapping[int, tuple[StoredShard, ...]]
    broken: tuple[tuple[AnyShard, str], ...]
    times: StageTimes
    settings: EncodeSettings | None
    workers: int = 1
    deaths: tuple[str, ...] = ()


# --- events of the pipeline -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClipTaken:
    """A clip was cut into windows, or skipped with ``audio_seconds`` 0."""

    shard: AnyShard
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class ShardRead:
    """All clips of a shard are processed, or it is unreadable; further clips are of the next shard."""

    shard: AnyShard


@dataclass(frozen=True, slots=True)
class ShardEncoded:
    """All windows of a shard are encoded. ``outcome`` has its commits by output, or the error."""

    shard: AnyShard
    outcome: Future[Outcome]


@dataclass(frozen=True, slots=True)
class ShardFailed:
    """A shard cannot be read completely; nothing of it is stored."""

    shard: AnyShard
    error: ShardError


@dataclass(frozen=True, slots=True)
class Finished:
    """Every shard is committed or has failed. Always the last event."""

    times: StageTimes
    settings: EncodeSettings


PipelineEvent = ClipTaken | ShardRead | ShardEncoded | ShardFailed | Finished


def collect(events: Iterable[PipelineEvent], *, progress: Progress) -> EncodeResult:
    """Consume the events and report to `progress`. Little is kept per shard: a run may have a million."""
    stored: dict[int, list[StoredShard]] = {}
    broken: list[tuple[AnyShard, str]] = []
    pending: deque[tuple[AnyShard, Future[Outcome]]] = deque()

    def take(shard: AnyShard, outcome: Outcome) -> None:
        if isinstance(outcome, ShardError):
            broken.append((shard, str(outcome)))
        else:
            for output, part in outcome.items():
                stored.setdefault(output, []).append(part)

    for event in events:
        if isinstance(event, ClipTaken):
            progress.advance(clips=1, audio_seconds=event.audio_seconds)
        elif isinstance(event, ShardEncoded):
            pending.append((event.shard, event.outcome))
            progress.shard_done()
        elif isinstance(event, ShardFailed):
            take(event.shard, event.error)
        while pending and (pending[0][1].done() or isinstance(event, Finished)):
            shard, outcome = pending.popleft()
            take(shard, outcome.result())
        if isinstance(event, Finished):
            result = EncodeResult(
                stored={output: tuple(parts) for output, parts in stored.items()},
                broken=tuple(broken),
                times=event.times,
                settings=event.settings,
            )
    return result

"""Encodes chosen clips of shards again, by the recipe of their stored embeddings, without storing anything.

Shards are read and decoded by `shard_reader`, windows are planned as extraction plans them, and the encoder runs as in
an extraction. Batches differ, which changes the last bits only; under ``xares``, where the padding of a window depends
on its batch, the caller gives the padded lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featstore.errors import UnusableClip
from featstore.extract.batching import Batch, LengthBatcher, PendingWindow, stack
from featstore.extract.shard_reader import ClipRead, ClipStream, ShardBegins, ShardBreaks, ShardEnds
from featstore.extract.shards import AnyShard
from featstore.extract.windows import Window

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.runner import EncoderRun

__all__ = ["ReadShard", "ReencodedClip", "UnreadClip", "UnreadShard", "reencode"]

BATCH_SECONDS = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReencodedClip:
    """A clip that was encoded again.

    Attributes
    ----------
    shard, key : str
    meta : str
        The JSON text of the clip in the shard.
    windows : tuple of Window
    utterance : tuple of tuple of float32 (dim,)
        For each output of the encoder, the vector of each window.
    frames : tuple of (tuple of (T, dim)) or None
        For each output, the frames of each window; None if frames are not requested, or the output has none.
    """

    shard: str
    key: str
    meta: str
    windows: tuple[Window, ...]
    utterance: tuple[tuple[NDArray[np.float32], ...], ...]
    frames: tuple[tuple[NDArray[Any], ...] | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadClip:
    """A requested clip that cannot be decoded, and the reason."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadShard:
    """A shard that was read to its end, its size in bytes, and the keys of all its samples."""

    shard: str
    size: int
    keys: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadShard:
    """A shard that cannot be read to its end, and the reason."""

    shard: str
    reason: str


Reencoded = ReencodedClip | UnreadClip | ReadShard | UnreadShard


@dataclass(slots=True, kw_only=True)
class _Clip:
    """A clip whose windows are being encoded: for each window, the row of each output."""

    shard: str
    key: str
    meta: str
    windows: tuple[Window, ...]
    rows: dict[int, list[tuple[NDArray[np.float32], NDArray[Any] | None]]] = field(default_factory=dict)

    def result(self) -> ReencodedClip:
        in_order = [self.rows[index] for index in range(len(self.windows))]
        by_output = list(zip(*in_order, strict=True))
        return ReencodedClip(
            shard=self.shard,
            key=self.key,
            meta=self.meta,
            windows=self.windows,
            utterance=tuple(tuple(vector for vector, _ in rows) for rows in by_output),
            frames=tuple(
                None if rows[0][1] is None else tuple(frames for _, frames in rows if frames is not None)
                for rows in by_output
            ),
        )


def reencode(
    shards: Sequence[AnyShard],
    only: Mapping[str, Collection[str]],
    *,
    run: EncoderRun,
    plan: Callable[[int], tuple[Window, ...]],
    sample_rate_hz: int,
    max_clip_seconds: float,
    decode_threads: int,
    padded: Mapping[tuple[str, str], Sequence[int]] | None = None,
) -> Iterator[Reencoded]:
    """Encode clips again.

    Parameters
    ----------
    shards : sequence of AnyShard
    only : mapping
        Name of each shard -> keys of the requested clips.
    run : EncoderRun
    plan : callable
        Returns the windows of a clip by its number of samples.
    sample_rate_hz : int
    max_clip_seconds : float
        Clips with a longer claimed duration are an `UnreadClip`.
    decode_threads : int
    padded : mapping, optional
        (shard, key) -> padded length of each window, which replaces the planned one if it is longer.

    Yields
    ------
    ReencodedClip, UnreadClip, ReadShard or UnreadShard
        Clips in the order in which their batches are complete. A requested clip that the shard lacks yields nothing.

    Raises
    ------
    EncoderError
        The encoder fails on a batch.
    """
    stream = ClipStream(
        shards,
        sample_rate_hz=sample_rate_hz,
        max_clip_seconds=max_clip_seconds,
        decode_threads=decode_threads,
        only=only,
    )
    batcher = LengthBatcher(budget_samples=round(BATCH_SECONDS * sample_rate_hz), shards_ahead=0)
    pending: dict[int, _Clip] = {}
    size = number = 0
    name = ""
    with stream, run.at_work():
        for event in stream:
            if isinstance(event, ShardBegins):
                name, size = event.shard.name, event.identity.size
            elif isinstance(event, ClipRead):
                try:
                    decoded = event.decoded.result()
                except UnusableClip as reason:
                    yield UnreadClip(shard=name, key=event.key, reason=str(reason))
                    continue
                windows = plan(len(decoded.samples))
                number += 1
                pending[number] = _Clip(shard=name, key=decoded.key, meta=decoded.meta, windows=windows)
                lengths = (padded or {}).get((name, decoded.key), ())
                for index, window in enumerate(windows):
                    longest = max(window.padded, lengths[index] if index < len(lengths) else 0)
                    samples = decoded.samples[window.start : window.stop]
                    for batch in batcher.add(PendingWindow(number, index, samples, longest)):
                        yield from _encode(batch, run, pending)
            elif isinstance(event, ShardEnds):
                yield ReadShard(shard=event.shard.name, size=size, keys=event.keys)
            elif isinstance(event, ShardBreaks):
                yield UnreadShard(shard=event.shard.name, reason=str(event.error))
        for batch in batcher.flush():
            yield from _encode(batch, run, pending)


def _encode(batch: Batch, run: EncoderRun, pending: dict[int, _Clip]) -> Iterator[ReencodedClip]:
    """Encode a batch; yield the clips that it completes."""
    outputs = run(*stack(batch, blank=run.blank))
    for row, window in enumerate(batch):
        clip = pending[window.shard]
        clip.rows[window.index] = [
            (each.utterance[row], None if each.frames is None else each.frames[row]) for each in outputs
        ]
        if len(clip.rows) == len(clip.windows):
            yield pending.pop(window.shard).result()

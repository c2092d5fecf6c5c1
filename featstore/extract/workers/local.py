"""Encodes in this process, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featstore.extract.job import EncodeJob, EncoderCard, StaleShard, Workplace
from featstore.extract.results import EncodeResult, Progress
from featstore.system import cores

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading
    from featstore.encoders.encoder import Encoder
    from featstore.extract.options import ExtractOptions

__all__ = ["LocalEngine"]


class LocalEngine:
    """An encoder of this process."""

    def __init__(self, encoder: Encoder, *, device: str) -> None:
        self._workplace = Workplace(encoder, device=device, cores=cores())

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """Of the encoder that was given."""
        return self._workplace.card(options)

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Of the encoder that was given."""
        return self._workplace.canary(options)

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode one shard after another."""
        return self._workplace.encode(
            job,
            tuple(each.shard for each in shards),
            stale={each.shard.name: each for each in shards},
            progress=progress,
        )

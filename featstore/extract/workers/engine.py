"""What every engine implements, and the encoder that it is asked to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Pool
    from featstore.extract.job import EncodeJob, EncoderCard, StaleShard
    from featstore.extract.options import ExtractOptions
    from featstore.extract.results import EncodeResult, Progress

__all__ = ["EncoderRequest", "Engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRequest:
    """Which encoder to load: the parameters of `featstore.encoders.load_encoder`.

    ``folder`` is where relative paths begin, of the encoder, the shards and the store alike.
    """

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int | None, ...] = ()
    pools: tuple[Pool, ...] = ()
    trust_remote_code: bool = False
    folder: str = field(default_factory=lambda: str(Path.cwd()))

    def load(self) -> Encoder:
        """Load it here; for what may be raised see `featstore.encoders.load_encoder`."""
        from featstore.encoders import load_encoder

        return load_encoder(
            self.spec,
            arguments=self.arguments,
            layers=self.layers,
            pools=self.pools,
            trust_remote_code=self.trust_remote_code,
        )


class Engine(Protocol):
    """Encodes shards somewhere, with one encoder that it keeps loaded from job to job."""

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """What the encoder is, and the recipes it will store under; it is loaded for that where it was not yet.

        Raises
        ------
        EncoderError, EncoderContractError, UsageError
            See `featstore.encoders.load_encoder`.
        """

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """What the encoder returns for the reference signals, where it encodes. Raises as `describe` does."""

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode `shards` and commit them. Only `advance` and `shard_done` of `progress` are called, in this thread.

        Raises
        ------
        EncoderContractError
            The encoder's output is unusable; the message names the clip.
        StoreError
            The store cannot be written.
        WorkerError
            Workers died over and over.
        """

"""Encoder requests, and the interface of engines. `job.DeviceEncoder` is the engine that encodes in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featstore.extract.job import EncodeJob, EncoderCard, StaleShard
from featstore.extract.results import EncodeResult, Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.canary import CanaryReading
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Pool
    from featstore.encoders.specs import Layers
    from featstore.extract.options import ExtractOptions

__all__ = ["EncoderRequest", "Engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderRequest:
    """An encoder to load: the parameters of `featstore.encoders.load_encoder`.

    ``folder`` is the base of relative paths to the encoder, the shards and the store.
    """

    spec: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layers: Layers = ()
    pools: tuple[Pool, ...] = ()
    trust_remote_code: bool = False
    name: str | None = None
    folder: str = field(default_factory=lambda: str(Path.cwd()))

    def load(self) -> Encoder:
        """Load the encoder in this process. Raises as `featstore.encoders.load_encoder` does."""
        from featstore.encoders import load_encoder

        return load_encoder(
            self.spec,
            arguments=self.arguments,
            layers=self.layers,
            pools=self.pools,
            trust_remote_code=self.trust_remote_code,
            name=self.name,
        )


class Engine(Protocol):
    """Encodes shards with one encoder, which stays loaded between jobs."""

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """Return the encoder's name and the recipes of its outputs. Loads the encoder if necessary.

        Raises
        ------
        EncoderError, EncoderContractError, UsageError
            See `featstore.encoders.load_encoder`.
        """

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Return the encoder's output for the reference signals on the encoding device. Raises as `describe` does."""

    def encode_texts(self, texts: Sequence[str], options: ExtractOptions) -> NDArray[np.float32]:
        """Return the vectors of texts by the encoder's text tower, float32 (texts, dim).

        Raises
        ------
        EncoderError, EncoderContractError
            The encoder has no text tower, or fails on the texts.
        """

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode `shards` and commit them; calls only `advance` and `shard_done` of `progress`, in this thread.

        Raises
        ------
        EncoderContractError
            The encoder's output is invalid; the message names the clip.
        StoreError
            The store cannot be written.
        WorkerError
            Workers died repeatedly.
        """

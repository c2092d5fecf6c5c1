"""How to extract: what decides the numbers, and what decides only how fast they come."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from featstore.errors import UsageError
from featstore.extract.windows import Padding

__all__ = ["ExtractOptions", "ExtractSettings"]

LEAST_WINDOW_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How to extract. ``padding``, ``precision``, ``frame_dtype`` and ``max_window_seconds`` are part of the recipe.

    Attributes
    ----------
    device : str
        ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        ``auto`` (bfloat16 for an encoder with weights on a GPU that multiplies in it, else float32), ``float32``,
        ``tf32`` (float32 whose products a GPU may round), ``bfloat16``, ``float16``.
    frame_dtype : str
        What frames are stored as.
    frames : str
        ``auto`` stores them where the task scores frames.
    padding : str
        A quantum in seconds, ``exact`` or ``xares``.
    batch_seconds : float
        Audio in a batch, padding included; 0 picks for the device: on a GPU by measuring.
    workers : int
        Decoding threads; 0 is one for each core, at most 16.
    max_clip_seconds : float
        Clips that claim to be longer are skipped; a later run with a higher limit encodes those that are within it.
    max_window_seconds : float or None
        Longer clips are cut into windows of one length; None leaves that to the encoder.
    compiled : bool
        Compile the encoder with ``torch.compile``.
    profile_path : Path or None
        Where a trace of the first batches is written.
    prune : bool
        Drop the embeddings of shards whose files are no longer in the data folder. Those of a shard that is there stay,
        whether this manifest's pattern names it or not: another task may.
    allow_drift : bool
        Encode though the encoder returns other numbers than when its embeddings were stored.
    check_shards : bool
        Read and hash every shard that is in the store, and encode again those whose content has changed. Without it, a
        shard of the size and modification time (or etag) of its commit is taken for unchanged.
    """

    device: str = "auto"
    precision: str = "auto"
    frame_dtype: Literal["float16", "float32"] = "float16"
    frames: Literal["auto", "always", "never"] = "auto"
    padding: str = "0.25"
    batch_seconds: float = 0.0
    workers: int = 0
    max_clip_seconds: float = 3600.0
    max_window_seconds: float | None = None
    compiled: bool = False
    profile_path: Path | None = None
    prune: bool = False
    allow_drift: bool = False
    check_shards: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, ("auto", "float32", "tf32", "bfloat16", "float16")),
            ("frame_dtype", self.frame_dtype, ("float16", "float32")),
            ("frames", self.frames, ("auto", "always", "never")),
        ):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}: got {value!r}")
        if not 0 <= self.batch_seconds < math.inf:
            raise UsageError(f"batch_seconds must be a number of seconds, 0 or more: got {self.batch_seconds!r}")
        if self.workers < 0:
            raise UsageError(f"workers must be 0 or more: got {self.workers!r}")
        if not self.max_clip_seconds > 0:
            raise UsageError(f"max_clip_seconds must be above 0: got {self.max_clip_seconds!r}")
        if self.max_window_seconds is not None and not LEAST_WINDOW_SECONDS <= self.max_window_seconds < math.inf:
            raise UsageError(
                f"max_window_seconds must be {LEAST_WINDOW_SECONDS:g} or more: got {self.max_window_seconds!r}"
            )
        Padding.parse(self.padding)


class ExtractSettings(TypedDict, total=False):
    """The fields of `ExtractOptions` as keyword arguments: see there for their meaning and defaults."""

    device: str
    precision: str
    frame_dtype: Literal["float16", "float32"]
    frames: Literal["auto", "always", "never"]
    padding: str
    batch_seconds: float
    workers: int
    max_clip_seconds: float
    max_window_seconds: float | None
    compiled: bool
    profile_path: Path | None
    prune: bool
    allow_drift: bool
    check_shards: bool

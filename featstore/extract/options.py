"""Options of extraction: those that affect the embeddings, and those that affect speed only."""

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
    """Options of extraction. ``padding``, ``precision``, ``frame_dtype`` and ``max_window_seconds`` are in the recipe.

    Attributes
    ----------
    device : str
        ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        ``auto`` (bfloat16 for an encoder with weights on a GPU with bfloat16 arithmetic, else float32), ``float32``,
        ``tf32`` (float32 with TF32 matrix products on a GPU), ``bfloat16``, ``float16``.
    frame_dtype : str
        Data type in which frames are stored.
    frames : str
        ``auto`` stores frames if the task scores frames.
    padding : str
        A quantum in seconds, ``exact`` or ``xares``.
    batch_seconds : float
        Seconds of audio per batch, padding included; 0 selects it automatically (by measurement on a GPU).
    workers : int
        Decoding threads; 0 selects one per core, at most 16.
    max_clip_seconds : float
        Clips with a longer claimed duration are skipped; a later run with a higher limit encodes them.
    max_window_seconds : float or None
        Longer clips are cut into windows of equal length; None uses the encoder's limit.
    compiled : bool
        Compile the encoder with ``torch.compile``.
    profile_path : Path or None
        File for a trace of the first batches.
    prune : bool
        Delete the embeddings of shards whose files are no longer in the data folder. Embeddings of existing shards are
        never deleted, even if the manifest's pattern does not match them: another task may use them.
    allow_drift : bool
        Encode even if the encoder's output has changed since its embeddings were stored.
    check_shards : bool
        Read and hash every shard in the store, and encode changed ones again. By default a shard with the size and
        modification time (or etag) of its commit is considered unchanged.
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
    """Fields of `ExtractOptions` as keyword arguments; see there for meanings and defaults."""

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

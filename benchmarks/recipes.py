"""What a benchmark makes up: the covariance of its vectors, a recipe, and the shards that they would be of."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from featstore.records import Recipe
    from featstore.store import PartWriter

__all__ = ["commit_made_up", "made_up_recipe", "power_law_mixing"]


def power_law_mixing(dim: int) -> NDArray[np.float32]:
    """Return a float32 (dim, dim) matrix that gives white rows a covariance whose i-th eigenvalue is 1 / i.

    Spectra of trained encoders' embeddings fall by a power law with an exponent near 1 (Agrawal et al. 2022,
    "alpha-ReQ"). White noise would be easier to fit: all directions converge at once.
    """
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))[0]
    mixing: NDArray[np.float32] = (np.arange(1, dim + 1)[:, None] ** -0.5 * rotation).astype(np.float32)
    return mixing


def made_up_recipe(encoder: str, *, dim: int, hop_seconds: float = 0.04, padding: str = "0.25") -> Recipe:
    """Of an encoder that there is not; everything else as an extraction has it by default."""
    from featstore.records import Recipe
    from featstore.store import FORMAT_VERSION

    return Recipe(
        encoder=encoder,
        encoder_identity={"class": encoder.title()},
        sample_rate_hz=16_000,
        dim=dim,
        hop_seconds=hop_seconds,
        padding=padding,
        precision="float32",
        frame_dtype="float16",
        resampler="none",
        format_version=FORMAT_VERSION,
    )


def commit_made_up(part: PartWriter, shard: str, *, clips: int, audio_seconds: float) -> None:
    """Commit what a part was given, as of a shard that there is not."""
    from featstore.store import Member, ShardIdentity

    member = Member(
        shard=ShardIdentity(name=shard, size=1, mtime_ns=0, sha256=hashlib.sha256(shard.encode()).hexdigest()),
        clips=clips,
        windows=part.windows,
        frames=part.frames,
        audio_seconds=audio_seconds,
        skipped=(),
    )
    part.commit([member], frames_stored=part.frames > 0, versions={})

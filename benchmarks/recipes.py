"""The recipe of vectors that a benchmark makes up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featstore.records import Recipe

__all__ = ["made_up_recipe"]


def made_up_recipe(encoder: str, *, dim: int, hop_seconds: float = 0.04) -> Recipe:
    """Of an encoder that there is not; everything else as an extraction has it by default."""
    from featstore.records import Recipe
    from featstore.store import FORMAT_VERSION

    return Recipe(
        encoder=encoder,
        encoder_identity={"class": encoder.title()},
        sample_rate_hz=16_000,
        dim=dim,
        hop_seconds=hop_seconds,
        padding="0.25",
        precision="float32",
        frame_dtype="float16",
        resampler="none",
        format_version=FORMAT_VERSION,
    )

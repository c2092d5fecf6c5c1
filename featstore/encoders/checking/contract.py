"""Does it keep the contract on the way that extraction goes? Loading has checked what it declares, ranks and widths."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from featstore.encoders.checking.bench import Bench
from featstore.encoders.checking.records import Check
from featstore.errors import EncoderContractError

__all__ = ["broken_contract", "check_contract"]

NAME = "contract"


def check_contract(bench: Bench) -> Check:
    """Encode one second; tell what the encoder declares and what it returns."""
    facts, recipe = bench.encoder.facts, bench.recipe
    seen: list[torch.dtype] = []
    handle = bench.encoder.module.register_forward_hook(lambda _, __, output: seen.extend(_dtypes(output)))
    try:
        embedding = bench.alone(bench.window(1.0))
    finally:
        handle.remove()
    returned = str(seen[0]).removeprefix("torch.") if seen else "unknown"
    own = "no" if embedding.is_pooled else "yes"
    return Check(
        name=NAME,
        verdict="ok",
        measured=(
            f"1 s at {facts.sample_rate_hz:,} Hz gives {len(embedding.frames)} {returned} frames, {recipe.dim} wide; "
            f"takes lengths: {'yes' if facts.takes_lengths else 'no'}; utterance vector of its own: {own}"
        ),
        figures={
            "encoder": bench.encoder.name,
            "fingerprint": recipe.fingerprint,
            "device": bench.device,
            "precision": recipe.precision,
            "padding": recipe.padding,
            "frame_dtype": recipe.frame_dtype,
            "sample_rate_hz": facts.sample_rate_hz,
            "dim": recipe.dim,
            "hop_seconds": recipe.hop_seconds,
            "takes_lengths": facts.takes_lengths,
            "own_utterance": not embedding.is_pooled,
            "returned_dtype": returned,
        },
    )


def broken_contract(error: EncoderContractError) -> Check:
    """What there is to say of an encoder that loading refused."""
    return Check(
        name=NAME,
        verdict="failed",
        measured=str(error),
        advice="mend this first: the other checks need an encoder that keeps the contract",
    )


def _dtypes(output: object) -> Iterator[torch.dtype]:
    """Of the tensors that a forward pass returned, in whatever it returned them."""
    if isinstance(output, torch.Tensor):
        yield output.dtype
    elif isinstance(output, (tuple, list, dict)):
        for each in output.values() if isinstance(output, dict) else output:
            yield from _dtypes(each)

"""Several layers and pools of one forward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output, Pool, pooled
from featstore.errors import EncoderContractError, EncoderError
from handmade import started
from layered import Layered

BY_NUMPY = {"mean": np.mean, "max": np.max, "std": np.std}


def layered(*outputs: Output, module: torch.nn.Module | None = None) -> Encoder:
    return Encoder(module=(module or Layered()).eval(), name="layered", spec="x", identity={}, outputs=outputs)


start = partial(started, padding="exact", frame_dtype="float32")


def batch(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    audio = np.random.default_rng(0).standard_normal((len(lengths), max(lengths))).astype(np.float32)
    return audio, np.array(lengths)


@given(
    kept=st.lists(st.integers(1, 9), min_size=1, max_size=4), pool=st.sampled_from(["mean", "max", "std"]),
    fill=st.sampled_from([0.0, 1e6, -1e6]),
)  # fmt: skip
def test_pools_are_numpys_over_the_real_frames(kept: list[int], pool: Pool, fill: float) -> None:
    frames = np.random.default_rng(len(kept)).standard_normal((len(kept), 9, 3)).astype(np.float32)
    for row, count in enumerate(kept):
        frames[row, count:] = fill
    counts = None if set(kept) == {9} else torch.tensor(kept)
    found = pooled(torch.from_numpy(frames), counts, pool).numpy()
    for row, count in enumerate(kept):
        np.testing.assert_allclose(found[row], BY_NUMPY[pool](frames[row, :count], axis=0), rtol=1e-4, atol=1e-6)


def test_each_output_has_its_layer_its_pool_its_width_and_its_name() -> None:
    outputs = (Output(), Output(layer=0), Output(layer=2, pool="max"), Output(pool="std"))
    encoder = layered(*outputs)
    found = start(encoder)(*batch(3200, 700))
    assert [each.utterance.shape for each in found] == [(2, 2), (2, 4), (2, 4), (2, 2)]
    first = batch(3200, 700)[0][1, :640].reshape(2, 320)[:, :4]
    np.testing.assert_allclose(found[1].utterance[1], first.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found[2].utterance[1], (3 * first).max(0), rtol=1e-6)
    np.testing.assert_allclose(found[3].utterance[1], (first[:, :2] / 2).std(0), rtol=1e-5)
    recipes = [
        encoder.recipe(
            padding="exact", precision="float32", frame_dtype="float32", resampler="none", format_version=1, output=each
        )
        for each in outputs
    ]
    assert [recipe.encoder for recipe in recipes] == ["layered", "layered.layer0", "layered.layer2.max", "layered.std"]
    assert [recipe.dim for recipe in recipes] == [2, 4, 4, 2]
    assert len({recipe.fingerprint for recipe in recipes}) == 4


def test_layers_and_pools_cost_one_forward_pass() -> None:
    module = Layered()
    run = start(layered(*(Output(layer=n, pool=pool) for n in (0, 1, 2) for pool in ("mean", "std")), module=module))
    before = module.passes
    run(*batch(3200, 700))
    assert module.passes == before + 1


def test_frames_come_once_for_each_layer_with_its_mean() -> None:
    found = start(layered(Output(layer=1, pool="max"), Output(layer=1), Output(layer=2, pool="std")))(*batch(3200, 700))
    assert [None if each.frames is None else [len(f) for f in each.frames] for each in found] == [None, [10, 2], None]


def test_halves_of_a_batch_that_does_not_fit_keep_every_output() -> None:
    class Small(Layered):
        def forward_layers(self, audio: torch.Tensor, *given: Any, **named: Any) -> list[object]:
            if len(audio) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward_layers(audio, *given, **named)

    outputs = (Output(), Output(layer=1), Output(layer=1, pool="std"))
    lengths = [3200, 3000, 2500, 3200, 1000]
    whole, halves = (start(layered(*outputs, module=kind()))(*batch(*lengths)) for kind in (Layered, Small))
    for one, other in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(one.utterance, other.utterance)
        assert (one.frames is None) == (other.frames is None)
        for mine, theirs in zip(one.frames or (), other.frames or (), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_counts_of_frames_that_an_encoder_returns_are_kept_to() -> None:
    class Counts(Layered):
        def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> object:
            frames = super().forward(audio)
            return frames, None, torch.full((len(audio),), 3)

    [found] = start(layered(Output(), module=Counts()))(*batch(3200, 700 * 2))
    assert [len(frames) for frames in found.frames or ()] == [3, 3]


def test_a_layer_that_is_not_there_is_reported() -> None:
    with pytest.raises(EncoderError, match=r"\b0\b.*\b2\b.*\b3\b"):
        layered(Output(layer=3))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"n_layers": 1.5}, "n_layers"),
        ({"layer_dim": None}, "layer_dim"),
        ({"layer_hop_in_ms": -2}, "layer_hop_in_ms"),
        ({"input_seconds": "ten"}, "input_seconds"),
        ({"layer_dim": 5}, r"\(2, at least 1, 5\)"),
        ({"forward_layers": lambda *_, **__: []}, "2 layers: got 0"),
    ],
)
def test_declarations_of_layers_that_make_no_sense_are_reported(change: dict[str, Any], part: str) -> None:
    module = Layered()
    for name, value in change.items():
        setattr(module, name, value)
    with pytest.raises(EncoderContractError, match=part):
        layered(Output(layer=1), Output(layer=2), module=module)

"""An embedding is a function of its clip and its recipe, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from handmade import build, clip, extract, noise, write_tar
from tiny import task

SECONDS = [0.31, 0.3, 1.0, 0.02, 0.74, 1.0, 0.75, 0.3, 1.26, 0.33]


class ConvTransformer(torch.nn.Module):
    """Random weights: strided convolution, positions, one layer of attention, and a learned pooling over positions."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 16, 20.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv1d(1, 16, 320, stride=320)
        self.attend = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, audio: torch.Tensor) -> Any:
        return self.encode(audio, None)

    def encode(self, audio: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        short = -audio.shape[1] % 320
        frames = self.conv(torch.nn.functional.pad(audio, (0, short))[:, None]).transpose(1, 2)
        position = torch.linspace(0, 3, frames.shape[1])[None, :, None]
        mask = None if padding is None else padding[:, : frames.shape[1]]
        return self.attend(frames + torch.sin(position * torch.arange(1, 17)), src_key_padding_mask=mask)


class Masked(ConvTransformer):
    """The same, but it looks at no padding."""

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
        if lengths is None:
            return self.encode(audio, None)
        first_sample = torch.arange(0, audio.shape[1] + 320, 320)
        return self.encode(audio, first_sample[None, :] >= lengths[:, None])


class PositionalPooling(ConvTransformer):
    """Its utterance vector weighs frames by where they stand in the padded input."""

    def forward(self, audio: torch.Tensor) -> Any:
        frames = self.encode(audio, None)
        weights = torch.softmax(torch.linspace(-2, 2, frames.shape[1]), 0)
        return frames, (frames * weights[None, :, None]).sum(1)


def encoders() -> dict[str, Encoder]:
    mine = {kind.__name__: build(kind(), name=kind.__name__) for kind in (ConvTransformer, Masked, PositionalPooling)}
    return {"logmel": load_encoder("logmel"), "mfcc": load_encoder("mfcc"), **mine}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same clips all in one shard, and each in a shard of its own."""
    folder = tmp_path_factory.mktemp("data") / "tiny"
    clips = [clip(f"clip-{number}", noise(seconds, seed=number)) for number, seconds in enumerate(SECONDS)]
    write_tar(folder / "train-all.tar", [member for members in clips for member in members])
    for number, members in enumerate(clips):
        write_tar(folder / f"valid-{number}.tar", members)
    return folder.parent


def embeddings(
    data_dir: Path, store: Path, encoder: Encoder, padding: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Utterance vector and frames of each clip, in a batch and alone."""
    extract(
        task(), data_dir, store, encoder=encoder, splits=["train", "valid"], padding=padding, frames="always",
        frame_dtype="float32",
    )  # fmt: skip
    found = []
    for split in ("train", "valid"):
        fs = featstore.open(str(store)).select(split=split)
        found.append({key: np.vstack([fs.utterance[i : i + 1], fs.frames[i]]) for i, key in enumerate(fs.key)})
    return found[0], found[1]


@pytest.mark.parametrize("padding", ["0.25", "exact"])
@pytest.mark.parametrize("name", list(encoders()))
def test_a_clip_embeds_the_same_alone_and_in_a_batch(name: str, padding: str, data_dir: Path, tmp_path: Path) -> None:
    batched, alone = embeddings(data_dir, tmp_path / "store", encoders()[name], padding)
    assert batched.keys() == alone.keys() == {f"clip-{number}" for number in range(len(SECONDS))}
    for key, vectors in batched.items():
        np.testing.assert_allclose(vectors, alone[key], rtol=1e-5, atol=1e-5, err_msg=key)


def test_under_xares_a_clip_depends_on_its_neighbours(data_dir: Path, tmp_path: Path) -> None:
    """Shown where it cannot be overlooked. It must be so, or the peer's scores would not be reproduced."""
    batched, alone = embeddings(data_dir, tmp_path / "store", encoders()["PositionalPooling"], "xares")
    apart = {key: np.abs(batched[key][0] - alone[key][0]).max() for key in batched}
    longest = f"clip-{np.argmax(SECONDS)}"
    assert apart.pop(longest) < 1e-5
    assert min(apart.values()) > 1e-2


@pytest.mark.parametrize("name", ["logmel", "mfcc"])
def test_padding_does_not_reach_the_built_ins(name: str, data_dir: Path, tmp_path: Path) -> None:
    padded, _ = embeddings(data_dir, tmp_path / "store", encoders()[name], "0.25")
    exact, _ = embeddings(data_dir, tmp_path / "other", encoders()[name], "exact")
    for key, vectors in padded.items():
        np.testing.assert_allclose(vectors, exact[key], rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("change", [{"batch_seconds": 1.0}, {"batch_seconds": 0.01}, {"workers": 1}])
def test_batch_size_and_workers_do_not_decide_the_numbers(
    change: dict[str, Any], data_dir: Path, tmp_path: Path
) -> None:
    stores = []
    for number, options in enumerate(({}, change)):
        extract(task(), data_dir, tmp_path / f"store-{number}", encoder=encoders()["Masked"], **options)
        stores.append(featstore.open(str(tmp_path / f"store-{number}")).select())
    np.testing.assert_allclose(stores[0].utterance, stores[1].utterance, rtol=1e-5, atol=1e-5)

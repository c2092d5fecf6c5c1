"""Small mteb models: networks with random weights, called by mteb's own interface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

DIM = 24

hidden_gain = 1.0  # no hash knows it: what only a canary finds
pause_seconds = 0.0  # before each batch


class SmallAudioModel:
    """A convolution, averaged over the batch's longest clip: as in PR 5118 of mteb, padding is part of the mean."""

    def __init__(self, *, seed: int = 0, gain: float = 1.0, revision: str = "1", use_instructions: bool | None = False):
        generator = torch.Generator().manual_seed(seed)
        self.network = torch.nn.Conv1d(1, DIM, kernel_size=400, stride=160)
        for parameter in self.network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.gain = gain
        self.batches: list[int] = []  # sizes of the forward passes
        self.network.register_forward_hook(lambda _, inputs, __: self.batches.append(len(inputs[0])))
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": "tests/small audio model",
                "revision": revision,
                "modalities": ["audio", "text"],
                "use_instructions": use_instructions,
            }
        )

    @torch.inference_mode()
    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        found = []
        for batch in inputs:
            time.sleep(pause_seconds)
            found.append(self._texts(batch["text"]) if "text" in batch else self._audio(batch["audio"]))
        return torch.cat(found).numpy()

    def _audio(self, audio: Sequence[Any]) -> torch.Tensor:
        waves = [torch.from_numpy(np.asarray(each["array"], np.float32)) for each in audio]
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None]
        return self.gain * hidden_gain * torch.log1p(self.network(padded).square()).mean(2)

    def _texts(self, texts: Sequence[str]) -> torch.Tensor:
        rows = [np.bincount([ord(letter) % DIM for letter in text], minlength=DIM) for text in texts]
        return torch.from_numpy(np.array(rows, np.float32))

    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)


class SmallEncoder(torch.nn.Module):
    """An encoder of featstore, of random weights."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, DIM, 10

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Conv1d(1, DIM, kernel_size=400, stride=160, padding=200)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.network(audio[:, None]).tanh().transpose(1, 2)

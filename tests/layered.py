"""An encoder of three hidden states without weights, by the contract alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Layered"]


class Layered(torch.nn.Module):
    """Frames of 20 ms and 4 values; state k is k + 1 times state 0, and the output is their half."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 2, 20.0
    n_layers, layer_dim, layer_hop_in_ms = 2, 4, 20.0

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> object:
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> list[object]:
        self.passes += 1
        short = -audio.shape[1] % 320
        first = torch.nn.functional.pad(audio, (0, short)).reshape(len(audio), -1, 320)[:, :, :4]
        return [first[:, :, :2] / 2 if layer is None else first * (layer + 1) for layer in layers]

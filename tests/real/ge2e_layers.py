"""The speaker network of `ge2e`, with the output of each of its LSTM layers."""

from __future__ import annotations

import torch
from ge2e import DIM, N_MELS, SpeakerEncoder
from torch import Tensor, nn


class LayeredSpeakerEncoder(SpeakerEncoder):
    """Hidden state k is the output of LSTM layer k + 1; the output is that of `SpeakerEncoder`."""

    n_layers, layer_dim, layer_hop_in_ms = 2, DIM, SpeakerEncoder.hop_size_in_ms

    def __init__(self) -> None:
        super().__init__()
        stack = self.lstm
        self.lstm = nn.ModuleList(nn.LSTM(DIM if k else N_MELS, DIM, batch_first=True) for k in range(3))
        for k, layer in enumerate(self.lstm):
            layer.load_state_dict({name: stack.get_parameter(f"{name[:-1]}{k}") for name in layer.state_dict()})

    def forward(self, audio: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, 1 + samples // 160, 256)."""
        return self.forward_layers(audio, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> list[Tensor]:
        """The hidden states of `layers`, each (batch, 1 + samples // 160, 256); None is the output."""
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        states = [self.input_mels(audio, lengths)]
        for layer in self.lstm:
            states.append(layer(states[-1])[0])
        output = (self.linear(states[-1])).relu()
        return [output if layer is None else states[layer + 1] for layer in layers]

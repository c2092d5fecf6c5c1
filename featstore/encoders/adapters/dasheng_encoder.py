"""Dasheng (Dinkel et al., Interspeech 2024), as an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DashengEncoder"]


class DashengEncoder(nn.Module):
    """Dasheng: blocks of a mel spectrum of 40 ms, 25 frames per second.

    The dynamic range of the spectrum is relative to the loudest point of each window; in the package, it is relative to
    the loudest point of the batch. The model was trained without a mask: windows of one padded length are batched, and
    frames of padding are trimmed.

    A window longer than the model's positional embeddings (10.08 s for the published models) is encoded in pieces of
    that length, each by itself, including its hidden states. The package does the same.

    Parameters
    ----------
    model : Module
        ``dasheng.pretrained.pretrained.Dasheng``.
    """

    sampling_rate = 16_000

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.output_dim = self.layer_dim = int(model.embed_dim)
        self._hop_samples = int(model.hop_size) * int(model.patch_stride[-1])
        self.hop_size_in_ms = self.layer_hop_in_ms = 1000.0 * self._hop_samples / self.sampling_rate
        self.n_layers = len(model.blocks)
        self._seen: dict[int, list[Tensor]] = {}  # pieces of the requested hidden states, during a forward pass
        # permanent hooks: torch.compile would compile hooks that are registered in each pass with each pass
        model.blocks[0].register_forward_pre_hook(lambda _block, given: self._see(0, given[0]))
        for number, block in enumerate(model.blocks, start=1):
            block.register_forward_hook(lambda _block, _given, made, number=number: self._see(number, made))

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """Run one pass: frames and their counts for each hidden state, and for None the output after the last norm.

        State 0 is the input of the first block, with positional embeddings; state K is the output of block K.
        """
        audio = nn.functional.pad(audio, (0, max(0, self._hop_samples - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectra = self.model.front_end(audio[:, None])  # one channel per window: the dynamic range is the window's
            spectra = self.model.init_bn(spectra)
        seen: dict[int, list[Tensor]] = {layer: [] for layer in layers if layer is not None}
        self._seen = seen
        try:
            last: Tensor = self.model.forward_spectrogram(spectra)
        finally:
            self._seen = {}  # after an out-of-memory error, no tensor is kept
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        n_frames = torch.round(lengths / self._hop_samples).long().clamp(1, last.shape[1])
        return tuple((last if layer is None else torch.cat(seen[layer], dim=1), None, n_frames) for layer in layers)

    def _see(self, layer: int, state: Tensor) -> None:
        """Keep a hidden state of a piece if it is requested."""
        if layer in self._seen:
            self._seen[layer].append(state)

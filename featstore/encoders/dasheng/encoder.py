"""Dasheng (Dinkel et al., Interspeech 2024), as an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["DashengEncoder"]


class DashengEncoder(nn.Module):
    """Blocks of a mel spectrum of 40 ms, 25 frames a second.

    The range of its spectrum is measured from the loudest point of each window. The package by itself measures it from
    the loudest of the whole batch. The model was trained without a mask: windows of one padded length are batched, and
    frames of padding are trimmed.

    Parameters
    ----------
    model : Module
        ``dasheng.pretrained.pretrained.Dasheng``.
    """

    sampling_rate = 16_000

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.output_dim = int(model.embed_dim)
        self._hop_samples = int(model.hop_size) * int(model.patch_stride[-1])
        self.hop_size_in_ms = 1000.0 * self._hop_samples / self.sampling_rate

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        audio = nn.functional.pad(audio, (0, max(0, self._hop_samples - audio.shape[1])))
        with torch.autocast(audio.device.type, enabled=False):
            spectra = self.model.front_end(audio[:, None])  # a channel of its own: the range is then each window's own
            spectra = self.model.init_bn(spectra)
        frames: Tensor = self.model.forward_spectrogram(spectra)
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        n_frames = torch.round(lengths / self._hop_samples).long().clamp(1, frames.shape[1])
        return frames, None, n_frames

"""Log-mel filter banks as Kaldi makes them: what two families of transformers models hear through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HOP_SAMPLES", "WINDOW_SAMPLES", "FilterBanks", "steps_of"]

WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
_FFT = 512
_FLOOR = 1.192092955078125e-07
_PREEMPHASIS = 0.97


def steps_of(lengths: Tensor) -> Tensor:
    """Steps of a filter bank that so many samples, at least 400, make."""
    return (lengths - WINDOW_SAMPLES) // HOP_SAMPLES + 1


class FilterBanks(nn.Module):
    """25 ms every 10 ms, pre-emphasis in each frame, nothing padded. In float64, as in `spectrograms`.

    Parameters
    ----------
    filters, window : Tensor
        float64 (257, mels) and (400,), as the feature extractor has them. They are no weights: no state holds them.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, *, filters: Tensor, window: Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", window, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples), at least 400 samples -> float64 (batch, steps, mels)."""
        frames = audio.double().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
        frames = (frames - _PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(frames, n=_FFT).abs().square()
        banks: Tensor = (power @ self.filters).clamp(min=_FLOOR).log()
        return banks

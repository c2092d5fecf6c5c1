"""Log-mel filter banks as in Kaldi, the input of two families of transformers models."""

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
    """Return the number of filter bank steps of ``lengths`` samples, which are at least 400."""
    return (lengths - WINDOW_SAMPLES) // HOP_SAMPLES + 1


class FilterBanks(nn.Module):
    """Filter banks of 25 ms every 10 ms, with pre-emphasis in each frame and no padding, in float64.

    Parameters
    ----------
    filters, window : Tensor
        float64 (257, mels) and (400,), from the feature extractor. They are buffers outside the state dict.
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

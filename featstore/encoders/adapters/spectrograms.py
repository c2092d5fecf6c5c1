"""Spectra as the feature extractors of transformers make them, on the device and of whole batches.

In float64, as there: quiet bands are differences of large numbers, and what it costs beside a model is nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least", "full_precision", "given_or_whole", "power_spectrum", "real"]


def full_precision(audio: Tensor) -> torch.autocast:
    """Lift a lower precision of the forward pass: it is for the model, and would spoil a spectrum."""
    return torch.autocast(audio.device.type, enabled=False)


def at_least(audio: Tensor, samples: int) -> Tensor:
    """Audio (batch, n) with zeros at its end where n is less than `samples`."""
    return torch.nn.functional.pad(audio, (0, max(0, samples - audio.shape[1])))


def given_or_whole(audio: Tensor, lengths: Tensor | None) -> Tensor:
    """Samples of each row, int64 (batch,): those that are given, or else all of them."""
    return torch.full((len(audio),), audio.shape[1], device=audio.device) if lengths is None else lengths


def real(lengths: Tensor, available: int) -> Tensor:
    """Which of so many places are within the length of each row, bool (batch, available)."""
    return torch.arange(available, device=lengths.device)[None, :] < lengths[:, None]


def power_spectrum(audio: Tensor, *, window: Tensor, hop_samples: int) -> Tensor:
    """Power of centred frames, the ends mirrored: (batch, frames, bins) of the type of `audio`."""
    spectrum = torch.stft(audio, len(window), hop_samples, window=window, return_complex=True)
    power: Tensor = spectrum.abs().square().transpose(1, 2)
    return power

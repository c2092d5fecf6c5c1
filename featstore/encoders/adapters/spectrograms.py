"""Spectra as in the feature extractors of transformers, on the device and for complete batches.

They are computed in float64, as in transformers: quiet bands are differences of large numbers, and the cost is
negligible compared with the model.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least", "full_precision", "given_or_whole", "power_spectrum", "real"]


def full_precision(audio: Tensor) -> torch.autocast:
    """Disable autocast, which is meant for the model and would distort a spectrum."""
    return torch.autocast(audio.device.type, enabled=False)


def at_least(audio: Tensor, samples: int) -> Tensor:
    """Pad audio (batch, n) with zeros at the end to at least `samples`."""
    return torch.nn.functional.pad(audio, (0, max(0, samples - audio.shape[1])))


def given_or_whole(audio: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the number of samples of each row, int64 (batch,): `lengths`, or by default the complete rows."""
    return torch.full((len(audio),), audio.shape[1], device=audio.device) if lengths is None else lengths


def real(lengths: Tensor, available: int) -> Tensor:
    """Return which of `available` positions are within the length of each row, bool (batch, available)."""
    return torch.arange(available, device=lengths.device)[None, :] < lengths[:, None]


def power_spectrum(audio: Tensor, *, window: Tensor, hop_samples: int) -> Tensor:
    """Return the power of centred frames with reflected ends: (batch, frames, bins), in the dtype of `audio`."""
    spectrum = torch.stft(audio, len(window), hop_samples, window=window, return_complex=True)
    power: Tensor = spectrum.abs().square().transpose(1, 2)
    return power

"""Spectra as the feature extractors of transformers make them, on the device and of whole batches.

In float64, as there: quiet bands are differences of large numbers, and what it costs beside a model is nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "FBANK_HOP_SAMPLES",
    "FBANK_WINDOW_SAMPLES",
    "at_least",
    "fbank_frames",
    "full_precision",
    "kaldi_fbank",
    "power_spectrum",
    "real",
]

FBANK_WINDOW_SAMPLES = 400
FBANK_HOP_SAMPLES = 160
_FBANK_FFT = 512
_FBANK_FLOOR = 1.192092955078125e-07
_PREEMPHASIS = 0.97


def full_precision(audio: Tensor) -> torch.autocast:
    """Lift a lower precision of the forward pass: it is for the model, and would spoil a spectrum."""
    return torch.autocast(audio.device.type, enabled=False)


def at_least(audio: Tensor, samples: int) -> Tensor:
    """Audio (batch, n) with zeros at its end where n is less than `samples`."""
    return torch.nn.functional.pad(audio, (0, max(0, samples - audio.shape[1])))


def real(lengths: Tensor, available: int) -> Tensor:
    """Which of so many places are within the length of each row, bool (batch, available)."""
    return torch.arange(available, device=lengths.device)[None, :] < lengths[:, None]


def fbank_frames(lengths: Tensor) -> Tensor:
    """Frames of `kaldi_fbank` that so many samples, at least 400, make."""
    return (lengths - FBANK_WINDOW_SAMPLES) // FBANK_HOP_SAMPLES + 1


def kaldi_fbank(audio: Tensor, *, filters: Tensor, window: Tensor) -> Tensor:
    """Log-mel filter banks as Kaldi makes them: 25 ms every 10 ms, pre-emphasis in each frame, nothing padded.

    Parameters
    ----------
    audio : Tensor
        (batch, samples), at least 400 samples
    filters, window : Tensor
        float64 (257, mels) and (400,)

    Returns
    -------
    float64 (batch, frames, mels)
    """
    frames = audio.double().unfold(1, FBANK_WINDOW_SAMPLES, FBANK_HOP_SAMPLES)
    frames = frames - frames.mean(dim=2, keepdim=True)
    before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
    frames = (frames - _PREEMPHASIS * before) * window
    power = torch.fft.rfft(frames, n=_FBANK_FFT).abs().square()
    banks: Tensor = (power @ filters).clamp(min=_FBANK_FLOOR).log()
    return banks


def power_spectrum(audio: Tensor, *, window: Tensor, hop_samples: int) -> Tensor:
    """Power of centred frames, the ends mirrored: (batch, frames, bins) of the type of `audio`."""
    spectrum = torch.stft(audio, len(window), hop_samples, window=window, return_complex=True)
    power: Tensor = spectrum.abs().square().transpose(1, 2)
    return power

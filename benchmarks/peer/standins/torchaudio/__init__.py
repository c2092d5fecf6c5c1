"""As much of torchaudio as X-ARES calls: decoding by soundfile, resampling by soxr."""

import soundfile
import torch

from torchaudio import functional

__all__ = ["functional", "load"]


def load(path):
    """Samples, float32 (channels, samples), and their rate."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T.copy()), rate

"""Resampling."""

import soxr
import torch

__all__ = ["resample"]


def resample(samples, orig_freq, new_freq):
    """Along the last axis, float32 (channels, samples)."""
    if orig_freq == new_freq:
        return samples
    return torch.from_numpy(soxr.resample(samples.numpy().T, orig_freq, new_freq).T.copy())

"""Built-in encoders without weights: log-mel spectra, and mel cepstra with their deltas.

They are baselines for trained encoders, and the default of the demo. Both use a sample rate of 16 kHz and 25 frames per
second. Padding does not affect their real frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["LogMelEncoder", "MfccEncoder", "dct_matrix", "deltas", "slaney_mel_filters"]

SAMPLE_RATE_HZ = 16_000
FFT_SIZE = 512
WINDOW_SAMPLES = 400
STEP_SAMPLES = 160
STEPS_PER_FRAME = 4
FRAME_SAMPLES = STEP_SAMPLES * STEPS_PER_FRAME
POWER_FLOOR = 1e-8


def slaney_mel_filters(*, mels: int, fft_size: int = FFT_SIZE, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Tensor:
    """Triangular filters on the Slaney mel scale, each with unit area.

    The scale is linear below 1 kHz and logarithmic above (Slaney, Auditory Toolbox, Interval Research Technical Report
    1998-010), the default of librosa.

    Returns
    -------
    Tensor
        float32 (fft_size // 2 + 1, mels)
    """
    hz_per_mel, break_hz, log_step = 200.0 / 3.0, 1000.0, math.log(6.4) / 27.0
    break_mel = break_hz / hz_per_mel
    top_hz = sample_rate_hz / 2
    top_mel = break_mel + math.log(top_hz / break_hz) / log_step
    points = torch.linspace(0.0, top_mel, mels + 2, dtype=torch.float64)
    hz = torch.where(points < break_mel, points * hz_per_mel, break_hz * torch.exp(log_step * (points - break_mel)))
    bins = torch.linspace(0.0, top_hz, fft_size // 2 + 1, dtype=torch.float64)
    rising = (bins[:, None] - hz[None, :-2]) / (hz[1:-1] - hz[:-2])
    falling = (hz[None, 2:] - bins[:, None]) / (hz[2:] - hz[1:-1])
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return (triangles * (2.0 / (hz[2:] - hz[:-2]))).float()


def dct_matrix(*, inputs: int, outputs: int) -> Tensor:
    """Orthonormal DCT-II as a matrix, float32 (inputs, outputs): ``x @ dct_matrix(...)``."""
    n = torch.arange(inputs, dtype=torch.float64)[:, None]
    k = torch.arange(outputs, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi / inputs * (n + 0.5) * k) * math.sqrt(2.0 / inputs)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()


def deltas(features: Tensor, *, n_frames: Tensor, reach: int = 2) -> Tensor:
    """Regression slope of each feature over 2 * `reach` + 1 frames; a row's first and last real frame are repeated.

    Young et al., The HTK Book, equation 5.16.

    Parameters
    ----------
    features : Tensor
        (batch, frames, dim)
    n_frames : Tensor
        int64 (batch,): number of real frames of each row; later frames are ignored.
    """
    frames = features.shape[1]
    at = torch.arange(frames, device=features.device)
    held = torch.minimum(at[None, :], (n_frames - 1).clamp(min=0)[:, None])
    features = features.gather(1, held[:, :, None].expand_as(features))  # the last real frame of a row is repeated
    before = features[:, :1].expand(-1, reach, -1)
    after = features[:, -1:].expand(-1, reach, -1)
    extended = torch.cat([before, features, after], dim=1)
    slope = torch.zeros_like(features)
    for distance in range(1, reach + 1):
        later = extended[:, reach + distance : reach + distance + frames]
        earlier = extended[:, reach - distance : reach - distance + frames]
        slope.add_(later - earlier, alpha=distance)
    return slope / (2 * sum(d * d for d in range(1, reach + 1)))


class LogMelEncoder(nn.Module):
    """Log mel power spectrum: 25 ms Hann windows every 10 ms, with the power of four windows averaged to a 40 ms frame.

    Parameters
    ----------
    mels : int
        Number of mel bands, and the width of a frame.
    """

    sampling_rate = SAMPLE_RATE_HZ
    hop_size_in_ms = 1000.0 * FRAME_SAMPLES / SAMPLE_RATE_HZ

    filters: Tensor
    window: Tensor

    def __init__(self, mels: int = 128) -> None:
        super().__init__()
        self.output_dim = mels
        self.register_buffer("filters", slaney_mel_filters(mels=mels).repeat_interleave(2, dim=0) / STEPS_PER_FRAME)
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES))

    def forward(self, audio: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, ceil(samples / 640), mels)."""
        missing = -audio.shape[-1] % FRAME_SAMPLES or (FRAME_SAMPLES if audio.shape[-1] == 0 else 0)
        # windows are centred on their 10 ms step, so that frame j covers samples [640 j, 640 (j + 1))
        margin = (FFT_SIZE - STEP_SAMPLES) // 2
        padded = nn.functional.pad(audio, (margin, margin + missing))
        spectrum = torch.stft(
            padded, FFT_SIZE, STEP_SAMPLES, WINDOW_SAMPLES, self.window, center=False, return_complex=True
        )
        # (batch, frames, steps, interleaved real and imaginary parts): squares are summed over the steps of a frame,
        # and over the two parts by filters that contain each weight twice; every pass accesses memory contiguously
        parts = torch.view_as_real(spectrum.transpose(1, 2)).flatten(2)
        steps = parts.reshape(len(parts), -1, STEPS_PER_FRAME, parts.shape[2])
        power = steps[:, :, 0].square()
        for step in range(1, STEPS_PER_FRAME):
            power.addcmul_(steps[:, :, step], steps[:, :, step])
        mels: Tensor = power @ self.filters
        return mels.clamp(min=POWER_FLOOR).log()


class MfccEncoder(nn.Module):
    """Mel-frequency cepstra with first and second differences (Davis and Mermelstein, 1980; Furui, 1986).

    Parameters
    ----------
    coefficients : int
        Number of cepstral coefficients; a frame is three times as wide.
    mels : int
        Number of bands of the log-mel spectrum that the DCT is applied to.
    """

    sampling_rate = SAMPLE_RATE_HZ
    hop_size_in_ms = LogMelEncoder.hop_size_in_ms

    dct: Tensor

    def __init__(self, coefficients: int = 20, mels: int = 64) -> None:
        super().__init__()
        self.output_dim = 3 * coefficients
        self.spectrum = LogMelEncoder(mels)
        self.register_buffer("dct", dct_matrix(inputs=mels, outputs=coefficients))

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """float32 (batch, samples) -> (batch, ceil(samples / 640), 3 * coefficients)."""
        cepstra = self.spectrum(audio) @ self.dct
        frames = cepstra.shape[1]
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        real = torch.round(lengths / FRAME_SAMPLES).long().clamp(1, frames)
        first = deltas(cepstra, n_frames=real)
        return torch.cat([cepstra, first, deltas(first, n_frames=real)], dim=2)

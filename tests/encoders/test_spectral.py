"""The built-in encoders against formulas written down again, in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch

from featstore.encoders.builtin import (
    LogMelEncoder,
    MfccEncoder,
    dct_matrix,
    deltas,
    slaney_mel_filters,
)
from handmade import noise


def slaney_filters_by_definition(mels: int) -> np.ndarray:
    """Slaney's scale: 200/3 Hz a mel below 1 kHz (15 mel), then 27 steps for every factor of 6.4."""
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mel = np.arange(mels + 2) * top / (mels + 1)
    hz = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
    frequencies = np.arange(257) * 16000 / 512
    columns = [
        np.interp(frequencies, [low, centre, high], [0, 2 / (high - low), 0])
        for low, centre, high in zip(hz, hz[1:], hz[2:], strict=False)
    ]
    return np.stack(columns, axis=1)


def logmel_by_definition(wave: np.ndarray, mels: int) -> np.ndarray:
    """Frame j: the mean power of the four 25 ms windows centred on the 10 ms steps of [640 j, 640 (j + 1))."""
    n_frames = -(-len(wave) // 640)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.concatenate([np.zeros(400), wave.astype(np.float64), np.zeros(1200)])
    power = []
    for step in range(4 * n_frames):
        centre = 160 * step + 80 + 400
        power.append(np.abs(np.fft.rfft(padded[centre - 200 : centre + 200] * hann, 512)) ** 2)
    frames = np.stack(power).reshape(n_frames, 4, 257).mean(axis=1)
    return np.log(np.maximum(frames @ slaney_filters_by_definition(mels), 1e-8))


@pytest.mark.parametrize("mels", [40, 64, 128])
def test_mel_filters_are_slaneys(mels: int) -> None:
    np.testing.assert_allclose(slaney_mel_filters(mels=mels), slaney_filters_by_definition(mels), atol=1e-7)


@pytest.mark.parametrize("n_samples", [1, 300, 640, 641, 16_000, 20_123])
def test_logmel_is_the_log_of_mean_mel_power(n_samples: int) -> None:
    wave = noise(2.0)[:n_samples]
    frames = LogMelEncoder(64)(torch.from_numpy(wave)[None])[0].numpy()
    np.testing.assert_allclose(frames, logmel_by_definition(wave, 64), atol=2e-3)


def test_silence_is_the_floor_and_finite() -> None:
    frames = LogMelEncoder()(torch.zeros(1, 3200))
    assert torch.allclose(frames, torch.tensor(1e-8).log())


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 20), (40, 40), (8, 1)])
def test_the_dct_is_scipys_orthonormal_dct(inputs: int, outputs: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, inputs))
    mine = torch.from_numpy(x).float() @ dct_matrix(inputs=inputs, outputs=outputs)
    np.testing.assert_allclose(mine, scipy.fft.dct(x, norm="ortho")[:, :outputs], atol=1e-5)


def test_deltas_are_regression_slopes_with_repeated_edges() -> None:
    x = np.random.default_rng(1).standard_normal((3, 9, 4))
    lengths = [9, 5, 1]
    mine = deltas(torch.from_numpy(x), n_frames=torch.tensor(lengths)).numpy()
    for row, n in enumerate(lengths):
        for t in range(n):
            total = np.zeros(4)
            for d in (1, 2):
                total += d * (x[row, min(t + d, n - 1)] - x[row, max(t - d, 0)])
            np.testing.assert_allclose(mine[row, t], total / 10, atol=1e-12)


def test_mfcc_is_the_dct_of_logmel_with_its_deltas() -> None:
    wave = noise(1.0)
    frames = MfccEncoder(coefficients=13, mels=40)(torch.from_numpy(wave)[None])[0].numpy()
    cepstra = scipy.fft.dct(logmel_by_definition(wave, 40), norm="ortho")[:, :13]
    np.testing.assert_allclose(frames[:, :13], cepstra, atol=5e-3)
    n = len(cepstra)
    at = np.arange(n)
    slope = sum(d * (cepstra[np.minimum(at + d, n - 1)] - cepstra[np.maximum(at - d, 0)]) for d in (1, 2))
    np.testing.assert_allclose(frames[:, 13:26], slope / 10, atol=5e-3)


@pytest.mark.parametrize("kind", [LogMelEncoder, MfccEncoder])
def test_built_ins_make_25_frames_a_second(kind: type[torch.nn.Module]) -> None:
    encoder = kind()
    assert encoder.hop_size_in_ms == 40
    assert encoder(torch.zeros(2, 32_000)).shape == (2, 50, encoder.output_dim)

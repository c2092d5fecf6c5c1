from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

TORCHAUDIO = '''
"""What dasheng takes of torchaudio, whose wheels hold a library for GPUs that a torch without them cannot load."""

import torch


def triangles(f_min, f_max, n_mels, n_bins, sample_rate):
    ends = [2595 * (1 + torch.tensor(float(hz)) / 700).log10() for hz in (f_min, f_max)]
    peaks = 700 * (10 ** (torch.linspace(*ends, n_mels + 2) / 2595) - 1)
    apart = peaks - torch.linspace(0, sample_rate // 2, n_bins)[:, None]
    widths = peaks.diff()
    return torch.minimum(-apart[:, :-2] / widths[:-1], apart[:, 2:] / widths[1:]).clamp(min=0)


class MelSpectrogram(torch.nn.Module):
    """Power spectra of Hann windows, under triangles on HTK's mel scale: (..., samples) -> (..., mels, steps)."""

    def __init__(self, *, f_min, sample_rate, win_length, center, n_fft, f_max, hop_length, n_mels):
        super().__init__()
        self.n_fft, self.hop_length, self.center = n_fft, hop_length, center
        self.register_buffer("window", torch.hann_window(win_length))
        self.register_buffer("fb", triangles(f_min, f_max, n_mels, n_fft // 2 + 1, sample_rate))

    def forward(self, audio):
        flat = audio.reshape(-1, audio.shape[-1])
        spectra = torch.stft(
            flat, self.n_fft, self.hop_length, len(self.window), self.window, self.center, return_complex=True
        )
        power = spectra.abs().square().reshape(*audio.shape[:-1], *spectra.shape[1:])
        return (power.transpose(-1, -2) @ self.fb).transpose(-1, -2)


class AmplitudeToDB(torch.nn.Module):
    """Decibels down to `top_db` below the loudest point: of each row with a channel, without one of the batch."""

    def __init__(self, *, top_db):
        super().__init__()
        self.top_db = top_db

    def forward(self, power):
        decibels = 10 * power.clamp(min=1e-10).log10()
        over = (-3, -2, -1) if decibels.ndim >= 3 else (-2, -1)
        return torch.maximum(decibels, decibels.amax(over, keepdim=True) - self.top_db)
'''

TINY = {"num_heads": 2, "embed_dim": 8, "depth": 2, "target_length": 100, "top_db": 20}
"""Positions for one second, and a short range: what is encoded in pieces and what a loud neighbour changes is seen."""


@pytest.fixture
def dasheng_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The dasheng package itself, its spectra apart, and a tiny model of its own class with random weights.

    Returns the model's checkpoint, as one of the base size: it lies where ``torch.hub`` keeps what it has downloaded.
    """
    if find_spec("dasheng") is None:
        pytest.skip("dasheng is not installed: `make test` does that, without the torchaudio that it asks for")
    (tmp_path / "site/torchaudio").mkdir(parents=True)
    (tmp_path / "site/torchaudio/__init__.py").touch()
    (tmp_path / "site/torchaudio/transforms.py").write_text(TORCHAUDIO)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dasheng", "torchaudio")]:
        monkeypatch.delitem(sys.modules, name)
    package = import_module("dasheng.pretrained.pretrained")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dasheng", "torchaudio")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # gone again when the test is over
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = package.Dasheng(**TINY)
    checkpoint = tmp_path / "torch/hub/checkpoints/dasheng_base.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"model": model.state_dict(), "config": TINY}, checkpoint)
    return checkpoint

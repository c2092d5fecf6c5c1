"""An encoder of wav2vec2-base's size with random weights, in plain torch, so that both sides can run it as a file.

Seven strided convolutions and twelve layers of a transformer (Baevski et al. 2020, table 6 has the sizes): 94 M
parameters, 768 wide, a frame every 20 ms. ``large`` is that of wav2vec2-large: 24 layers, 1024 wide, 315 M. ``small``
has the same convolutions, and 6 layers, 384 wide; ``tiny`` has one layer, 32 wide, after convolutions of 16
channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

__all__ = ["SIZES", "Size", "write_transformer"]

Size = Literal["tiny", "small", "base", "large"]
SIZES: dict[Size, tuple[int, int, int, int]] = {
    "tiny": (32, 1, 2, 64),
    "small": (384, 6, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}

SOURCE = '''"""Convolutions and a transformer of random weights."""
import torch
from torch import nn

KERNELS = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))


class LookalikeEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.sampling_rate, self.output_dim, self.hop_size_in_ms = 16_000, {dim}, 20
        stem, channels = [], 1
        for kernel, stride in KERNELS:
            stem += [nn.Conv1d(channels, {stem}, kernel, stride, bias=False), nn.GELU()]
            channels = {stem}
        self.stem = nn.Sequential(*stem)
        self.project = nn.Sequential(nn.LayerNorm({stem}), nn.Linear({stem}, {dim}))
        layer = nn.TransformerEncoderLayer({dim}, {heads}, {inner}, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, {n_layers}, enable_nested_tensor=False)

    def forward(self, audio):
        audio = nn.functional.pad(audio, (0, 80))
        return self.layers(self.project(self.stem(audio[:, None, :]).transpose(1, 2)))
'''


def write_transformer(folder: Path, *, size: Size = "base") -> Path:
    """The file of the encoder, whose class is ``LookalikeEncoder``."""
    dim, n_layers, heads, inner = SIZES[size]
    stem = 16 if size == "tiny" else 512
    path = folder / f"lookalike_{size}_encoder.py"
    path.write_text(SOURCE.format(stem=stem, dim=dim, heads=heads, inner=inner, n_layers=n_layers))
    return path

"""A linear CTC head over frames. The door to torch of this kind.

LayerNorm (standardisation under ``strict``) and Linear of each frame by itself, with connectionist temporal
classification (Graves et al. 2006) as the loss: what it can spell is what the encoder itself put into single frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.probe.text import BLANK

__all__ = ["CtcHead", "Utterances"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """A batch: frames float32 (n_frames, dim) of each clip, and symbols int64 (n,) of what is said in it."""

    frames: Sequence[NDArray[np.float32]]
    symbols: Sequence[NDArray[np.int64]]


class CtcHead(nn.Module):
    """``upsampling`` rows of symbol scores for each frame, in the order of time."""

    def __init__(self, *, dim: int, n_symbols: int, upsampling: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.n_symbols, self.upsampling = n_symbols, upsampling
        self.norm = nn.LayerNorm(dim) if norm is None else norm
        self.linear = nn.Linear(dim, n_symbols * upsampling)

    def forward(self, frames: Tensor) -> Tensor:
        """Scores (n_frames * upsampling, n_symbols) of frames (n_frames, dim), of one clip or of several in a row."""
        scores: Tensor = self.linear(self.norm(frames))
        return scores.reshape(-1, self.n_symbols)

    @torch.no_grad()
    def best_symbols(self, frames: NDArray[np.float32]) -> NDArray[np.int64]:
        """Read the best symbol of every row, int64 (n_frames * upsampling,)."""
        best: NDArray[np.int64] = self(torch.from_numpy(frames)).argmax(dim=1).numpy()
        return best

    def loss(self, batch: Utterances) -> Tensor:
        """CTC loss by symbol, a mean over clips; 0 for a clip that has fewer rows than its text needs."""
        scores = self(torch.from_numpy(np.concatenate(batch.frames)))
        n_rows = [len(frames) * self.upsampling for frames in batch.frames]
        padded = nn.utils.rnn.pad_sequence(list(scores.log_softmax(dim=1).split(n_rows)))
        return functional.ctc_loss(
            padded,
            torch.from_numpy(np.concatenate(batch.symbols)),
            torch.tensor(n_rows),
            torch.tensor([len(symbols) for symbols in batch.symbols]),
            blank=BLANK,
            zero_infinity=True,
        )

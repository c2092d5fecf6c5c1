"""A gated adapter from frames into a frozen language model. The door to torch of this kind.

After X-ARES's ``AsrModelForGeneration``: frames pass ``proj(silu(fc_1(x)) * fc_2(x))`` into the model's embedding space
and stand before a separator and the text, which the model learns, through the adapter alone, to go on with.

Sequences are padded on the left, and positions are counted from the first frame on, in training as in generation. A
clip is heard the same alone and in a batch; in X-ARES padding stands between audio and text in training, and the
positions of a text depend on the longest clip of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.probe.text_models import load_language_model

if TYPE_CHECKING:
    from featstore.probe.text_models import LanguageModel

__all__ = ["Adapter", "Listener", "Utterances", "listening_device", "load_language_model"]

NO_LABEL = -100


def listening_device() -> torch.device:
    """A GPU where there is one: half a billion weights are much for a CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """A batch: frames float32 (n_frames, dim) of each clip, and the tokens of what is said in it."""

    frames: Sequence[NDArray[np.float32]]
    tokens: Sequence[Sequence[int]]


class Adapter(nn.Module):
    """Frames (..., dim) to embeddings (..., width), gated (SwiGLU, Shazeer 2020)."""

    def __init__(self, *, dim: int, inner_width: int, width: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.gate = nn.Linear(dim, inner_width)
        self.value = nn.Linear(dim, inner_width)
        self.out = nn.Linear(inner_width, width)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeddings."""
        frames = self.norm(frames)
        embeddings: Tensor = self.out(functional.silu(self.gate(frames)) * self.value(frames))
        return embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padded:
    """Left-padded input of the model: embeddings (batch, length, width), 1 where real, positions, (batch, length)."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor


class Listener:
    """A language model that hears through an adapter; only the adapter learns."""

    def __init__(self, language_model: LanguageModel, adapter: Adapter) -> None:
        self.language_model = language_model
        self.adapter = adapter.to(language_model.model.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.language_model.model.device
        return device

    def loss(self, batch: Utterances) -> Tensor:
        """Mean cross-entropy of the tokens of all texts and of their ends, each given those before it."""
        logits, labels = self._teach(batch)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL)

    @torch.no_grad()
    def told_loss(self, batch: Utterances) -> tuple[float, int]:
        """Sum of the same cross-entropy, and over how many tokens it is."""
        logits, labels = self._teach(batch)
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return float(total), int((labels != NO_LABEL).sum())

    @torch.no_grad()
    def told_texts(self, batch: Utterances) -> list[str]:
        """Texts of the likeliest tokens, each given the true ones before it."""
        logits, labels = self._teach(batch)
        best = logits.argmax(dim=2)
        return [
            self.language_model.decode(row[known].tolist()) for row, known in zip(best, labels != NO_LABEL, strict=True)
        ]

    @torch.no_grad()
    def listen(
        self, frames: Sequence[NDArray[np.float32]], *, max_new_tokens: int, repetition_penalty: float
    ) -> list[str]:
        """Generate the text of each clip, greedily."""
        padded = self._padded(frames, [[self.language_model.separator] for _ in frames])
        with self._autocast():
            made = self.language_model.generate(
                padded.embeddings,
                padded.mask,
                max_new_tokens=max_new_tokens,
                repetition_penalty=repetition_penalty,
            )
        return [self.language_model.decode(row) for row in made]

    def _teach(self, batch: Utterances) -> tuple[Tensor, Tensor]:
        """Logits (batch, longest, vocabulary) from the separators on, and the tokens that should come (batch, longest).

        Texts end together on the right, so that the vocabulary's worth of logits is made for them alone.
        """
        texts = [[*tokens, self.language_model.end] for tokens in batch.tokens]
        longest = max(map(len, texts))
        padded = self._padded(batch.frames, [[self.language_model.separator, *text[:-1]] for text in texts])
        labels = [[NO_LABEL] * (longest - len(text)) + text for text in texts]
        with self._autocast():
            output: Any = self.language_model.model(
                inputs_embeds=padded.embeddings,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                logits_to_keep=longest,
                use_cache=False,
            )
        return output.logits[:, -longest:], torch.tensor(labels, device=self.device)

    def _padded(self, frames: Sequence[NDArray[np.float32]], tokens: Sequence[Sequence[int]]) -> _Padded:
        heard = self.adapter(torch.from_numpy(np.concatenate(frames)).to(self.device)).split([len(f) for f in frames])
        dtype = self.language_model.model.dtype
        rows = [
            torch.cat([audio.to(dtype), self.language_model.embed(torch.tensor(text, device=self.device))])
            for audio, text in zip(heard, tokens, strict=True)
        ]
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(embeddings.shape[1], device=self.device) >= embeddings.shape[1] - lengths[:, None]).long()
        return _Padded(embeddings=embeddings, mask=mask, positions=(mask.cumsum(dim=1) - 1).clamp(min=0))

    def _autocast(self) -> AbstractContextManager[Any]:
        # The model's own weights are bfloat16 on a GPU; autocast is for what it casts by itself.
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

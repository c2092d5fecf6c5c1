"""Model and training of the audio-text retrieval probe, after ``RetrivalMLP`` of X-ARES.

Utterance vectors pass through LayerNorm and a two-layer MLP. Tokens are embedded and pass through a two-layer MLP; the
embedding of a caption is the mean over its tokens. Two optimisations leave the result unchanged: each distinct token of
a batch passes the first layer once, and the second layer, which is linear, is applied to the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.probe import training
from featstore.probe.standardisation import Standardisation, Standardise
from featstore.probe.training import FittedModel, initialised
from featstore.records import Protocol as EvaluationProtocol

__all__ = ["Captions", "Embedder", "Objective", "Pairs", "objective_of", "train"]

WIDTH = 1024
TEMPERATURE = 0.07
MAX_SCALE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """Concatenated tokens of all captions: caption ``i`` has tokens ``bounds[i]`` to ``bounds[i + 1]``."""

    tokens: NDArray[np.int64]
    bounds: NDArray[np.int64]
    n_tokens: int

    def take(self, captions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Concatenated tokens of some captions, and the offset of each caption."""
        lengths = (self.bounds[1:] - self.bounds[:-1])[captions]
        starts = np.cumsum(lengths) - lengths
        at = np.arange(lengths.sum()) + np.repeat(self.bounds[captions] - starts, lengths)
        return self.tokens[at], starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Training pairs: window, caption and clip index, int64 (pairs,) each."""

    window: NDArray[np.int64]
    caption: NDArray[np.int64]
    clip: NDArray[np.int64]


class Embedder(nn.Module):
    """Audio tower, text tower and a temperature; `embed_audio` and `embed_captions` return unit vectors."""

    def __init__(self, *, dim: int, n_tokens: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm is None else norm
        self.audio = nn.Sequential(nn.Linear(dim, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.embedding = nn.Embedding(n_tokens, WIDTH)
        self.token = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU())
        self.caption = nn.Linear(WIDTH, WIDTH)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1.0 / TEMPERATURE)))

    def project_audio(self, vectors: Tensor) -> Tensor:
        """Project utterance vectors (n, dim) into the shared space, (n, 1024)."""
        projected: Tensor = self.audio(self.norm(vectors))
        return projected

    def project_captions(self, tokens: NDArray[np.int64], starts: NDArray[np.int64]) -> Tensor:
        """Project captions into the shared space, (captions, 1024)."""
        distinct, place = np.unique(tokens, return_inverse=True)
        passed: Tensor = self.token(self.embedding(torch.from_numpy(distinct)))
        means = functional.embedding_bag(torch.from_numpy(place), passed, torch.from_numpy(starts), mode="mean")
        projected: Tensor = self.caption(means)
        return projected

    @torch.no_grad()
    def embed_audio(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit vectors float32 (n, 1024) of utterance vectors (n, dim)."""
        return _unit(self.project_audio(torch.from_numpy(vectors)))

    @torch.no_grad()
    def embed_captions(self, tokens: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors float32 (captions, 1024) of captions."""
        return _unit(self.project_captions(tokens, starts))


def _unit(projected: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = functional.normalize(projected, dim=1).numpy()
    return unit


class Objective(Protocol):
    """Contrastive loss of a batch of pairs."""

    def __call__(self, audio: Tensor, text: Tensor, *, clip: Tensor, log_scale: Tensor) -> Tensor:
        """Return the loss of projections (pairs, width); ``clip`` (pairs,) is the clip of each pair."""


def objective_of(protocol: EvaluationProtocol) -> Objective:
    """Symmetric cross-entropy over a batch (InfoNCE).

    ``xares``: on dot products; only the pair itself is positive, even where other captions of its clip are in the
    batch; with the regulariser of X-ARES on the projections. ``strict``: on cosines, which retrieval ranks by; every
    caption of the clip is positive; the scale is at most 100, as in CLIP.
    """
    return _as_x_ares if protocol == "xares" else _of_cosines


def _of_cosines(audio: Tensor, text: Tensor, *, clip: Tensor, log_scale: Tensor) -> Tensor:
    scale = log_scale.clamp(max=math.log(MAX_SCALE)).exp()
    logits = scale * functional.normalize(audio, dim=1) @ functional.normalize(text, dim=1).T
    right = (clip[:, None] == clip).to(logits.dtype)
    right /= right.sum(dim=1, keepdim=True)
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


def _as_x_ares(audio: Tensor, text: Tensor, *, clip: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * audio @ text.T
    itself = torch.arange(len(clip))
    loss = (functional.cross_entropy(logits, itself) + functional.cross_entropy(logits.T, itself)) / 2
    size = audio.abs().mean() / audio.square().sum().sqrt() + text.abs().mean() / text.square().sum().sqrt()
    return loss + size


def train(
    features: NDArray[np.float32],
    captions: Captions,
    pairs: Pairs,
    *,
    objective: Objective,
    score: Callable[[Embedder], tuple[float, float]] | None,
    seed: tuple[int, int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rates: Sequence[float] | None,
) -> FittedModel[Embedder]:
    """Train a model. Every epoch shuffles the pairs; its last batch may be smaller.

    Parameters
    ----------
    features : float32 (windows, dim)
    score : callable or None
        Returns the validation score of a model and a tie-breaker; higher is better. None: use the last epoch.
    seed : pair of int
        Seed of the run and number of the round; seeds the initial weights and the order of each epoch.
    rates : sequence of float or None
        Learning rates of the sweep, on standardised features (`featstore.probe.training`). None: the schedule of
        X-ARES.
    """
    norm = None if rates is None else Standardise(Standardisation.of(features[np.unique(pairs.window)]))

    def build(rng: np.random.Generator) -> Embedder:
        return initialised(lambda: Embedder(dim=features.shape[1], n_tokens=captions.n_tokens, norm=norm), rng)

    def batches(rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        order = rng.permutation(len(pairs.window))
        return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

    def loss(model: Embedder, batch: NDArray[np.int64]) -> Tensor:
        audio = model.project_audio(torch.from_numpy(features[pairs.window[batch]]))
        text = model.project_captions(*captions.take(pairs.caption[batch]))
        return objective(audio, text, clip=torch.from_numpy(pairs.clip[batch]), log_scale=model.log_scale)

    return training.train(
        build,
        seed=seed,
        batches=batches,
        loss=loss,
        score=score,
        epochs=epochs,
        learning_rate=learning_rate,
        rates=rates,
    )

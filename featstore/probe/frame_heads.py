"""Linear heads on frames that stay on disk: read chunk by chunk through the memory map, and normalised.

The loss of a batch is a mean over its frames, so its gradient is a sum over chunks of them (`_ChunkedLoss`): a thread
holds one window as it is stored, and one chunk, which stays in the processor's cache from its forward to its backward
pass. A set that fits in memory is normalised once, and cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.errors import DataError
from featstore.evaluation.frames import FrameReader
from featstore.probe.frame_scoring import Excerpts, Rows, Span, spans_of
from featstore.probe.linear import LinearHeads, Loss, Trained, binary_cross_entropy, layer_normalised, threads
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import Fitted, Score, train, zero_layer
from featstore.system import free_memory_bytes

__all__ = [
    "Crew",
    "FrameFeatures",
    "crew",
    "frame_logits",
    "standardised_by",
    "train_frame_head",
]

CHUNK_ROWS = 1024

SHARES = 4
"""A batch is differentiated in so many shares, which are added up in order: whatever the cores, the sum is the same."""

KEPT_SHARE = 4
"""Standardised frames are kept where they take no more than one in so many bytes of the memory that is free."""

T = TypeVar("T")
R = TypeVar("R")


class Crew:
    """Threads that share the work of one operation after another: each operation is too small for torch's own."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> tuple[R, ...]:
        """Work on every item without gradients; results in the order of the items."""

        def without_gradients(item: T) -> R:
            with torch.no_grad():
                return work(item)

        return tuple(self._pool.map(without_gradients, items))


@contextmanager
def crew() -> Iterator[Crew]:
    """As many threads as torch has, which has one meanwhile."""
    n_threads = torch.get_num_threads()
    with threads(1), ThreadPoolExecutor(n_threads) as pool:
        yield Crew(pool)


def train_frame_head(
    features: FrameFeatures,
    excerpts: Excerpts,
    *,
    crew: Crew,
    padded: bool,
    pos_weight: float,
    seed: tuple[int, int],
    score: Callable[[Trained], Score] | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rates: Sequence[float] | None,
) -> Trained:
    """Train a head by one of the schedules of `featstore.probe.training.train`.

    X-ARES's head has the affine of LayerNorm. That of a sweep is a linear layer on standardised frames, whose loss is
    convex: it starts at zero.

    Parameters
    ----------
    excerpts : Excerpts
        What it learns from, every sample of it.
    padded : bool
        Whether a batch is padded to its longest sample with frames of zeros, and the loss a mean over these as well, as
        in X-ARES; else it is a mean over the frames that there are.
    score : callable or None
        Validation score of a head; higher is better.
    """
    batch_loss = _BatchLoss(features, excerpts, crew=crew, padded=padded, loss=binary_cross_entropy(pos_weight))

    def build(rng: np.random.Generator) -> LinearHeads | nn.Linear:
        if rates is None:
            return LinearHeads([rng], n_classes=excerpts.n_classes, dim=features.dim)
        return zero_layer(dim=features.dim, n_classes=excerpts.n_classes)

    def batches(rng: np.random.Generator) -> Iterator[list[int]]:
        order = rng.permutation(len(excerpts)).tolist()
        return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

    @torch.no_grad()
    def trained(model: LinearHeads | nn.Linear, fitted: Fitted) -> Trained:
        weight, bias = (each.clone() for each in _affine(model))
        return Trained(weight=weight, bias=bias, epoch=fitted.epoch, history=fitted.history, fit=fitted.fit)

    unfitted = Fitted(epoch=0, history=())
    model, fitted = train(
        build,
        seed=seed,
        batches=batches,
        loss=lambda model, batch: batch_loss(*_affine(model), batch),
        score=None if score is None else lambda model: score(trained(model, unfitted)),
        epochs=epochs,
        learning_rate=learning_rate,
        rates=rates,
    )
    return trained(model, fitted)


def _affine(model: LinearHeads | nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight (classes, dim) and bias (classes,) of the affine map that a head is."""
    if isinstance(model, nn.Linear):
        return model.weight, model.bias
    weight, bias = model.folded()
    return weight[0], bias[0]


Normalise = Callable[[Tensor], Tensor]
"""From rows float32 (n, dim), which may be overwritten, to what a head takes."""


def standardised_by(by: Standardisation) -> Normalise:
    """Rows of mean 0 and variance 1 per dimension, by the statistics of training frames."""
    mean, scale = torch.from_numpy(by.mean.astype(np.float32)), torch.from_numpy(by.scale.astype(np.float32))
    return lambda inputs: inputs.sub_(mean).div_(scale)


class FrameFeatures:
    """Normalised frames, by window.

    All of them are made once and kept where they fit in ``kept_bytes``, by default a share of what is free; else
    each is made when it is asked for.
    """

    def __init__(
        self,
        reader: FrameReader,
        *,
        dim: int,
        crew: Crew,
        normalise: Normalise = layer_normalised,
        kept_bytes: int | None = None,
    ) -> None:
        self._reader, self._normalise = reader, normalise
        self.dim = dim
        self._kept: Tensor | None = None
        self._firsts: list[int] = []
        n_rows = int(reader.lengths.sum())
        if n_rows * dim * 4 <= (_room() if kept_bytes is None else kept_bytes):
            self._firsts = (np.cumsum(reader.lengths) - reader.lengths).tolist()
            # From NumPy, which asks the system for large pages: a seventh of the time of torch's own.
            self._kept = self._all(torch.from_numpy(np.empty((n_rows, dim), np.float32)), crew)

    def pieces(self, spans: Sequence[Span], scratch: Scratch) -> list[Tensor]:
        """Rows of the spans of a chunk in order, float32 (rows, dim), until the scratch is used again."""
        if self._kept is None:
            return [self._standardised(spans, scratch)]
        return [self._kept[self._firsts[span.window] + span.start :][: len(span)] for span in spans]

    def _all(self, rows: Tensor, crew: Crew) -> Tensor:
        def fill(windows: NDArray[np.int64]) -> None:
            scratch = Scratch()
            for window in windows.tolist():
                first, length = self._firsts[window], int(self._reader.lengths[window])
                for start in range(0, length, CHUNK_ROWS):
                    span = Span(0, window, start, min(length, start + CHUNK_ROWS), start)
                    rows[first + start :][: len(span)] = self._standardised([span], scratch)

        crew.map(fill, np.array_split(np.arange(len(self._firsts)), SHARES))
        return rows

    def _standardised(self, spans: Sequence[Span], scratch: Scratch) -> Tensor:
        row = 0
        for span in spans:
            frames = scratch.frames_of(self._reader, span.window)
            stored = scratch.array("stored", (CHUNK_ROWS, self.dim), frames.dtype)
            stored[row : row + len(span)] = frames[span.start : span.stop]
            row += len(span)
        # NumPy copies out of the map and torch converts: NumPy alone takes five times as long from float16.
        inputs = torch.from_numpy(scratch.array("inputs", (CHUNK_ROWS, self.dim), np.dtype(np.float32)))[:row]
        inputs.copy_(torch.from_numpy(stored)[:row])
        return self._normalise(inputs)


def _room() -> int:
    free = free_memory_bytes()
    return 2**30 if free is None else free // KEPT_SHARE


class Scratch:
    """What one thread uses again and again."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._last: tuple[int, NDArray[Any]] | None = None

    def frames_of(self, reader: FrameReader, window: int) -> NDArray[Any]:
        """Frames of a window, read once for all spans of it that follow each other."""
        if self._last is None or self._last[0] != window:
            self._last = window, reader[window]
        return self._last[1]

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The array of that name, with whatever it holds."""
        found = self._arrays.get(name)
        if found is None or found.dtype != dtype or found.shape != shape:
            found = self._arrays[name] = np.empty(shape, dtype)
        return found


def frame_logits(features: FrameFeatures, excerpts: Excerpts, samples: Sequence[int], head: Trained) -> Rows:
    """Logits of the frames of some samples behind one another. Raises DataError where some are not finite."""
    scratch = Scratch()
    logits = torch.empty(len(head.bias), int(excerpts.n_rows[list(samples)].sum()))
    row = 0
    for spans in spans_of(excerpts, samples, max_rows=CHUNK_ROWS):
        for inputs in features.pieces(spans, scratch):
            torch.mm(head.weight, inputs.T, out=logits[:, row : row + len(inputs)])
            row += len(inputs)
    logits += head.bias.unsqueeze(1)
    if not math.isfinite(float(logits.sum())):
        raise DataError(
            "some frames are not finite: `featstore verify --repair` drops damaged parts, extracting makes them again"
        )
    return Rows(logits=logits.numpy().T, padding=head.bias.numpy())


class _BatchLoss:
    """Loss of a batch of samples under an affine map of their frames."""

    def __init__(self, features: FrameFeatures, excerpts: Excerpts, *, crew: Crew, padded: bool, loss: Loss) -> None:
        self._features, self._excerpts, self._crew, self._padded, self._loss = features, excerpts, crew, padded, loss
        self._scratch = [Scratch() for _ in range(SHARES)]

    def __call__(self, weight: Tensor, bias: Tensor, batch: Sequence[int]) -> Tensor:
        """Mean over the frames, of a weight (classes, dim) and a bias (classes,)."""
        n_rows = self._excerpts.n_rows[batch]
        n_counted = len(batch) * int(n_rows.max()) if self._padded else int(n_rows.sum())
        loss: Tensor = _ChunkedLoss.apply(weight, bias, self, batch)  # type: ignore[no-untyped-call]
        n_padded = n_counted - int(n_rows.sum())
        if n_padded:
            # LayerNorm makes zeros of zeros, so a padded frame has the logits of the bias. The loss is linear in the
            # target: one frame with their mean target stands for all.
            loss = loss + n_padded * self._loss(bias, self._mean_padded_target(batch, n_padded))
        return loss / n_counted

    def chunk_gradients(self, weight: Tensor, bias: Tensor, batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the losses of all frames, and its gradients by weight and bias."""
        chunks = list(spans_of(self._excerpts, batch, max_rows=CHUNK_ROWS))
        bounds = [len(chunks) * number // SHARES for number in range(SHARES + 1)]

        def add_up(number: int) -> tuple[Tensor, Tensor, Tensor]:
            mine = [each.detach().requires_grad_() for each in (weight, bias)]
            total, gradients = torch.zeros(()), [torch.zeros_like(each) for each in mine]
            for spans in chunks[bounds[number] : bounds[number + 1]]:
                with torch.enable_grad():
                    loss = self._of_chunk(mine[0], mine[1], spans, self._scratch[number])
                torch._foreach_add_(gradients, list(torch.autograd.grad(loss, mine)))
                total += loss.detach()
            return total, gradients[0], gradients[1]

        (loss, d_weight, d_bias), *others = self._crew.map(add_up, range(SHARES))
        for other in others:
            torch._foreach_add_([loss, d_weight, d_bias], list(other))
        return loss, d_weight, d_bias

    def _of_chunk(self, weight: Tensor, bias: Tensor, spans: Sequence[Span], scratch: Scratch) -> Tensor:
        # Classes by rows: with few classes, a third faster than rows by classes.
        column = bias.unsqueeze(1)
        logits = torch.cat(
            [torch.addmm(column, weight, rows.T) for rows in self._features.pieces(spans, scratch)], dim=1
        )
        targets = [self._excerpts.targets(span.sample, start=span.row, stop=span.row + len(span)) for span in spans]
        return self._loss(logits.T, torch.from_numpy(np.concatenate(targets)).to(torch.float32)).sum()

    def _mean_padded_target(self, batch: Sequence[int], n_padded: int) -> Tensor:
        excerpts = self._excerpts
        longest = int(excerpts.n_rows[batch].max())
        sounds = np.zeros(excerpts.n_classes)
        for sample in batch:
            sounds += excerpts.targets(sample, start=int(excerpts.n_rows[sample]), stop=longest).sum(axis=0)
        return torch.from_numpy((sounds / n_padded).astype(np.float32))


class _ChunkedLoss(torch.autograd.Function):
    """A loss that is differentiated in its forward pass, chunk by chunk, so that no chunk is cached or read again."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, batch_loss: _BatchLoss, batch: Sequence[int]) -> Tensor:
        loss, *gradients = batch_loss.chunk_gradients(weight, bias, batch)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *d_loss: Any) -> Any:
        return *(d_loss[0] * each for each in ctx.saved_tensors), None, None

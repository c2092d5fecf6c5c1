"""Linear heads on frames that are read chunk by chunk through a memory map, and normalised.

The loss of a batch is a mean over its frames, so its gradient is a sum over chunks of frames (`_ChunkedLoss`). A thread
has one stored window and one chunk in memory; the chunk stays in the CPU cache from its forward to its backward pass.
A set that fits in memory is normalised once and cached.
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
from featstore.probe.layer_mix import MixHead, learned_weights
from featstore.probe.linear import LinearHeads, Loss, Trained, binary_cross_entropy, layer_normalised, torch_threads
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import Fitted, Score, train, zero_layer
from featstore.system import free_memory_bytes

__all__ = [
    "FrameFeatures",
    "WorkerThreads",
    "frame_logits",
    "standardised_by",
    "train_frame_head",
    "worker_threads",
]

CHUNK_ROWS = 1024

SHARES = 4
"""Number of partial sums of a batch's gradient; it is fixed, so that results do not depend on the number of cores."""

CACHE_SHARE = 4
"""Standardised frames are cached if they take at most this fraction (one in N) of the free memory."""

T = TypeVar("T")
R = TypeVar("R")


class WorkerThreads:
    """Thread pool for operations that are too small for torch's own parallelism."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> tuple[R, ...]:
        """Apply ``work`` to every item without gradients; return the results in order."""

        def without_gradients(item: T) -> R:
            with torch.no_grad():
                return work(item)

        return tuple(self._pool.map(without_gradients, items))


@contextmanager
def worker_threads() -> Iterator[WorkerThreads]:
    """Start as many threads as torch uses, and limit torch to one thread per operation meanwhile."""
    n_threads = torch.get_num_threads()
    with torch_threads(1), ThreadPoolExecutor(n_threads) as pool:
        yield WorkerThreads(pool)


def train_frame_head(
    features: FrameFeatures,
    excerpts: Excerpts,
    *,
    threads: WorkerThreads,
    padded: bool,
    pos_weight: float,
    seed: tuple[int, int],
    score: Callable[[Trained], Score] | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    rates: Sequence[float] | None,
    products: Tensor | None = None,
) -> Trained:
    """Train a head by the fixed schedule or by a sweep: see `featstore.probe.training.train`.

    The head of the X-ARES schedule has the affine parameters of LayerNorm. The head of a sweep is a linear layer on
    standardised frames; its loss is convex, so it starts at zero. A layer mix is one affine map of all layers, so that
    it has the same batches.

    Parameters
    ----------
    excerpts : Excerpts
        Training samples; all of them are used.
    padded : bool
        If true, as in X-ARES, a batch is padded with zero frames to its longest sample and the loss is the mean over
        padded frames too; else it is the mean over real frames.
    products : float64 (layers, layers), optional
        Of a layer mix, whose features have all layers: see `featstore.probe.layer_mix`.
    score : callable or None
        Validation score of a head; higher is better.
    """
    batch_loss = _BatchLoss(features, excerpts, threads=threads, padded=padded, loss=binary_cross_entropy(pos_weight))

    def build(rng: np.random.Generator) -> _Head:
        if products is not None:
            return MixHead(products, dim=features.dim // len(products), n_outputs=excerpts.n_classes)
        if rates is None:
            return LinearHeads([rng], n_classes=excerpts.n_classes, dim=features.dim)
        return zero_layer(dim=features.dim, n_classes=excerpts.n_classes)

    def batches(rng: np.random.Generator) -> Iterator[list[int]]:
        order = rng.permutation(len(excerpts)).tolist()
        return (order[start : start + batch_size] for start in range(0, len(order), batch_size))

    @torch.no_grad()
    def trained(model: _Head, fitted: Fitted) -> Trained:
        weight, bias = (each.clone() for each in _affine(model))
        return Trained(
            weight=weight,
            bias=bias,
            epoch=fitted.epoch,
            history=fitted.history,
            fit=fitted.fit,
            layer_weights=learned_weights(model),
        )

    unfitted = Fitted(epoch=0, history=())
    found = train(
        build,
        seed=seed,
        batches=batches,
        loss=lambda model, batch: batch_loss(*_affine(model), batch),
        score=None if score is None else lambda model: score(trained(model, unfitted)),
        epochs=epochs,
        learning_rate=learning_rate,
        rates=rates,
    )
    return trained(found.model, found)


_Head = LinearHeads | nn.Linear | MixHead


def _affine(model: _Head) -> tuple[Tensor, Tensor]:
    """Weight (classes, dim) and bias (classes,) of the head as one affine map."""
    if isinstance(model, MixHead):
        return model.affine()
    if isinstance(model, nn.Linear):
        return model.weight, model.bias
    weight, bias = model.folded()
    return weight[0], bias[0]


Normalise = Callable[[Tensor], Tensor]
"""From rows float32 (n, dim), which may be modified in place, to the input of a head."""


def standardised_by(by: Standardisation) -> Normalise:
    """Return a function that standardises rows by the mean and variance of training frames."""
    mean, scale = torch.from_numpy(by.mean.astype(np.float32)), torch.from_numpy(by.scale.astype(np.float32))
    return lambda inputs: inputs.sub_(mean).div_(scale)


class FrameFeatures:
    """Normalised frames, by window.

    All frames are normalised once and cached if they fit in ``cache_bytes``, by default a share of the free memory;
    else each access normalises its frames.
    """

    def __init__(
        self,
        reader: FrameReader,
        *,
        dim: int,
        threads: WorkerThreads,
        normalise: Normalise = layer_normalised,
        cache_bytes: int | None = None,
    ) -> None:
        self._reader, self._normalise = reader, normalise
        self.dim = dim
        self._cached: Tensor | None = None
        self._firsts: list[int] = []
        n_rows = int(reader.lengths.sum())
        if n_rows * dim * 4 <= (_cache_capacity() if cache_bytes is None else cache_bytes):
            self._firsts = (np.cumsum(reader.lengths) - reader.lengths).tolist()
            # NumPy allocates huge pages, which takes a seventh of the time of torch.empty.
            self._cached = self._all(torch.from_numpy(np.empty((n_rows, dim), np.float32)), threads)

    def pieces(self, spans: Sequence[Span], scratch: Scratch) -> list[Tensor]:
        """Normalised rows of the spans of a chunk, float32 (rows, dim); valid until the scratch buffers are reused."""
        if self._cached is None:
            return [self._standardised(spans, scratch)]
        return [self._cached[self._firsts[span.window] + span.start :][: len(span)] for span in spans]

    def _all(self, rows: Tensor, threads: WorkerThreads) -> Tensor:
        def fill(windows: NDArray[np.int64]) -> None:
            scratch = Scratch()
            for window in windows.tolist():
                first, length = self._firsts[window], int(self._reader.lengths[window])
                for start in range(0, length, CHUNK_ROWS):
                    span = Span(0, window, start, min(length, start + CHUNK_ROWS), start)
                    rows[first + start :][: len(span)] = self._standardised([span], scratch)

        threads.map(fill, np.array_split(np.arange(len(self._firsts)), SHARES))
        return rows

    def _standardised(self, spans: Sequence[Span], scratch: Scratch) -> Tensor:
        row = 0
        for span in spans:
            frames = scratch.frames_of(self._reader, span.window)
            stored = scratch.array("stored", (CHUNK_ROWS, self.dim), frames.dtype)
            stored[row : row + len(span)] = frames[span.start : span.stop]
            row += len(span)
        # Copy by NumPy, convert by torch: NumPy alone takes five times as long from float16.
        inputs = torch.from_numpy(scratch.array("inputs", (CHUNK_ROWS, self.dim), np.dtype(np.float32)))[:row]
        inputs.copy_(torch.from_numpy(stored)[:row])
        return self._normalise(inputs)


def _cache_capacity() -> int:
    free = free_memory_bytes()
    return 2**30 if free is None else free // CACHE_SHARE


class Scratch:
    """Reusable buffers of one thread."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}
        self._last: tuple[int, NDArray[Any]] | None = None

    def frames_of(self, reader: FrameReader, window: int) -> NDArray[Any]:
        """Frames of a window; consecutive calls for one window read it once."""
        if self._last is None or self._last[0] != window:
            self._last = window, reader[window]
        return self._last[1]

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The uninitialised buffer of that name."""
        found = self._arrays.get(name)
        if found is None or found.dtype != dtype or found.shape != shape:
            found = self._arrays[name] = np.empty(shape, dtype)
        return found


def frame_logits(features: FrameFeatures, excerpts: Excerpts, samples: Sequence[int], head: Trained) -> Rows:
    """Concatenated logits of the frames of some samples. Raises DataError if some are not finite."""
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
            "frames have non-finite values: run `featstore verify --repair` to drop damaged parts, then extract again"
        )
    return Rows(logits=logits.numpy().T, padding=head.bias.numpy())


class _BatchLoss:
    """Loss of a batch of samples under an affine map of their frames."""

    def __init__(
        self, features: FrameFeatures, excerpts: Excerpts, *, threads: WorkerThreads, padded: bool, loss: Loss
    ) -> None:
        self._features, self._excerpts, self._threads = features, excerpts, threads
        self._padded, self._loss = padded, loss
        self._scratch = [Scratch() for _ in range(SHARES)]

    def __call__(self, weight: Tensor, bias: Tensor, batch: Sequence[int]) -> Tensor:
        """Mean loss over the frames, for a weight (classes, dim) and a bias (classes,)."""
        n_rows = self._excerpts.n_rows[batch]
        n_counted = len(batch) * int(n_rows.max()) if self._padded else int(n_rows.sum())
        loss: Tensor = _ChunkedLoss.apply(weight, bias, self, batch)  # type: ignore[no-untyped-call]
        n_padded = n_counted - int(n_rows.sum())
        if n_padded:
            # LayerNorm maps zeros to zeros, so the logits of a padded frame are the bias. The loss is linear in the
            # target, so one frame with the mean target stands for all padded frames.
            loss = loss + n_padded * self._loss(bias, self._mean_padded_target(batch, n_padded))
        return loss / n_counted

    def chunk_gradients(self, weight: Tensor, bias: Tensor, batch: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the losses of all frames, and its gradients with respect to weight and bias."""
        chunks = list(spans_of(self._excerpts, batch, max_rows=CHUNK_ROWS))
        bounds = [len(chunks) * number // SHARES for number in range(SHARES + 1)]

        def add_up(number: int) -> tuple[Tensor, Tensor, Tensor]:
            variables = [each.detach().requires_grad_() for each in (weight, bias)]
            total, gradients = torch.zeros(()), [torch.zeros_like(each) for each in variables]
            for spans in chunks[bounds[number] : bounds[number + 1]]:
                with torch.enable_grad():
                    loss = self._of_chunk(variables[0], variables[1], spans, self._scratch[number])
                torch._foreach_add_(gradients, list(torch.autograd.grad(loss, variables)))
                total += loss.detach()
            return total, gradients[0], gradients[1]

        (loss, d_weight, d_bias), *others = self._threads.map(add_up, range(SHARES))
        for other in others:
            torch._foreach_add_([loss, d_weight, d_bias], list(other))
        return loss, d_weight, d_bias

    def _of_chunk(self, weight: Tensor, bias: Tensor, spans: Sequence[Span], scratch: Scratch) -> Tensor:
        # (classes, rows) is a third faster than (rows, classes) when there are few classes.
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
    """A loss that computes its gradient in the forward pass, chunk by chunk, so that no chunk is read twice."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, batch_loss: _BatchLoss, batch: Sequence[int]) -> Tensor:
        loss, *gradients = batch_loss.chunk_gradients(weight, bias, batch)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *d_loss: Any) -> Any:
        return *(d_loss[0] * each for each in ctx.saved_tensors), None, None

"""Linear heads on frames that stay on disk: read chunk by chunk through the map, standardised, used and forgotten.

The loss of a batch is a mean over its frames, so its gradient is a sum over chunks of them: a thread holds one window
as it is stored, and one chunk, which stays in the processor's cache from its forward to its backward pass. A set that
fits in memory is standardised once, and kept. See `featstore.probe.linear` for the head and its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.errors import DataError
from featstore.evaluation.frames import FrameReader
from featstore.probe.frame_scoring import Excerpts, Rows, Span, spans_of
from featstore.probe.linear import LAYER_NORM_EPS, Bank, Job, Loss, Trained, threads
from featstore.probe.minibatch import DIVERGED, WEIGHT_DECAY, Score, train_to_plateau, unselected
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import adam_step
from featstore.system import free_memory_bytes

__all__ = [
    "Crew",
    "FrameFeatures",
    "FrameJob",
    "crew",
    "frame_logits",
    "standardised_by",
    "train_frame_head",
    "train_frame_heads",
]

CHUNK_ROWS = 1024

SHARES = 4
"""A batch is differentiated in so many shares, which are added up in order: whatever the cores, the sum is the same."""

KEPT_SHARE = 4
"""Standardised frames are kept where they take no more than one in so many bytes of the memory that is free."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameJob:
    """One head to train.

    Attributes
    ----------
    excerpts : Excerpts
        What it learns from, every sample of it.
    padded : bool
        Whether a batch is padded to its longest sample with frames of zeros, and the loss a mean over these as well, as
        in X-ARES; else it is a mean over the frames that there are.
    score : callable or None
        Validation score of a head, which selects an epoch, and what decides between equals (see
        `featstore.probe.minibatch`); higher is better. Without one the last epoch is taken.
    rng : numpy Generator
        Initial weights, then the order of each epoch.
    """

    excerpts: Excerpts
    padded: bool
    score: Callable[[Trained], tuple[float, float]] | None
    rng: np.random.Generator
    learning_rate: float


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
    job: FrameJob,
    *,
    crew: Crew,
    loss: Loss,
    batch_size: int,
    epochs: int,
    rates: Sequence[float],
    fresh: Callable[[], np.random.Generator],
) -> Trained:
    """Train a head by the rule of `featstore.probe.minibatch`; without validation for ``epochs`` at the job's rate.

    Parameters
    ----------
    fresh : callable
        Makes the generator of the order of epochs, for each start anew.
    """

    def start() -> FrameTrainee:
        return FrameTrainee(features, replace(job, rng=fresh()), crew=crew, loss=loss, batch_size=batch_size)

    if job.score is None:
        trainee = start()
        for _ in range(epochs):
            trainee.epoch(job.learning_rate)
        _check_finite(trainee.head.bias)
        return replace(trainee.head, epoch=epochs, fit=unselected(epochs, job.learning_rate))
    found = train_to_plateau(start, rates=rates)
    return replace(found.trainee.head, epoch=found.epoch, history=found.history, fit=found.fit)


def train_frame_heads(
    features: FrameFeatures, jobs: Sequence[FrameJob], *, crew: Crew, loss: Loss, epochs: int, batch_size: int
) -> tuple[Trained, ...]:
    """Train every job's head, one after another, each by the whole crew.

    Adam with the rate of `featstore.probe.training.cosine_rate`; every epoch in a new order, its last batch as small as
    it comes; the first of the best epochs by validation score wins. A job gives the same head whatever jobs stand
    beside it.

    Raises
    ------
    DataError
        A head came to numbers that are not finite: so were its frames.
    """
    with torch.no_grad():
        return tuple(
            _Training(features, job, crew=crew, loss=loss, epochs=epochs, batch_size=batch_size).run() for job in jobs
        )


Normalise = Callable[[Tensor], Tensor]
"""From rows float32 (n, dim), which may be overwritten, to what a head takes."""


def layer_normalised(inputs: Tensor) -> Tensor:
    """Rows as LayerNorm makes them before its affine."""
    return torch.nn.functional.layer_norm(inputs, inputs.shape[1:], eps=LAYER_NORM_EPS)


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
    _check_finite(logits)
    return Rows(logits=logits.numpy().T, padding=head.bias.numpy())


def _check_finite(made_of_frames: Tensor) -> None:
    if not math.isfinite(float(made_of_frames.sum())):
        raise DataError(
            "some frames are not finite: `featstore verify --repair` drops damaged parts, extracting makes them again"
        )


class _Share:
    """What one share of a batch adds up: M (1, classes, dim) and g (1, classes) of `featstore.probe.linear`."""

    def __init__(self, *, n_classes: int, dim: int) -> None:
        self.scratch = Scratch()
        self.moments = torch.zeros(1, n_classes, dim)
        self.total = torch.zeros(1, n_classes)


class _Training:
    """One job at work, as X-ARES has it."""

    def __init__(
        self, features: FrameFeatures, job: FrameJob, *, crew: Crew, loss: Loss, epochs: int, batch_size: int
    ) -> None:
        self._job, self._epochs, self._batch_size = job, epochs, batch_size
        samples = np.arange(len(job.excerpts))
        as_job = Job(windows=samples, validation=None, rng=job.rng, learning_rate=job.learning_rate)
        self._bank = Bank([as_job], n_classes=job.excerpts.n_classes, dim=features.dim, batch_size=batch_size)
        self._gradients = _Gradients(features, job, crew=crew, loss=loss)

    def run(self) -> Trained:
        best, history = self._head(epoch=0), []
        for epoch in range(self._epochs):
            order = self._job.rng.permutation(len(self._job.excerpts))
            for at, start in enumerate(range(0, len(order), self._batch_size)):
                weight, bias = self._bank.folded(slice(None))
                batch = order[start : start + self._batch_size].tolist()
                self._bank.take(*self._gradients.of(batch, weight=weight, bias=bias))
                self._bank.step(at=at, epoch=epoch, epochs=self._epochs)
            head = self._head(epoch=epoch + 1)
            _check_finite(head.bias)
            if self._job.score is None:
                best = head
                continue
            history.append(self._job.score(head)[0])
            if history[-1] > max(history[:-1], default=-np.inf):
                best = head
        return Trained(weight=best.weight, bias=best.bias, epoch=best.epoch, history=tuple(history))

    def _head(self, *, epoch: int) -> Trained:
        weight, bias = self._bank.folded(slice(None))
        return Trained(weight=weight[0], bias=bias[0], epoch=epoch, history=())


class FrameTrainee:
    """A linear layer on standardised frames, by AdamW: see `featstore.probe.minibatch.Trainee`.

    The loss is convex in the layer, which starts at zero.
    """

    def __init__(self, features: FrameFeatures, job: FrameJob, *, crew: Crew, loss: Loss, batch_size: int) -> None:
        self._job, self._batch_size = job, batch_size
        n_classes = job.excerpts.n_classes
        self._learned = [torch.zeros(1, n_classes, features.dim), torch.zeros(1, n_classes)]
        self._first = [torch.zeros_like(each) for each in self._learned]
        self._second = [torch.zeros_like(each) for each in self._learned]
        self._taken = [torch.zeros(()) for _ in self._learned]
        self._gradients = _Gradients(features, job, crew=crew, loss=loss)

    @property
    def head(self) -> Trained:
        """The layer as it is."""
        weight, bias = self.state()
        return Trained(weight=weight[0], bias=bias[0], epoch=0, history=())

    def epoch(self, learning_rate: float) -> float:
        """Take every batch once."""
        order = self._job.rng.permutation(len(self._job.excerpts))
        starts = range(0, len(order), self._batch_size)
        total = [torch.zeros_like(each) for each in self._learned]
        weight, bias = self._learned
        with torch.no_grad():
            for start in starts:
                batch = order[start : start + self._batch_size].tolist()
                gradients = self._gradients.of(batch, weight=weight, bias=bias)
                torch._foreach_add_(total, list(gradients))
                weight.mul_(1.0 - learning_rate * WEIGHT_DECAY)
                adam_step(
                    self._learned,
                    gradients,
                    first_moments=self._first,
                    second_moments=self._second,
                    taken=self._taken,
                    learning_rate=learning_rate,
                )
        return math.sqrt(sum(float(each.square().sum()) for each in total)) / len(starts)

    def score(self) -> Score:
        """Validation score; 0 without validation."""
        if not all(math.isfinite(float(each.sum())) for each in self._learned):
            return DIVERGED
        return (0.0, 0.0) if self._job.score is None else self._job.score(self.head)

    def state(self) -> list[Tensor]:
        """Weight and bias."""
        return [each.clone() for each in self._learned]

    def restore(self, state: list[Tensor]) -> None:
        """Load them."""
        for each, value in zip(self._learned, state, strict=True):
            each.copy_(value)


class _Gradients:
    """Gradients of batches, share by share: M (1, classes, dim) and g (1, classes) of `featstore.probe.linear`."""

    def __init__(self, features: FrameFeatures, job: FrameJob, *, crew: Crew, loss: Loss) -> None:
        self._features, self._job, self._crew, self._loss = features, job, crew, loss
        self._shares = [_Share(n_classes=job.excerpts.n_classes, dim=features.dim) for _ in range(SHARES)]

    def of(self, batch: Sequence[int], *, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients at a weight (1, classes, dim) and bias (1, classes), until the next batch."""
        excerpts = self._job.excerpts
        n_rows = excerpts.n_rows[batch]
        longest = int(n_rows.max())
        n_counted = len(batch) * longest if self._job.padded else int(n_rows.sum())
        chunks = list(spans_of(excerpts, batch, max_rows=CHUNK_ROWS))
        bounds = [len(chunks) * number // SHARES for number in range(SHARES + 1)]

        def add_up(number: int) -> None:
            self._add_up(
                self._shares[number],
                chunks[bounds[number] : bounds[number + 1]],
                weight=weight[0],
                bias=bias,
                of_a_row=1.0 / n_counted,
            )

        self._crew.map(add_up, range(SHARES))
        moments, total = self._shares[0].moments, self._shares[0].total
        for share in self._shares[1:]:
            moments += share.moments
            total += share.total
        n_padded = n_counted - int(n_rows.sum())
        if n_padded:
            total += self._of_padding(batch, bias, longest=longest, share=n_padded / n_counted)
        return moments, total

    def _add_up(
        self, share: _Share, chunks: Sequence[Sequence[Span]], *, weight: Tensor, bias: Tensor, of_a_row: float
    ) -> None:
        """Gradients of some chunks, into their share."""
        excerpts = self._job.excerpts
        counts = torch.full((1, 1, 1), of_a_row)
        share.moments.zero_()
        share.total.zero_()
        for spans in chunks:
            pieces = self._features.pieces(spans, share.scratch)
            bounds = np.cumsum([0, *map(len, pieces)]).tolist()
            # Classes by rows: with few classes, a third faster than rows by classes.
            logits = torch.empty(len(bias[0]), bounds[-1])
            for inputs, (start, stop) in zip(pieces, pairwise(bounds), strict=True):
                torch.addmm(bias.T, weight, inputs.T, out=logits[:, start:stop])
            targets = [excerpts.targets(span.sample, start=span.row, stop=span.row + len(span)) for span in spans]
            known = torch.from_numpy(np.concatenate(targets)).to(torch.float32)
            gradient = self._loss.gradient(logits.T.unsqueeze(0), known.unsqueeze(0), counts)[0].T
            for inputs, (start, stop) in zip(pieces, pairwise(bounds), strict=True):
                share.moments[0].addmm_(gradient[:, start:stop], inputs)
            share.total += gradient.sum(1)

    def _of_padding(self, batch: Sequence[int], bias: Tensor, *, longest: int, share: float) -> Tensor:
        """Gradient by the logits of all padded frames.

        LayerNorm makes zeros of zeros, so each has the logits of the bias, and nothing for the weights. The gradient of
        the loss is linear in the target: one frame with their mean target stands for all.
        """
        excerpts = self._job.excerpts
        sounds = np.zeros(excerpts.n_classes)
        n_padded = 0
        for sample in batch:
            n_rows = int(excerpts.n_rows[sample])
            sounds += excerpts.targets(sample, start=n_rows, stop=longest).sum(axis=0)
            n_padded += longest - n_rows
        known = torch.from_numpy((sounds / n_padded).astype(np.float32)).view(1, 1, -1)
        return self._loss.gradient(bias.clone()[None], known, torch.full((1, 1, 1), share))[0]

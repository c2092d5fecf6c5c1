"""Runs an encoder over batches: forward pass, trimming of padding frames, pooling, checks of what came out.

On a GPU a batch is begun and its result asked for later: audio goes up from pinned memory on a stream of its own while
the batch before it is encoded, and what is kept of it comes down in one transfer. So the device always has work, as
long as the next batch is begun before the last result is asked for.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.encoders.batch_outputs import Encoded, Layer, Made, host_memory, joined, to_host
from featstore.encoders.contract import EncoderOutput
from featstore.encoders.devices import float32_products, move
from featstore.encoders.encoder import Encoder, told_failure
from featstore.encoders.memory import is_out_of_memory
from featstore.encoders.pooling import Output, pooled
from featstore.errors import EncoderContractError, EncoderError
from featstore.records import Recipe

__all__ = ["EncoderRun", "NonFiniteRow", "real_frames"]

_PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_Encode = Callable[[NDArray[np.float32], NDArray[np.int64]], Callable[[], tuple[Encoded, ...]]]


class EncoderRun:
    """An encoder on its device.

    Parameters
    ----------
    encoder : Encoder
    recipe : Recipe
        Of any output. Its padding decides whether padding frames are trimmed (all but ``"xares"``), its precision the
        arithmetic.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    keep_frames : bool
        Whether frames come back beside the utterance vectors, once for each layer, with its mean.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, *, device: str, keep_frames: bool) -> None:
        self._encoder = encoder
        self._recipe = recipe
        self._device = torch.device(device)
        self._keep_frames = keep_frames
        self._frame_dtype = {"float16": torch.float16, "float32": torch.float32}[recipe.frame_dtype]
        self._trims = recipe.padding != "xares"
        self._most_samples: int | None = None  # what the device was seen to hold, once it ran out of memory
        self._uploads: torch.cuda.Stream | None = None
        self._busy_seconds = 0.0
        self.after_batch: Callable[[], None] = _nothing
        try:
            if self._device.type == "cuda":
                self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            move(encoder.module, self._device)
        except (RuntimeError, AssertionError) as error:
            raise EncoderError(
                f"{encoder.name} cannot run on {device}: {' '.join(str(error).split())[:200]}"
            ) from error

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._device)

    @property
    def batches_ahead(self) -> int:
        """Batches to begin before the result of the first is asked for, so that the device never waits."""
        return 1 if self._uploads is not None else 0

    @property
    def busy_seconds(self) -> float:
        """Time that the device has spent on batches whose results were asked for."""
        return self._busy_seconds

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """PyTorch's settings while shards are encoded: threads, the GPU, and whether products may be rounded to TF32.

        An encoder that makes a tensor on ``"cuda"`` means the GPU that it is on, whichever that is.

        A light encoder is many small operations, and on a CPU its second thread waits in each of them for a core that
        decodes: measured on 2 cores, one thread is 1.6 to 6 times as fast. Large matrix products want every core.
        """
        threads = torch.get_num_threads()
        if self._device.type == "cpu" and self._encoder.is_light:
            torch.set_num_threads(1)
        try:
            with (
                torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext(),
                float32_products(self._recipe.precision),
                warnings.catch_warnings(),
            ):
                # of a compiled encoder: how transformers caches what it asks of the system, which is no fault
                warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
                yield
        finally:
            torch.set_num_threads(threads)

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Zeros for a batch to be laid out in: on a GPU in pinned memory, which uploads do not wait for."""
        if self._uploads is None:
            return np.zeros(shape, np.float32)
        return host_memory(4 * math.prod(shape)).zero_().numpy().view(np.float32).reshape(shape)

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        """Begin one batch. The callable waits for it, and returns or raises what `__call__` would."""
        try:
            with self._device_failures_told(audio):
                return self._begin(audio, n_samples)
        finally:
            self.after_batch()

    def _begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        if self._uploads is not None:
            if self._is_too_large(audio):
                return self._in_halves(audio, n_samples, encode=self._begin)
            launched = self._launch_if_it_fits(audio, n_samples)
            if launched is not None:
                return launched
            torch.cuda.synchronize(self._device)  # the batch before this one leaves; then this one is alone
            torch.cuda.empty_cache()  # what PyTorch keeps for later is of no use to cuBLAS and the like
        began = time.perf_counter()
        encoded = self(audio, n_samples)
        self._busy_seconds += time.perf_counter() - began
        return lambda: encoded

    def _launch_if_it_fits(
        self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]
    ) -> Callable[[], tuple[Encoded, ...]] | None:
        """None where it does not. By then the exception is gone, and with it all that its traceback held there."""
        try:
            return self._launch(audio, n_samples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def __call__(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        """Encode one batch: what it came to for each of the encoder's outputs.

        Parameters
        ----------
        audio : float32 (batch, samples)
            Windows padded with zeros to one length.
        n_samples : int64 (batch,)
            Samples of each row that are real.

        Raises
        ------
        EncoderContractError
            The output breaks the contract. `NonFiniteRow` where it is one window's fault.
        EncoderError
            The forward pass fails. Where the device runs out of memory, halves of the batch are tried first, and from
            then on no batch larger than them.
        """
        if self._is_too_large(audio):
            return self._in_halves(audio, n_samples, encode=self._later)()
        try:
            with self._device_failures_told(audio):
                return self._encode(audio, n_samples)
        except (RuntimeError, MemoryError) as error:  # memory ran out: anything else has been told as it is
            if len(audio) == 1:
                raise EncoderError(
                    f"{self._encoder.name} runs out of memory on {self._device} with one window of {audio.shape[1]:,} "
                    f"samples: cut long clips with --max-window-seconds, or use a lower --precision{_in_words(error)}"
                ) from error
        self._most_samples = audio.size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._in_halves(audio, n_samples, encode=self._later)()

    def _is_too_large(self, audio: NDArray[np.float32]) -> bool:
        return self._most_samples is not None and audio.size > self._most_samples and len(audio) > 1

    def _later(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        return lambda: self(audio, n_samples)

    def _in_halves(
        self, audio: NDArray[np.float32], n_samples: NDArray[np.int64], *, encode: _Encode
    ) -> Callable[[], tuple[Encoded, ...]]:
        middle = len(audio) // 2
        upper = encode(audio[:middle], n_samples[:middle])
        with _rows_from(middle):
            lower = encode(audio[middle:], n_samples[middle:])

        def result() -> tuple[Encoded, ...]:
            first = upper()
            with _rows_from(middle):
                second = lower()
            return tuple(joined(one, other) for one, other in zip(first, second, strict=True))

        return result

    def _encode(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        """Encode one batch to its end."""
        layers = self._layers(torch.from_numpy(audio).to(self._device), n_samples)
        with torch.inference_mode():
            made = [self._made(output, layers[output.layer]) for output in self._encoder.outputs]
            for each in made:
                self._check_finite(each)
        return tuple(each.encoded(name=self._encoder.name) for each in made)

    def _launch(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        """Begin one batch on a GPU, where nothing may wait for the device before the result is asked for."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        waves = self._upload(audio)
        began.record(torch.cuda.current_stream(self._device))
        layers = self._layers(waves, n_samples)
        with torch.inference_mode():
            made = [self._made(output, layers[output.layer]) for output in self._encoder.outputs]
            finite = torch.stack([each.is_finite() for each in made])
            tensors = [tensor for each in made for tensor in each.to_transfer()]
            ended.record(torch.cuda.current_stream(self._device))
            copy = to_host([finite, *tensors])
        receipts = [each.receipt(name=self._encoder.name) for each in made]

        def result() -> tuple[Encoded, ...]:
            try:
                with self._device_failures_told(audio):
                    all_finite, *arrays = copy.arrays()
            except (RuntimeError, MemoryError):  # memory ran out, which the device says when it is waited for
                is_of_use = False
            else:
                self._busy_seconds += began.elapsed_time(ended) / 1e3
                is_of_use = bool(all_finite.all())
            if not is_of_use:
                return self(audio, n_samples)  # once more, step by step: it finds the culprit, or what fits
            return tuple(receipt.encoded(arrays) for receipt in receipts)

        return result

    @contextmanager
    def _device_failures_told(self, audio: NDArray[np.float32]) -> Iterator[None]:
        """One line of what went wrong on a GPU, which works behind the host: whichever call comes next raises it.

        That memory ran out is passed on as it is, for half a batch may fit.
        """
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(told_failure(self._encoder.name, audio.shape, error)) from error

    def _upload(self, audio: NDArray[np.float32]) -> Tensor:
        with torch.cuda.stream(self._uploads):
            waves = torch.from_numpy(audio).to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._uploads)  # type: ignore[arg-type]
        waves.record_stream(stream)
        return waves

    def _on_device(self, numbers: NDArray[np.int64]) -> Tensor:
        """A few numbers, for which the host does not wait."""
        tensor = torch.from_numpy(numbers)
        return tensor if self._uploads is None else tensor.pin_memory().to(self._device, non_blocking=True)

    def _layers(self, waves: Tensor, n_samples: NDArray[np.int64]) -> dict[int | None, Layer]:
        with torch.inference_mode():
            with self._autocast():
                found = self._forward(waves, self._on_device(n_samples) if self._trims else None)
            return {
                layer: self._layer(layer, output, n_samples)
                for layer, output in zip(self._encoder.layers, found, strict=True)
            }

    def _forward(self, waves: Tensor, lengths: Tensor | None) -> tuple[EncoderOutput, ...]:
        try:
            return self._encoder.forward(waves, lengths)
        except EncoderContractError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(told_failure(self._encoder.name, waves.shape, error)) from error

    def _layer(self, layer: int | None, output: EncoderOutput, n_samples: NDArray[np.int64]) -> Layer:
        available = output.frames.shape[1]
        kept: NDArray[np.int64] | Tensor | None = output.n_frames if self._trims else None
        if self._trims and kept is None:
            seconds = n_samples / self._recipe.sample_rate_hz
            kept = real_frames(seconds, hop_seconds=self._encoder.hop_seconds_of(layer), available=available)
        if isinstance(kept, Tensor):
            kept = kept.numpy() if kept.device.type == "cpu" else kept.to(self._device)
        if isinstance(kept, np.ndarray) and (kept == available).all():
            kept = None
        return Layer(
            frames=self._brought(output.frames),
            own=None if output.utterance is None else self._brought(output.utterance),
            kept=kept,
            kept_there=self._on_device(kept) if isinstance(kept, np.ndarray) else kept,
        )

    def _brought(self, values: Tensor) -> Tensor:
        """As float32 on the device: an encoder may hand out what it made on the CPU."""
        return values.to(self._device, torch.float32)

    def _made(self, output: Output, layer: Layer) -> Made:
        own = layer.own if output.pool == "mean" else None
        vectors = own if own is not None else pooled(layer.frames, layer.kept_there, output.pool)
        keep_frames = self._keep_frames and output.pool == "mean"
        return Made(layer=layer, vectors=vectors, frames=layer.frames.to(self._frame_dtype) if keep_frames else None)

    def _autocast(self) -> torch.autocast:
        dtype = _PRECISIONS[self._recipe.precision]
        lower = dtype is not torch.float32
        return torch.autocast(self._device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)

    def _check_finite(self, made: Made) -> None:
        if bool(made.is_finite()):
            return
        for row, count in enumerate(made.layer.counts().tolist()):
            frames = made.layer.frames[row, :count]
            if not (torch.isfinite(frames).all() and torch.isfinite(made.vectors[row]).all()):
                raise NonFiniteRow(row, f"the encoder returned NaN or infinity{self._beyond_its_range()}")
            if made.frames is not None and not torch.isfinite(made.frames[row, :count]).all():
                largest = float(frames.abs().max())
                raise NonFiniteRow(
                    row, f"a frame value of {largest:.3g} does not fit {self._recipe.frame_dtype}: use --dtype float32"
                )

    def _beyond_its_range(self) -> str:
        if self._recipe.precision != "float16":
            return ""
        return ", and float16 ends at 65,504: use --precision bfloat16 or float32"


class NonFiniteRow(EncoderContractError):
    """One row of a batch came out as no number. ``row`` is its place in the batch."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        super().__init__(reason)


@contextmanager
def _rows_from(first: int) -> Iterator[None]:
    """Let a row that is no number be named by its place in the whole batch."""
    try:
        yield
    except NonFiniteRow as problem:
        raise NonFiniteRow(first + problem.row, str(problem)) from problem


def real_frames(seconds: NDArray[np.float64], *, hop_seconds: float, available: int) -> NDArray[np.int64]:
    """Frames that are of the window and not of its padding, int64: ``max(1, min(available, round(seconds / hop)))``.

    >>> real_frames(np.array([0.001, 1.0, 99.0]), hop_seconds=0.04, available=50).tolist()
    [1, 25, 50]
    """
    counts = np.rint(np.asarray(seconds, np.float64) / hop_seconds).astype(np.int64)
    return np.clip(counts, 1, available)


def _in_words(error: BaseException) -> str:
    """What a library said, in brackets; PyTorch's own figures of a device say no more than that it is full."""
    text = " ".join(str(error).split())
    return "" if isinstance(error, torch.OutOfMemoryError) or not text else f" ({text[:200]})"


def _nothing() -> None:
    """What follows a batch that nobody watches."""

"""Runs an encoder over batches: forward pass, trimming of padding frames, pooling, and checks of the output.

On a GPU, a batch is started and its result requested later. Audio is uploaded from pinned memory on a separate stream
while the previous batch is encoded, and the outputs are downloaded in one transfer. The device is always busy if the
next batch is started before the result of the last one is requested.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featstore.encoders.batch_outputs import DeviceOutput, Encoded, Layer, concatenated, host_memory, to_host
from featstore.encoders.contract import EncoderOutput
from featstore.encoders.devices import float32_products, move
from featstore.encoders.encoder import Encoder, failure_line
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
_TEXTS_PER_BATCH = 64


_Encode = Callable[[NDArray[np.float32], NDArray[np.int64]], Callable[[], tuple[Encoded, ...]]]


class EncoderRun:
    """An encoder on its device.

    Parameters
    ----------
    encoder : Encoder
    recipe : Recipe
        Recipe of any output. Padding frames are trimmed unless its padding is ``"xares"``; its precision is used.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    keep_frames : bool
        Whether frames are returned in addition to utterance vectors, once for each layer, with its mean.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, *, device: str, keep_frames: bool) -> None:
        self._encoder = encoder
        self._recipe = recipe
        self._device = torch.device(device)
        self._keep_frames = keep_frames
        self._frame_dtype = {"float16": torch.float16, "float32": torch.float32}[recipe.frame_dtype]
        self._trims = recipe.padding != "xares"
        self._most_samples: int | None = None  # limit of a batch, set after the device ran out of memory
        self._uploads: torch.cuda.Stream | None = None
        self._busy_seconds = 0.0
        self.after_batch: Callable[[], object] = lambda: None
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
        """Name of the device."""
        return str(self._device)

    @property
    def batches_ahead(self) -> int:
        """Number of batches to start before the first result is requested, so that the device never waits."""
        return 1 if self._uploads is not None else 0

    @property
    def busy_seconds(self) -> float:
        """Time that the device spent on batches whose results were requested."""
        return self._busy_seconds

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Context with PyTorch's settings for encoding: threads, current GPU, and TF32.

        A tensor that the encoder creates on ``"cuda"`` is on the encoder's GPU.

        A light encoder consists of many small operations. On a CPU, its second thread waits in each of them for a core
        that decodes: on 2 cores, one thread is 1.6 to 6 times as fast. Large matrix products use every core.
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
                # emitted by compiled encoders about caches inside transformers; harmless
                warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
                yield
        finally:
            torch.set_num_threads(threads)

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Allocate a zero batch; on a GPU in pinned memory, for asynchronous uploads."""
        if self._uploads is None:
            return np.zeros(shape, np.float32)
        return host_memory(4 * math.prod(shape)).zero_().numpy().view(np.float32).reshape(shape)

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        """Start one batch. The returned callable waits for it, and returns or raises what `__call__` would."""
        try:
            with self._device_failures_reported(audio):
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
            torch.cuda.synchronize(self._device)  # the previous batch completes; then this one has the device
            torch.cuda.empty_cache()  # libraries such as cuBLAS cannot use memory that PyTorch caches
        began = time.perf_counter()
        encoded = self(audio, n_samples)
        self._busy_seconds += time.perf_counter() - began
        return lambda: encoded

    def _launch_if_it_fits(
        self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]
    ) -> Callable[[], tuple[Encoded, ...]] | None:
        """Return None if memory runs out, after the exception and the tensors in its traceback are freed."""
        try:
            return self._launch(audio, n_samples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def __call__(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        """Encode one batch, and return it for each of the encoder's outputs.

        Parameters
        ----------
        audio : float32 (batch, samples)
            Windows padded with zeros to one length.
        n_samples : int64 (batch,)
            Number of samples of each row without padding.

        Raises
        ------
        EncoderContractError
            The output breaks the contract; `NonFiniteRow` if one window causes it.
        EncoderError
            The forward pass fails. If the device runs out of memory, the batch is split in halves, and later batches
            are limited to the size that fits.
        """
        if self._is_too_large(audio):
            return self._in_halves(audio, n_samples, encode=self._deferred)()
        try:
            with self._device_failures_reported(audio):
                return self._encode(audio, n_samples)
        except (RuntimeError, MemoryError) as error:  # out of memory: other errors are EncoderError
            if len(audio) == 1:
                raise EncoderError(
                    f"{self._encoder.name} runs out of memory on {self._device} with one window of {audio.shape[1]:,} "
                    f"samples: cut long clips with --max-window-seconds, or use a lower --precision{_reason(error)}"
                ) from error
        self._most_samples = audio.size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._in_halves(audio, n_samples, encode=self._deferred)()

    def _is_too_large(self, audio: NDArray[np.float32]) -> bool:
        return self._most_samples is not None and audio.size > self._most_samples and len(audio) > 1

    def _deferred(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
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
            return tuple(concatenated(one, other) for one, other in zip(first, second, strict=True))

        return result

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts in batches by the text tower, float32 (texts, dim). Raises as `Encoder.encode_text` does."""
        vectors = np.empty((len(texts), self._encoder.facts.dim), np.float32)
        for start in range(0, len(texts), _TEXTS_PER_BATCH):
            batch = texts[start : start + _TEXTS_PER_BATCH]
            with torch.inference_mode(), self._autocast():
                found = self._encoder.encode_text(batch)
            vectors[start : start + len(batch)] = found.float().cpu().numpy()
        return vectors

    def _encode(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        """Encode one batch synchronously."""
        layers = self._layers(torch.from_numpy(audio).to(self._device), n_samples)
        with torch.inference_mode():
            outputs = [self._device_output(output, layers[output.layer]) for output in self._encoder.outputs]
            for each in outputs:
                self._check_finite(each)
        return tuple(each.encoded(name=self._encoder.name) for each in outputs)

    def _launch(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        """Start one batch on a GPU without waiting for the device."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        waves = self._upload(audio)
        began.record(torch.cuda.current_stream(self._device))
        layers = self._layers(waves, n_samples)
        with torch.inference_mode():
            outputs = [self._device_output(output, layers[output.layer]) for output in self._encoder.outputs]
            finite = torch.stack([each.is_finite() for each in outputs])
            tensors = [tensor for each in outputs for tensor in each.to_transfer()]
            ended.record(torch.cuda.current_stream(self._device))
            copy = to_host([finite, *tensors])
        layouts = [each.layout(name=self._encoder.name) for each in outputs]

        def result() -> tuple[Encoded, ...]:
            try:
                with self._device_failures_reported(audio):
                    all_finite, *arrays = copy.arrays()
            except (RuntimeError, MemoryError):  # out of memory, which the device reports on synchronisation
                is_valid = False
            else:
                self._busy_seconds += began.elapsed_time(ended) / 1e3
                is_valid = bool(all_finite.all())
            if not is_valid:
                return self(audio, n_samples)  # synchronously: finds the window at fault, or the size that fits
            return tuple(layout.encoded(arrays) for layout in layouts)

        return result

    @contextmanager
    def _device_failures_reported(self, audio: NDArray[np.float32]) -> Iterator[None]:
        """Report a device failure in one line. A GPU is asynchronous: any later call can raise the error.

        Out-of-memory errors are passed through, since half a batch may fit.
        """
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(failure_line(self._encoder.name, audio.shape, error)) from error

    def _upload(self, audio: NDArray[np.float32]) -> Tensor:
        with torch.cuda.stream(self._uploads):
            waves = torch.from_numpy(audio).to(self._device, non_blocking=True)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._uploads)  # type: ignore[arg-type]
        waves.record_stream(stream)
        return waves

    def _on_device(self, numbers: NDArray[np.int64]) -> Tensor:
        """Copy small arrays to the device without waiting."""
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
            raise EncoderError(failure_line(self._encoder.name, waves.shape, error)) from error

    def _layer(self, layer: int | None, output: EncoderOutput, n_samples: NDArray[np.int64]) -> Layer:
        available = output.frames.shape[1]
        n_frames: NDArray[np.int64] | Tensor | None = output.n_frames if self._trims else None
        if self._trims and n_frames is None:
            seconds = n_samples / self._recipe.sample_rate_hz
            n_frames = real_frames(seconds, hop_seconds=self._encoder.facts_of(layer).hop_seconds, available=available)
        if isinstance(n_frames, Tensor):
            n_frames = n_frames.numpy() if n_frames.device.type == "cpu" else n_frames.to(self._device)
        if isinstance(n_frames, np.ndarray) and (n_frames == available).all():
            n_frames = None
        return Layer(
            frames=self._as_float32(output.frames),
            utterance=None if output.utterance is None else self._as_float32(output.utterance),
            n_frames=n_frames,
            n_frames_on_device=self._on_device(n_frames) if isinstance(n_frames, np.ndarray) else n_frames,
        )

    def _as_float32(self, values: Tensor) -> Tensor:
        """Convert to float32 on the device, since an encoder can return tensors on the CPU."""
        return values.to(self._device, torch.float32)

    def _device_output(self, output: Output, layer: Layer) -> DeviceOutput:
        utterance = layer.utterance if output.pool == "mean" else None
        vectors = utterance if utterance is not None else pooled(layer.frames, layer.n_frames_on_device, output.pool)
        keep_frames = self._keep_frames and output.pool == "mean"
        return DeviceOutput(
            layer=layer, vectors=vectors, frames=layer.frames.to(self._frame_dtype) if keep_frames else None
        )

    def _autocast(self) -> torch.autocast:
        dtype = _PRECISIONS[self._recipe.precision]
        lower = dtype is not torch.float32
        return torch.autocast(self._device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)

    def _check_finite(self, output: DeviceOutput) -> None:
        if bool(output.is_finite()):
            return
        for row, count in enumerate(output.layer.counts().tolist()):
            frames = output.layer.frames[row, :count]
            if not (torch.isfinite(frames).all() and torch.isfinite(output.vectors[row]).all()):
                raise NonFiniteRow(row, f"the encoder returned NaN or infinity{self._float16_hint()}")
            if output.frames is not None and not torch.isfinite(output.frames[row, :count]).all():
                largest = float(frames.abs().max())
                raise NonFiniteRow(
                    row, f"a frame value of {largest:.3g} does not fit {self._recipe.frame_dtype}: use --dtype float32"
                )

    def _float16_hint(self) -> str:
        if self._recipe.precision != "float16":
            return ""
        return ", and float16 ends at 65,504: use --precision bfloat16 or float32"


class NonFiniteRow(EncoderContractError):
    """A row of a batch has NaN or infinite outputs; ``row`` is its index in the batch."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        super().__init__(reason)


@contextmanager
def _rows_from(first: int) -> Iterator[None]:
    """Add `first` to the row of a `NonFiniteRow`, for the second half of a batch."""
    try:
        yield
    except NonFiniteRow as problem:
        raise NonFiniteRow(first + problem.row, str(problem)) from problem


def real_frames(seconds: NDArray[np.float64], *, hop_seconds: float, available: int) -> NDArray[np.int64]:
    """Return the number of frames without padding, int64: ``max(1, min(available, round(seconds / hop)))``.

    >>> real_frames(np.array([0.001, 1.0, 99.0]), hop_seconds=0.04, available=50).tolist()
    [1, 25, 50]
    """
    counts = np.rint(np.asarray(seconds, np.float64) / hop_seconds).astype(np.int64)
    return np.clip(counts, 1, available)


def _reason(error: BaseException) -> str:
    """Return a library's message in brackets; empty for PyTorch's own error, which adds no information."""
    text = " ".join(str(error).split())
    return "" if isinstance(error, torch.OutOfMemoryError) or not text else f" ({text[:200]})"

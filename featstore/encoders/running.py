"""Runs an encoder over batches: forward pass, trimming of padding frames, pooling, checks of what came out.

On a GPU a batch is begun and its result asked for later: audio goes up from pinned memory on a stream of its own while
the batch before it is encoded, and what is kept of it comes down in one transfer. So the device always has work, as
long as the next batch is begun before the last result is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.encoders.contract import ContractFacts, EncoderOutput, check_output, contract_facts
from featstore.encoders.made import Encoded, Layer, Made, joined
from featstore.encoders.outputs import Output, pooled
from featstore.encoders.transfer import to_host
from featstore.errors import EncoderContractError, EncoderError, UsageError
from featstore.records import Recipe

__all__ = ["Encoded", "Encoder", "EncoderRun", "pick_device", "real_frames"]

_PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A loaded encoder: the module, what it declares, what it is, and what is kept of each forward pass."""

    module: nn.Module
    name: str
    spec: str
    identity: Mapping[str, Any]
    outputs: tuple[Output, ...] = (Output(),)
    facts: ContractFacts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", contract_facts(self.module))
        self._check_outputs()
        self._check_on_noise()

    def recipe(
        self,
        *,
        padding: str,
        precision: str,
        frame_dtype: str,
        resampler: str,
        format_version: int,
        max_window_seconds: float | None = None,
        output: Output | None = None,
    ) -> Recipe:
        """Everything that decides the numbers this encoder will make of one output, the first, under these settings."""
        output = output or self.outputs[0]
        layer = {} if output.layer is None else {"layer": output.layer}
        return Recipe(
            encoder=f"{self.name}{output.suffix}",
            encoder_identity={**self.identity, **layer},
            sample_rate_hz=self.facts.sample_rate_hz,
            dim=self.dim_of(output.layer),
            hop_seconds=self.hop_seconds_of(output.layer),
            padding=padding,
            precision=precision,
            frame_dtype=frame_dtype,
            resampler=resampler,
            format_version=format_version,
            pool=output.pool,
            max_window_seconds=self._cut_by_request(max_window_seconds),
        )

    def spec_of(self, output: Output) -> str:
        """How one output is named on the command line."""
        base = self.spec.partition("#layer=")[0]
        return self.spec if output.layer is None else f"{base}#layer={output.layer}"

    def longest_window_seconds(self, asked: float | None) -> float | None:
        """Audio that a window may hold: the least of what the encoder takes and what is asked for."""
        limits = [limit for limit in (self.facts.input_seconds, asked) if limit is not None]
        return min(limits, default=None)

    def _cut_by_request(self, asked: float | None) -> float | None:
        """What is asked for, where it cuts more than the encoder's own limit, which is the same for every recipe."""
        own = self.facts.input_seconds
        return asked if asked is not None and (own is None or asked < own) else None

    def dim_of(self, layer: int | None) -> int:
        """Width of a layer's frames."""
        return self.facts.dim if layer is None or self.facts.layers is None else self.facts.layers.dim

    def hop_seconds_of(self, layer: int | None) -> float:
        """Time from one frame of a layer to the next."""
        return self.facts.hop_seconds if layer is None or self.facts.layers is None else self.facts.layers.hop_seconds

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Layers of its outputs, each once."""
        return tuple(dict.fromkeys(output.layer for output in self.outputs))

    @property
    def has_weights(self) -> bool:
        """Whether it has parameters, and so gains from a lower precision on a GPU."""
        return any(True for _ in self.module.parameters())

    def start(self, recipe: Recipe, *, device: str, keep_frames: bool) -> EncoderRun:
        """Move the encoder to a device, ready for batches under `recipe`."""
        return EncoderRun(self, recipe, device=device, keep_frames=keep_frames)

    def compile(self) -> None:
        """Compile the forward pass (``torch.compile``) for inputs of any length, once; the first batches are slow."""
        if self.module._compiled_call_impl is not None:
            return
        self.module.compile(dynamic=True)
        if self.facts.layers is not None:
            module: Any = self.module
            module.forward_layers = torch.compile(module.forward_layers, dynamic=True)

    def forward(self, waves: Tensor, lengths: Tensor | None) -> tuple[EncoderOutput, ...]:
        """One forward pass: a checked output for each of `layers`. `lengths` goes to an encoder that takes it."""
        given = {} if lengths is None or not self.facts.takes_lengths else {"lengths": lengths}
        if self.layers == (None,):
            found = (self.module(waves, **given),)
        else:
            found = tuple(self.module.forward_layers(waves, **given, layers=self.layers))  # type: ignore[operator]
            if len(found) != len(self.layers):
                raise EncoderContractError(
                    f"{self.name}.forward_layers must return an output for each of {len(self.layers)} layers: "
                    f"got {len(found)}"
                )
        return tuple(
            check_output(output, name=self.name, batch=len(waves), dim=self.dim_of(layer))
            for output, layer in zip(found, self.layers, strict=True)
        )

    def _check_outputs(self) -> None:
        chosen = [layer for layer in self.layers if layer is not None]
        if chosen and self.facts.layers is None:
            raise EncoderError(f"{self.name} has no layers to choose from: leave out --layers and #layer")
        for layer in chosen:
            most = self.facts.layers.count if self.facts.layers is not None else 0
            if not 0 <= layer <= most:
                raise EncoderError(f"{self.name} has layers 0 to {most} and last: got {layer}")

    def _check_on_noise(self) -> None:
        """One second of noise and one of silence, so that a broken encoder is found before any shard is read."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand((2, self.facts.sample_rate_hz), generator=generator) - 0.5
        noise[1] = 0.0
        try:
            with torch.inference_mode():
                outputs = self.forward(noise, None)
        except EncoderContractError:
            raise
        except Exception as error:
            raise EncoderContractError(f"{self.name}.forward failed on {_shown(noise)}: {_told(error)}") from error
        pools = {output.pool for output in self.outputs}
        if pools != {"mean"} and any(each.utterance is not None and each.frames.shape[1] == 1 for each in outputs):
            raise EncoderError(f"{self.name} gives one vector for a window, which leaves nothing to pool: --pool mean")
        for output in outputs:
            for row, what in enumerate(("noise", "silence")):
                vectors = output.frames[row]
                if output.utterance is not None:
                    vectors = torch.cat([vectors, output.utterance[row : row + 1]])
                if not torch.isfinite(vectors).all():
                    raise EncoderContractError(
                        f"{self.name}.forward must return finite numbers: NaN or infinity for {what}"
                    )


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
        if self._device.type == "cuda":
            self._uploads = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._busy_seconds = 0.0
        self.after_batch: Callable[[], None] = _nothing
        try:
            self._module = encoder.module.to(self._device)
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
        """PyTorch's settings while shards are encoded: threads, and whether products may be rounded to TF32.

        An encoder without weights is many small operations, and on a CPU its second thread waits in each of them for a
        core that decodes: measured on 2 cores, one thread is 4 to 6 times as fast. Matrix products want every core.
        """
        before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        if self._device.type == "cpu" and not self._encoder.has_weights:
            torch.set_num_threads(1)
        rounds = self._recipe.precision == "tf32"
        torch.set_float32_matmul_precision("high" if rounds else "highest")
        torch.backends.cudnn.allow_tf32 = rounds
        try:
            yield
        finally:
            torch.set_num_threads(before[0])
            torch.set_float32_matmul_precision(before[1])
            torch.backends.cudnn.allow_tf32 = before[2]

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Zeros for a batch to be laid out in: on a GPU in pinned memory, which uploads do not wait for."""
        if self._uploads is None:
            return np.zeros(shape, np.float32)
        return np.asarray(torch.zeros(shape, pin_memory=True).numpy())

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        """Begin one batch. The callable waits for it, and returns or raises what `__call__` would."""
        try:
            return self._begin(audio, n_samples)
        finally:
            self.after_batch()

    def _begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], tuple[Encoded, ...]]:
        if self._uploads is None or self._is_too_large(audio):
            began = time.perf_counter()
            encoded = self(audio, n_samples)
            self._busy_seconds += time.perf_counter() - began
            return lambda: encoded
        try:
            return self._launch(audio, n_samples)
        except torch.OutOfMemoryError:
            torch.cuda.synchronize(self._device)  # the batch before this one leaves; then this one is alone
            encoded = self(audio, n_samples)
            return lambda: encoded

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
            return self._in_halves(audio, n_samples)
        try:
            return self._encode(audio, n_samples)
        except torch.OutOfMemoryError as error:
            if len(audio) == 1:
                raise EncoderError(
                    f"{self._encoder.name} runs out of memory on {self._device} with one window of {audio.shape[1]:,} "
                    "samples: crop the clips, or use a lower --precision"
                ) from error
        self._most_samples = audio.size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return self._in_halves(audio, n_samples)

    def _is_too_large(self, audio: NDArray[np.float32]) -> bool:
        return self._most_samples is not None and audio.size > self._most_samples and len(audio) > 1

    def _in_halves(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        middle = len(audio) // 2
        halves = zip(self(audio[:middle], n_samples[:middle]), self(audio[middle:], n_samples[middle:]), strict=True)
        return tuple(joined(first, second) for first, second in halves)

    def _encode(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> tuple[Encoded, ...]:
        """Encode one batch to its end."""
        layers = self._layers(torch.from_numpy(audio).to(self._device), n_samples)
        with torch.inference_mode():
            made = [self._made(output, layers[output.layer]) for output in self._encoder.outputs]
            for each in made:
                self._check_finite(each)
        return tuple(each.encoded() for each in made)

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
            all_finite, *arrays = copy.arrays()
            self._busy_seconds += began.elapsed_time(ended) / 1e3
            if not all_finite.all():
                return self._encode(audio, n_samples)  # once more, step by step: it finds the culprit
            return tuple(receipt.encoded(arrays) for receipt in receipts)

        return result

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
        except (torch.OutOfMemoryError, EncoderContractError):
            raise
        except Exception as error:
            raise EncoderError(f"{self._encoder.name}.forward failed on {_shown(waves)}: {_told(error)}") from error

    def _layer(self, layer: int | None, output: EncoderOutput, n_samples: NDArray[np.int64]) -> Layer:
        available = output.frames.shape[1]
        kept: NDArray[np.int64] | Tensor | None = output.n_frames if self._trims else None
        if self._trims and kept is None:
            seconds = n_samples / self._recipe.sample_rate_hz
            kept = real_frames(seconds, hop_seconds=self._encoder.hop_seconds_of(layer), available=available)
        if isinstance(kept, Tensor) and kept.device.type == "cpu":
            kept = kept.numpy()
        if isinstance(kept, np.ndarray) and (kept == available).all():
            kept = None
        return Layer(
            frames=output.frames.float(),
            own=None if output.utterance is None else output.utterance.float(),
            kept=kept,
            kept_there=self._on_device(kept) if isinstance(kept, np.ndarray) else kept,
        )

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
                raise NonFiniteRow(row, "the encoder returned NaN or infinity")
            if made.frames is not None and not torch.isfinite(made.frames[row, :count]).all():
                largest = float(frames.abs().max())
                raise NonFiniteRow(
                    row, f"a frame value of {largest:.3g} does not fit {self._recipe.frame_dtype}: use --dtype float32"
                )


class NonFiniteRow(EncoderContractError):
    """One row of a batch came out as no number. ``row`` is its place in the batch."""

    def __init__(self, row: int, reason: str) -> None:
        self.row = row
        super().__init__(reason)


def real_frames(seconds: NDArray[np.float64], *, hop_seconds: float, available: int) -> NDArray[np.int64]:
    """Frames that are of the window and not of its padding, int64: ``max(1, min(available, round(seconds / hop)))``.

    >>> real_frames(np.array([0.001, 1.0, 99.0]), hop_seconds=0.04, available=50).tolist()
    [1, 25, 50]
    """
    counts = np.rint(np.asarray(seconds, np.float64) / hop_seconds).astype(np.int64)
    return np.clip(counts, 1, available)


def _shown(waves: Tensor) -> str:
    return f"float32 {tuple(waves.shape)}"


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def pick_device(asked: str) -> str:
    """The device to run on: ``auto`` is a GPU where there is one.

    Raises
    ------
    UsageError
        The device is not there.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {asked} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return asked


def _nothing() -> None:
    """What follows a batch that nobody watches."""

"""Runs an encoder over batches: forward pass, trimming of padding frames, pooling, checks of what came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.encoders.contract import ContractFacts, check_output, contract_facts
from featstore.errors import EncoderContractError, EncoderError, UsageError
from featstore.records import Recipe

__all__ = ["Encoded", "Encoder", "EncoderRun", "pick_device", "real_frames"]

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What one batch came to.

    Attributes
    ----------
    utterance : float32 (batch, dim)
    frames : tuple of (n_frames, dim) in the stored type, or None where frames are not wanted
    """

    utterance: NDArray[np.float32]
    frames: tuple[NDArray[Any], ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A loaded encoder: the module, what it declares, and what it is."""

    module: nn.Module
    name: str
    spec: str
    identity: Mapping[str, Any]
    facts: ContractFacts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", contract_facts(self.module))
        self._check_on_noise()

    def recipe(self, *, padding: str, precision: str, frame_dtype: str, resampler: str, format_version: int) -> Recipe:
        """Everything that decides the numbers this encoder will make under these settings."""
        return Recipe(
            encoder=self.name,
            encoder_identity=self.identity,
            sample_rate_hz=self.facts.sample_rate_hz,
            dim=self.facts.dim,
            hop_seconds=self.facts.hop_seconds,
            padding=padding,
            precision=precision,
            frame_dtype=frame_dtype,
            resampler=resampler,
            format_version=format_version,
        )

    @property
    def has_weights(self) -> bool:
        """Whether it has parameters, and so gains from a lower precision on a GPU."""
        return any(True for _ in self.module.parameters())

    def start(self, recipe: Recipe, *, device: str, keep_frames: bool) -> EncoderRun:
        """Move the encoder to a device, ready for batches under `recipe`."""
        return EncoderRun(self, recipe, device=device, keep_frames=keep_frames)

    def _check_on_noise(self) -> None:
        """One second of noise and one of silence, so that a broken encoder is found before any shard is read."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand((2, self.facts.sample_rate_hz), generator=generator) - 0.5
        noise[1] = 0.0
        try:
            with torch.inference_mode():
                output = self.module(noise)
        except Exception as error:
            raise EncoderContractError(f"{self.name}.forward failed on {_shown(noise)}: {_told(error)}") from error
        frames, utterance = check_output(output, name=self.name, batch=2, dim=self.facts.dim)
        for row, what in enumerate(("noise", "silence")):
            vectors = frames[row] if utterance is None else torch.cat([frames[row], utterance[row : row + 1]])
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
        Its padding decides whether padding frames are trimmed (all but ``"xares"``), its precision the arithmetic.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    keep_frames : bool
        Whether frames come back beside the utterance vectors.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, *, device: str, keep_frames: bool) -> None:
        self._encoder = encoder
        self._recipe = recipe
        self._device = torch.device(device)
        self._keep_frames = keep_frames
        self._frame_dtype = {"float16": torch.float16, "float32": torch.float32}[recipe.frame_dtype]
        self._trims = recipe.padding != "xares"
        self._most_samples: int | None = None  # what the device was seen to hold, once it ran out of memory
        try:
            self._module = encoder.module.to(self._device)
        except (RuntimeError, AssertionError) as error:
            raise EncoderError(
                f"{encoder.name} cannot run on {device}: {' '.join(str(error).split())[:200]}"
            ) from error

    @contextmanager
    def threads(self) -> Iterator[None]:
        """PyTorch's threads while shards are encoded.

        An encoder without weights is many small operations, and on a CPU its second thread waits in each of them for a
        core that decodes: measured on 2 cores, one thread is 4 to 6 times as fast. Matrix products want every core.
        """
        before = torch.get_num_threads()
        if self._device.type == "cpu" and not self._encoder.has_weights:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def __call__(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Encoded:
        """Encode one batch.

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
        if self._most_samples is not None and audio.size > self._most_samples and len(audio) > 1:
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

    def _in_halves(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Encoded:
        middle = len(audio) // 2
        first, second = self(audio[:middle], n_samples[:middle]), self(audio[middle:], n_samples[middle:])
        frames = None if first.frames is None or second.frames is None else first.frames + second.frames
        return Encoded(utterance=np.concatenate([first.utterance, second.utterance]), frames=frames)

    def _encode(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Encoded:
        waves = torch.from_numpy(audio).to(self._device)
        lengths = torch.from_numpy(n_samples).to(self._device)
        with torch.inference_mode(), self._autocast():
            output = self._forward(waves, lengths)
            frames, utterance = check_output(
                output, name=self._encoder.name, batch=len(waves), dim=self._encoder.facts.dim
            )
        with torch.inference_mode():
            frames = frames.float()
            kept = self._real_frames(n_samples, frames.shape[1])
            pooled = utterance.float() if utterance is not None else _mean_of_real(frames, kept)
            stored = frames.to(self._frame_dtype)
            self._check_finite(frames, stored, pooled, kept)
            return Encoded(
                utterance=pooled.cpu().numpy(),
                frames=self._split(stored, kept) if self._keep_frames else None,
            )

    def _forward(self, waves: Tensor, lengths: Tensor) -> object:
        takes_lengths = self._encoder.facts.takes_lengths and self._trims
        try:
            return self._module(waves, lengths=lengths) if takes_lengths else self._module(waves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise EncoderError(f"{self._encoder.name}.forward failed on {_shown(waves)}: {_told(error)}") from error

    def _real_frames(self, n_samples: NDArray[np.int64], available: int) -> NDArray[np.int64]:
        if not self._trims:
            return np.full(len(n_samples), available, np.int64)
        seconds = n_samples / self._recipe.sample_rate_hz
        return real_frames(seconds, hop_seconds=self._recipe.hop_seconds, available=available)

    def _autocast(self) -> torch.autocast:
        dtype = _PRECISIONS[self._recipe.precision]
        lower = dtype is not torch.float32
        return torch.autocast(self._device.type, dtype=dtype if lower else torch.bfloat16, enabled=lower)

    def _check_finite(self, frames: Tensor, stored: Tensor, pooled: Tensor, kept: NDArray[np.int64]) -> None:
        # a sum is finite only if no term is NaN or infinite, and costs one pass; the search for the culprit is rare
        checked = stored if self._keep_frames else pooled
        if bool(torch.isfinite(checked.sum(dtype=torch.float32)) & torch.isfinite(pooled.sum())):
            return
        for row, count in enumerate(kept.tolist()):
            if not (torch.isfinite(frames[row, :count]).all() and torch.isfinite(pooled[row]).all()):
                raise NonFiniteRow(row, "the encoder returned NaN or infinity")
            if self._keep_frames and not torch.isfinite(stored[row, :count]).all():
                largest = float(frames[row, :count].abs().max())
                raise NonFiniteRow(
                    row, f"a frame value of {largest:.3g} does not fit {self._recipe.frame_dtype}: use --dtype float32"
                )

    @staticmethod
    def _split(stored: Tensor, kept: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        host = stored.cpu().numpy()
        return tuple(host[row, :count] for row, count in enumerate(kept.tolist()))


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


def pick_device(asked: str, *, local_rank: int | None = None) -> str:
    """The device to run on: ``auto`` is a GPU where there is one, and where there are several the one of `local_rank`.

    Raises
    ------
    UsageError
        The device is not there.
    """
    if asked == "auto":
        return gpu_of(local_rank, torch.cuda.device_count()) if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N: got {asked!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {asked} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return asked


def gpu_of(local_rank: int | None, n_gpus: int) -> str:
    """The GPU of a process among those of its machine; a scheduler may show each process its own GPU alone.

    >>> gpu_of(None, 8), gpu_of(3, 8), gpu_of(3, 1), gpu_of(5, 4)
    ('cuda', 'cuda:3', 'cuda', 'cuda:1')
    """
    return "cuda" if local_rank is None or n_gpus < 2 else f"cuda:{local_rank % n_gpus}"


def _mean_of_real(frames: Tensor, kept: NDArray[np.int64]) -> Tensor:
    available = frames.shape[1]
    if (kept == available).all():
        return frames.mean(dim=1)
    counts = torch.from_numpy(kept).to(frames.device)
    padding = torch.arange(available, device=frames.device)[None, :] >= counts[:, None]
    total = frames.masked_fill(padding[:, :, None], 0.0).sum(dim=1)
    return total / counts[:, None]

"""Encoders from a computation graph in a file: one waveform input, one output of frames or a vector.

A file seldom states its sample rate and hop. They are read from arguments, or from what the file does state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.windows import WHOLE_WINDOW_MS, noise
from featstore.errors import EncoderContractError, EncoderError
from featstore.files import expanded
from featstore.formatting import one_line

__all__ = ["DECLARATIONS", "GraphEncoder", "check_argument_names", "existing_file", "name_of", "sha256_of_files"]

DECLARATIONS = ("sampling_rate", "hop_size_in_ms", "input_seconds")
"""Attributes of the encoder contract that arguments can give."""


class GraphEncoder(nn.Module):
    """A graph as an encoder. Subclasses implement `run`, and call `declare` at the end of their constructor.

    A batch larger than the graph accepts is run in pieces, the last one filled up with silence. A graph with a fixed
    number of samples gets windows of that length: shorter ones are padded with silence.

    Parameters
    ----------
    where : str
        Spec, for messages.
    batch, samples : int or None
        Fixed batch size and fixed number of samples of the graph's input; None if it accepts any.
    """

    def __init__(self, where: str, *, batch: int | None = None, samples: int | None = None) -> None:
        super().__init__()
        self._where = where
        self._batch = batch
        self._samples = samples

    def run(self, audio: Tensor, **given: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """Run the graph once on audio of its batch size and length, float32 (batch, samples)."""
        raise NotImplementedError

    def forward(self, audio: Tensor) -> Any:
        """float32 (batch, samples) -> frames (batch, frames, output_dim), or with one frame also the vectors."""
        return self.encode(audio)

    def encode(self, audio: Tensor, **given: Tensor) -> Any:
        """Run the graph on a batch of any size; `given` are further inputs, (batch,)."""
        if self._samples is not None:
            audio = nn.functional.pad(audio[:, : self._samples], (0, max(0, self._samples - audio.shape[1])))
        if self._batch is None:
            return as_frames(self.run(audio, **given))
        pieces = []
        for first in range(0, len(audio), self._batch):
            piece = audio[first : first + self._batch]
            filled = nn.functional.pad(piece, (0, 0, 0, self._batch - len(piece)))
            found = self.run(filled, **{name: _filled(of[first:], self._batch) for name, of in given.items()})
            pieces.append(_rows(as_frames(found), len(piece)))
        return _concatenated(pieces)

    def declare(self, arguments: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
        """Set the attributes of the contract, from arguments or else from what the file states, and from a test run.

        Raises
        ------
        EncoderError
            A declaration is missing, is not a positive number or contradicts the graph, or the graph fails on noise.
        """
        declared = {**{name: stated[name] for name in DECLARATIONS if name in stated}, **arguments}
        rate = _positive(declared, "sampling_rate", self._where)
        if rate is None:
            raise EncoderError(
                f"{self._where} does not state its sample rate in Hz: add --encoder-arg sampling_rate=16000, or its own"
            )
        if rate != int(rate):
            raise EncoderError(
                f"{self._where} needs a whole number of Hz: got sampling_rate={declared['sampling_rate']!r}"
            )
        self.sampling_rate = int(rate)
        self._declare_length(_positive(declared, "input_seconds", self._where))
        output = self._test_run()
        frames = output[0] if isinstance(output, tuple) else output
        self.output_dim = int(frames.shape[2])
        hop = _positive(declared, "hop_size_in_ms", self._where)
        is_vector = isinstance(output, tuple) and output[1] is not None and frames.shape[1] == 1
        if hop is None and not is_vector:
            seconds = (self._samples or self.sampling_rate) / self.sampling_rate
            raise EncoderError(
                f"{self._where} does not state its hop: {frames.shape[1]} frames of {seconds:.4g} s suggest about "
                f"{1000 * seconds / frames.shape[1]:.4g} ms; add --encoder-arg hop_size_in_ms= with the exact number"
            )
        whole_window = WHOLE_WINDOW_MS if self._samples is None else 1000.0 * self.input_seconds
        self.hop_size_in_ms = whole_window if hop is None else hop

    def _declare_length(self, input_seconds: float | None) -> None:
        if input_seconds is not None:
            samples = round(input_seconds * self.sampling_rate)
            if self._samples is not None and self._samples != samples:
                raise EncoderError(
                    f"{self._where} takes {self._samples} samples, which is {self._samples / self.sampling_rate:.6g} s "
                    f"at {self.sampling_rate} Hz: got input_seconds={input_seconds:g}"
                )
            self._samples = max(1, samples)
        if self._samples is not None:
            self.input_seconds = self._samples / self.sampling_rate

    def _test_run(self) -> Any:
        seconds = (self._samples or self.sampling_rate) / self.sampling_rate
        waves = noise(seconds, rate_hz=self.sampling_rate).expand(self._batch or 1, -1)
        try:
            with torch.inference_mode():
                return as_frames(self.run(waves))
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(
                f"{self._where} fails on float32 {tuple(waves.shape)}, noise at {self.sampling_rate} Hz: if it needs "
                f"a fixed length, add --encoder-arg input_seconds= ({one_line(error, most=200, typed=True)})"
            ) from error


def as_frames(output: Any) -> Any:
    """Return an output in a form of the contract: vectors (batch, dim) become one frame for each window.

    Raises
    ------
    EncoderContractError
        The output is neither frames nor vectors.
    """
    if isinstance(output, (tuple, list)) and 2 <= len(output) <= 3 and isinstance(output[0], Tensor):
        return tuple(output)
    if isinstance(output, Tensor) and output.ndim == 3:
        return output
    if isinstance(output, Tensor) and output.ndim == 2:
        return output[:, None], output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise EncoderContractError(
        f"the output of a model must be frames (batch, frames, dim) or vectors (batch, dim): got {shape}"
    )


def _rows(output: Any, n_rows: int) -> Any:
    if isinstance(output, tuple):
        return tuple(None if each is None else each[:n_rows] for each in output)
    return output[:n_rows]


def _filled(values: Tensor, n_rows: int) -> Tensor:
    """Return the first `n_rows` values; missing ones repeat the first."""
    return torch.cat([values, values[:1].expand(n_rows)])[:n_rows] if len(values) < n_rows else values[:n_rows]


def _concatenated(pieces: list[Any]) -> Any:
    if not isinstance(pieces[0], tuple):
        return torch.cat(pieces)
    return tuple(None if each[0] is None else torch.cat(each) for each in zip(*pieces, strict=True))


def _positive(declared: Mapping[str, Any], name: str, where: str) -> float | None:
    value = declared.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise EncoderError(f"{where} needs a positive number: got {name}={value!r}")
    return number


def check_argument_names(where: str, arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise EncoderError for an argument that this kind of encoder does not take."""
    for name in arguments:
        if name not in (*known,):
            raise EncoderError(f"{where} takes --encoder-arg {', '.join(known)}: got {name}")


def existing_file(spec: str, path: str) -> Path:
    """Return the path of the file that a spec names. Raises EncoderError if it is not a file."""
    found = expanded(path)
    if path and found.is_file():
        return found
    what = "is a folder" if path and found.is_dir() else "does not exist"
    raise EncoderError(f"{path or 'the file'} {what}: check the path in --encoder {spec}")


def name_of(path: Path) -> str:
    """Return the name of the feature sets of a file: its stem, in characters of group names."""
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", path.stem).lstrip("._+=-") or "model"


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Hash the contents of files, in order, without their names."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()

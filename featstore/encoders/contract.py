"""The encoder contract: what the ICME 2025 Audio Encoder Capability Challenge asks of an encoder, and extensions.

An encoder is a ``torch.nn.Module`` with

- ``sampling_rate: int``, in Hz, of the waveforms it takes;
- ``output_dim: int``, width of a frame;
- ``hop_size_in_ms: float``, time from one frame to the next;
- ``forward(audio)``, float32 (batch, samples) in [-1, 1] -> (batch, frames, output_dim).

Beyond that,

- ``forward`` may take ``lengths``, int64 (batch,): the samples of each row that are not padding;
- it may return ``(frames, utterance)`` with utterance (batch, output_dim), or ``(frames, utterance, n_frames)`` with
  n_frames, int64 (batch,): the frames of each row that are not of padding. utterance may then be None;
- ``input_seconds: float`` says that it always computes on so much audio: longer clips are cut into windows of at most
  that, shorter ones cost as much;
- ``n_layers: int``, ``layer_dim: int``, ``layer_hop_in_ms: float`` and
  ``forward_layers(audio, lengths=None, *, layers)`` let a user choose hidden states: for each of `layers`, a tuple of
  numbers from 0 to ``n_layers`` and of None (what ``forward`` returns), one output of the forms above.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from featstore.errors import EncoderContractError
from featstore.records import NamedBy

__all__ = [
    "ContractFacts",
    "EncoderOutput",
    "LayerFacts",
    "LoadedModel",
    "check_counts",
    "check_output",
    "contract_facts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What an encoder declares of its hidden states, 0 to ``count``."""

    count: int
    dim: int
    hop_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """What an encoder declares of itself.

    Attributes
    ----------
    input_seconds : float or None
        Audio that it always computes on, where that is fixed.
    layers : LayerFacts or None
        Of hidden states that can be chosen.
    """

    sample_rate_hz: int
    dim: int
    hop_seconds: float
    takes_lengths: bool
    input_seconds: float | None
    layers: LayerFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOutput:
    """One checked output of a forward pass.

    Attributes
    ----------
    frames : Tensor
        (batch, frames, dim)
    utterance : Tensor or None
        (batch, dim)
    n_frames : Tensor or None
        int64 (batch,), each within 1 to frames.
    """

    frames: Tensor
    utterance: Tensor | None
    n_frames: Tensor | None


def contract_facts(module: object) -> ContractFacts:
    """Read an encoder's declarations.

    Raises
    ------
    EncoderContractError
        It is no module, or a declaration is missing or makes no sense: all of them in one line.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise EncoderContractError(f"an encoder is a torch.nn.Module: {name} is none")
    problems: list[str] = []
    rate = _positive(module, "sampling_rate", "Hz", problems, whole=True)
    dim = _positive(module, "output_dim", "values per frame", problems, whole=True)
    hop_ms = _positive(module, "hop_size_in_ms", "ms", problems, whole=False)
    input_seconds = None
    if _declared(module, "input_seconds") is not None:
        input_seconds = _positive(module, "input_seconds", "seconds", problems, whole=False)
    has_layers = hasattr(module, "forward_layers") and _declared(module, "n_layers") is not None
    layers = _layer_facts(module, problems) if has_layers else None
    if problems:
        raise EncoderContractError(f"{name} breaks the encoder contract: {'; '.join(problems)}")
    return ContractFacts(
        sample_rate_hz=int(rate),
        dim=int(dim),
        hop_seconds=round(hop_ms / 1000.0, 9),
        takes_lengths=_takes_lengths(module),
        input_seconds=input_seconds,
        layers=layers,
    )


def _layer_facts(module: nn.Module, problems: list[str]) -> LayerFacts | None:
    count = _positive(module, "n_layers", "hidden states after the first", problems, whole=True)
    dim = _positive(module, "layer_dim", "values per frame", problems, whole=True)
    hop_ms = _positive(module, "layer_hop_in_ms", "ms", problems, whole=False)
    if problems:
        return None
    return LayerFacts(count=int(count), dim=int(dim), hop_seconds=round(hop_ms / 1000.0, 9))


def _positive(module: nn.Module, attribute: str, unit: str, problems: list[str], *, whole: bool) -> float:
    """A declared number; NaN, and a line in `problems`, where it is none that makes sense."""
    came = _declared(module, attribute)
    number = math.nan if isinstance(came, bool) or not isinstance(came, Real) else float(came)
    if not 0 < number < math.inf:
        problems.append(f"{attribute} must be a positive number ({unit}), got {came!r}")
    elif whole and number != int(number):
        problems.append(f"{attribute} must be a whole number, got {came!r}")
    return number


def _declared(module: nn.Module, attribute: str) -> object:
    try:
        return getattr(module, attribute, None)
    except Exception as error:  # noqa: BLE001 - a property is the user's own code
        return error


def _takes_lengths(module: nn.Module) -> bool:
    try:
        return "lengths" in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # compiled modules do not tell
        return False


def check_output(output: object, *, name: str, batch: int, dim: int) -> EncoderOutput:
    """One output of a forward pass, checked for rank, batch and width.

    Raises
    ------
    EncoderContractError
        Says which rule is broken and what came.
    """
    several = isinstance(output, (tuple, list)) and len(output) in (2, 3)
    frames, utterance, n_frames = (*output, None)[:3] if several else (output, None, None)  # type: ignore[misc]
    if not isinstance(frames, Tensor):
        raise EncoderContractError(
            f"{name}.forward must return a tensor (batch, frames, output_dim), or a pair of it and (batch, output_dim):"
            f" got {type(output).__name__}"
        )
    if frames.ndim != 3 or frames.shape[0] != batch or frames.shape[2] != dim or frames.shape[1] < 1:
        raise EncoderContractError(
            f"{name}.forward must return (batch, frames, output_dim) = ({batch}, at least 1, {dim}): "
            f"got {tuple(frames.shape)}"
        )
    if utterance is not None and (not isinstance(utterance, Tensor) or tuple(utterance.shape) != (batch, dim)):
        raise EncoderContractError(
            f"{name}.forward must return utterance vectors (batch, output_dim) = ({batch}, {dim}): "
            f"got {_shape(utterance)}"
        )
    if not frames.dtype.is_floating_point:
        raise EncoderContractError(f"{name}.forward must return floating-point frames: got {frames.dtype}")
    return EncoderOutput(frames=frames, utterance=utterance, n_frames=_checked_counts(n_frames, frames, name))


def _checked_counts(n_frames: object, frames: Tensor, name: str) -> Tensor | None:
    if n_frames is None:
        return None
    batch, available = frames.shape[:2]
    if not isinstance(n_frames, Tensor) or tuple(n_frames.shape) != (batch,) or n_frames.dtype.is_floating_point:
        raise EncoderContractError(
            f"{name}.forward must return counts of frames as whole numbers (batch,) = ({batch},): "
            f"got {_shape(n_frames)}"
        )
    if n_frames.device.type == "cpu":  # elsewhere a look would wait for the device: see `check_counts`
        check_counts(n_frames.numpy(), available=available, name=name)
    return n_frames.long()


def check_counts(n_frames: NDArray[np.integer[Any]], *, available: int, name: str) -> None:
    """Raise EncoderContractError where an encoder counts no frame of a row, or more than there are."""
    if ((n_frames < 1) | (n_frames > available)).any():
        raise EncoderContractError(
            f"{name}.forward must return counts of frames within 1 to {available}, the frames it returns: "
            f"got {n_frames.tolist()}"
        )


def _shape(came: object) -> str:
    return f"{came.dtype} {tuple(came.shape)}" if isinstance(came, Tensor) else type(came).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module that keeps the contract, the name of its feature sets, what that was taken from, and what it is.

    ``earlier`` is what it was to an earlier featstore, where that was another identity.
    """

    module: nn.Module
    name: str
    named_by: NamedBy
    identity: Mapping[str, Any]
    earlier: Mapping[str, Any] | None = None

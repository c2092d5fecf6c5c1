"""The encoder contract: what the ICME 2025 Audio Encoder Capability Challenge asks of an encoder, and two extensions.

An encoder is a ``torch.nn.Module`` with

- ``sampling_rate: int``, in Hz, of the waveforms it takes;
- ``output_dim: int``, width of a frame;
- ``hop_size_in_ms: float``, time from one frame to the next;
- ``forward(audio)``, float32 (batch, samples) in [-1, 1] -> (batch, frames, output_dim).

It may return a pair ``(frames, utterance)`` with utterance (batch, output_dim) instead, and its ``forward`` may take
``lengths``, int64 (batch,): the samples of each row that are not padding.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor, nn

from featstore.errors import EncoderContractError

__all__ = ["ContractFacts", "check_output", "contract_facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """What an encoder declares of itself."""

    sample_rate_hz: int
    dim: int
    hop_seconds: float
    takes_lengths: bool


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
    if problems:
        raise EncoderContractError(f"{name} breaks the encoder contract: {'; '.join(problems)}")
    return ContractFacts(
        sample_rate_hz=int(rate),
        dim=int(dim),
        hop_seconds=round(hop_ms / 1000.0, 9),
        takes_lengths=_takes_lengths(module),
    )


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


def check_output(output: object, *, name: str, batch: int, dim: int) -> tuple[Tensor, Tensor | None]:
    """Frames and utterance vectors of one forward pass, checked for rank, batch and width.

    Raises
    ------
    EncoderContractError
        Says which rule is broken and what came.
    """
    frames, utterance = output if isinstance(output, (tuple, list)) and len(output) == 2 else (output, None)
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
        came = tuple(utterance.shape) if isinstance(utterance, Tensor) else type(utterance).__name__
        raise EncoderContractError(
            f"{name}.forward must return utterance vectors (batch, output_dim) = ({batch}, {dim}): got {came}"
        )
    if not frames.dtype.is_floating_point:
        raise EncoderContractError(f"{name}.forward must return floating-point frames: got {frames.dtype}")
    return frames, utterance

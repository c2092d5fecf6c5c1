"""The encoder contract: the interface of the ICME 2025 Audio Encoder Capability Challenge, and extensions.

An encoder is a ``torch.nn.Module`` with

- ``sampling_rate: int``, sample rate of its input in Hz;
- ``output_dim: int``, width of a frame;
- ``hop_size_in_ms: float``, time from one frame to the next;
- ``forward(audio)``, float32 (batch, samples) in [-1, 1] -> (batch, frames, output_dim).

Extensions:

- ``forward`` can take ``lengths``, int64 (batch,): the number of samples of each row without padding;
- ``forward`` can return ``(frames, utterance)`` with utterance (batch, output_dim), or ``(frames, utterance,
  n_frames)`` with n_frames, int64 (batch,): the number of frames of each row without padding. utterance can then be
  None;
- ``input_seconds: float`` declares a fixed input duration: longer clips are cut into windows of at most this duration,
  and shorter ones take as much compute;
- ``n_layers: int``, ``layer_dim: int``, ``layer_hop_in_ms: float`` and
  ``forward_layers(audio, lengths=None, *, layers)`` let users select hidden states. `layers` is a tuple of numbers from
  0 to ``n_layers`` and of None (the output of ``forward``); the result has one output of the forms above for each;
- ``encode_text(texts: list[str])`` returns the vectors of texts in the space of the utterance vectors, floating point
  (texts, output_dim). The vector of a text does not depend on the other texts. The attribute can be None: the encoder
  then has no text tower.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
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
    "check_text_output",
    "contract_facts",
    "not_a_module",
]

_SIMILAR: Mapping[str, str] = {
    "sampling_rate": "sample_rate samplerate sampling_rate_hz sample_rate_hz sr fs rate",
    "output_dim": "embed_dim embedding_dim embedding_size scene_embedding_size hidden_size hidden_dim out_dim "
    "output_size feature_dim feature_size n_features d_model dim",
    "hop_size_in_ms": "hop_ms hop_in_ms hop_size hop_length hop_seconds hop frame_shift stride",
    "n_layers": "num_layers num_hidden_layers depth",
    "layer_dim": "hidden_size hidden_dim d_model",
    "layer_hop_in_ms": "hop_size_in_ms",
    "forward": "encode encode_audio embed extract_features get_embeddings get_embedding get_audio_embeddings "
    "get_audio_features get_timestamp_embeddings get_scene_embeddings infer predict",
}
"""Names that other libraries give to what the contract requires. They are suggested, and never read."""

_REQUIRED = {"sampling_rate": "Hz", "output_dim": "values per frame", "hop_size_in_ms": "ms", "forward": "audio"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """What an encoder declares about its hidden states, 0 to ``count``."""

    count: int
    dim: int
    hop_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractFacts:
    """What an encoder declares about itself.

    Attributes
    ----------
    input_seconds : float or None
        Fixed input duration, if there is one.
    layers : LayerFacts or None
        Hidden states that users can select, if there are any.
    takes_text : bool
        Whether it has a text tower.
    """

    sample_rate_hz: int
    dim: int
    hop_seconds: float
    takes_lengths: bool
    input_seconds: float | None
    layers: LayerFacts | None
    takes_text: bool = False


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
        int64 (batch,), each from 1 to frames.
    """

    frames: Tensor
    utterance: Tensor | None
    n_frames: Tensor | None


def contract_facts(module: object) -> ContractFacts:
    """Read an encoder's declarations.

    Raises
    ------
    EncoderContractError
        The encoder is not a module, or declarations are missing or invalid; one line lists all problems.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module):
        raise EncoderContractError(not_a_module(module))
    problems: list[str] = []
    rate = _positive(module, "sampling_rate", "Hz", problems, whole=True)
    dim = _positive(module, "output_dim", "values per frame", problems, whole=True)
    hop_ms = _positive(module, "hop_size_in_ms", "ms", problems, whole=False)
    input_seconds = None
    if _declared(module, "input_seconds") is not None:
        input_seconds = _positive(module, "input_seconds", "seconds", problems, whole=False)
    has_layers = hasattr(module, "forward_layers") and _declared(module, "n_layers") is not None
    layers = _layer_facts(module, problems) if has_layers else None
    if not _has_forward(module):
        problems.append(_missing(module, "forward", "audio"))
    if problems:
        raise EncoderContractError(f"{name} breaks the encoder contract: {'; '.join(problems)}")
    return ContractFacts(
        sample_rate_hz=int(rate),
        dim=int(dim),
        hop_seconds=round(hop_ms / 1000.0, 9),
        takes_lengths=_takes_lengths(module),
        input_seconds=input_seconds,
        layers=layers,
        takes_text=callable(_declared(module, "encode_text")),
    )


def _layer_facts(module: nn.Module, problems: list[str]) -> LayerFacts | None:
    count = _positive(module, "n_layers", "hidden states after the first", problems, whole=True)
    dim = _positive(module, "layer_dim", "values per frame", problems, whole=True)
    hop_ms = _positive(module, "layer_hop_in_ms", "ms", problems, whole=False)
    if problems:
        return None
    return LayerFacts(count=int(count), dim=int(dim), hop_seconds=round(hop_ms / 1000.0, 9))


def _positive(module: nn.Module, attribute: str, unit: str, problems: list[str], *, whole: bool) -> float:
    """Return a declared positive number; if it is invalid, append a problem."""
    value = _declared(module, attribute)
    if value is None and not hasattr(module, attribute):
        problems.append(_missing(module, attribute, unit))
        return math.nan
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not 0 < number < math.inf:
        problems.append(f"{attribute} must be a positive number ({unit}), got {value!r}")
    elif whole and number != int(number):
        problems.append(f"{attribute} must be a whole number, got {value!r}")
    return number


def _declared(module: object, attribute: str) -> object:
    try:
        return getattr(module, attribute, None)
    except Exception as error:  # noqa: BLE001 - a property is the user's own code
        return error


def not_a_module(found: object) -> str:
    """Return one line about an object, or a class, that is not an encoder: what it lacks, and what is similar."""
    kind = found if isinstance(found, type) else type(found)
    lacks = [_missing(found, name, unit) for name, unit in _REQUIRED.items() if not hasattr(found, name)]
    return (
        f"an encoder must be a torch.nn.Module: {kind.__name__} is not one, so derive a class from torch.nn.Module"
        f"{''.join(f'; {each}' for each in lacks)}"
    )


def _has_forward(module: nn.Module) -> bool:
    return getattr(_declared(module, "forward"), "__func__", None) is not nn.Module.forward


def _missing(found: object, attribute: str, unit: str) -> str:
    similar = _similar(found, attribute)
    return f"{attribute} ({unit}) is missing{f', the class has {similar}' if similar else ''}"


def _similar(found: object, attribute: str) -> str | None:
    """Return the attribute of an object that may be what `attribute` is for, with its value; None if there is none."""
    names = [name for name in dir(found) if not name.startswith("_") and name not in dir(nn.Module)]
    spelled = {name.lower(): name for name in names}
    known = [spelled[name] for name in _SIMILAR.get(attribute, "").split() if name in spelled]
    for name in (*known, *difflib.get_close_matches(attribute, names, n=3, cutoff=0.8)):
        value = _declared(found, name)
        if callable(value) and not isinstance(value, nn.Module):
            return f"{name}()"
        if attribute != "forward" and not isinstance(value, bool) and isinstance(value, Real):
            return f"{name} = {value}"
    return None


def _takes_lengths(module: nn.Module) -> bool:
    try:
        return "lengths" in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):  # compiled modules have no signature
        return False


def check_output(output: object, *, name: str, batch: int, dim: int) -> EncoderOutput:
    """Check the rank, batch size and width of one output of a forward pass.

    Raises
    ------
    EncoderContractError
        The message has the broken rule and the actual value.
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


def check_text_output(output: object, *, name: str, texts: int, dim: int) -> Tensor:
    """Check the shape and type of the vectors of texts, and that they are finite.

    Raises
    ------
    EncoderContractError
        The message has the broken rule and the actual value.
    """
    rule = f"{name}.encode_text must return floating-point vectors (texts, output_dim) = ({texts}, {dim})"
    if not isinstance(output, Tensor) or tuple(output.shape) != (texts, dim) or not output.dtype.is_floating_point:
        raise EncoderContractError(f"{rule}: got {_shape(output)}")
    if not output.isfinite().all():
        raise EncoderContractError(f"{rule}: got NaN or infinity")
    return output


def _checked_counts(n_frames: object, frames: Tensor, name: str) -> Tensor | None:
    if n_frames is None:
        return None
    batch, available = frames.shape[:2]
    if not isinstance(n_frames, Tensor) or tuple(n_frames.shape) != (batch,) or n_frames.dtype.is_floating_point:
        raise EncoderContractError(
            f"{name}.forward must return counts of frames as whole numbers (batch,) = ({batch},): "
            f"got {_shape(n_frames)}"
        )
    if n_frames.device.type == "cpu":  # on other devices a check would wait for the result: see `check_counts`
        check_counts(n_frames.numpy(), available=available, name=name)
    return n_frames.long()


def check_counts(n_frames: NDArray[np.integer[Any]], *, available: int, name: str) -> None:
    """Raise EncoderContractError unless every frame count is from 1 to `available`."""
    if ((n_frames < 1) | (n_frames > available)).any():
        raise EncoderContractError(
            f"{name}.forward must return counts of frames within 1 to {available}, the frames it returns: "
            f"got {n_frames.tolist()}"
        )


def _shape(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module that satisfies the contract, the name of its feature sets and the origin of that name, and its identity.

    ``earlier`` is the identity that an earlier version of featstore gave it, if it differs. ``text_identity`` returns
    what determines the vectors of texts and is not in ``identity``, such as the weights of a separate text tower.
    """

    module: nn.Module
    name: str
    named_by: NamedBy
    identity: Mapping[str, Any]
    earlier: Mapping[str, Any] | None = None
    text_identity: Callable[[], Mapping[str, Any]] = dict

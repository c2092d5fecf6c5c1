"""Adapts modules with the API of HEAR 2021 (Turian et al.): ``load_model`` and two functions that embed audio."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.windows import (
    WHOLE_WINDOW_MS,
    in_row_order,
    noise,
    rows_by_length,
    shortest_window,
)
from featstore.errors import EncoderContractError, EncoderError
from featstore.formatting import one_line

__all__ = ["HearEncoder", "build_hear"]

_EMBEDDINGS = ("scene", "timestamps")
_PROBED_SECONDS = 4.0
_UNEVEN = 0.1  # of the hop: centres are rounded to samples or milliseconds


def build_hear(api: ModuleType, *, where: str, weights: str, arguments: Mapping[str, Any]) -> HearEncoder:
    """Load the model of a HEAR module, and return it as an encoder.

    Parameters
    ----------
    api : module
        Has ``load_model(path)``, and ``get_scene_embeddings`` and ``get_timestamp_embeddings``, which may also be
        methods of the model.
    where : str
        Its name or file, for messages.
    weights : str
        Path for ``load_model``; empty for its default.
    arguments : mapping
        ``embedding``: ``scene`` or ``timestamps``.

    Raises
    ------
    EncoderError
        The module has no ``load_model``, or loading fails.
    """
    for name in arguments:
        if name != "embedding":
            raise EncoderError(f"hear: encoders take --encoder-arg embedding=scene|timestamps: got {name}")
    wanted = arguments.get("embedding")
    if wanted not in (None, *_EMBEDDINGS):
        raise EncoderError(f"embedding of a hear: encoder is {' or '.join(_EMBEDDINGS)}: got {wanted!r}")
    load_model = getattr(api, "load_model", None)
    if not callable(load_model):
        raise EncoderError(f"{where} has no function load_model, which the HEAR API asks for")
    try:
        with torch.random.fork_rng(devices=[]):  # a model with random weights seeds the generator of the process
            model = load_model(weights) if weights else load_model()
    except (Exception, SystemExit) as error:
        raise EncoderError(
            f"load_model({repr(weights) if weights else ''}) of {where} failed: {one_line(error, typed=True)}"
        ) from error
    return HearEncoder(model, api=api, where=where, embedding=wanted)


class HearEncoder(nn.Module):
    """A HEAR model. The timestamp embeddings are frames; the scene embedding is the utterance vector.

    The API has no mask, so that each call gets windows of one length, without padding; windows that are too short for
    the model, of less than 0.1, 0.5 or 1 s, are padded to that with silence. If the two embeddings differ in
    width, or the model has one only, one of them is used: the scene embedding as a single frame for each window, or the
    timestamp embeddings, with their mean as the utterance vector.

    Parameters
    ----------
    model
        What ``load_model`` returned.
    api : module
    where : str
        Name or file of the module, for messages.
    embedding : "scene", "timestamps" or None
        None uses both if they have the same width, or else the scene embedding.

    Raises
    ------
    EncoderContractError
        The model lacks attributes or functions of the API, or its timestamps are not evenly spaced milliseconds.
    """

    def __init__(self, model: Any, *, api: ModuleType, where: str, embedding: str | None) -> None:
        super().__init__()
        self._where = where
        self.model = model
        self._scene = _function(api, model, "get_scene_embeddings") if embedding != "timestamps" else None
        self._timestamps = _function(api, model, "get_timestamp_embeddings") if embedding != "scene" else None
        self.sampling_rate = self._whole_number("sample_rate")
        if self._scene is not None and self._timestamps is not None:
            sizes = [self._whole_number(f"{name}_embedding_size") for name in ("scene", "timestamp")]
            if sizes[0] != sizes[1]:
                self._timestamps = None
        if self._scene is None and self._timestamps is None:
            wanted = {None: "get_scene_embeddings", "scene": "get_scene_embeddings"}
            raise EncoderContractError(
                f"{self._where} has no function {wanted.get(embedding, 'get_timestamp_embeddings')}, which the HEAR "
                "API asks for"
            )
        kind = "scene" if self._timestamps is None else "timestamp"
        self.output_dim = self._whole_number(f"{kind}_embedding_size")
        self.hop_size_in_ms = WHOLE_WINDOW_MS if self._timestamps is None else self._hop_in_ms()
        self._least = 1
        self._least = shortest_window(self, rate_hz=self.sampling_rate)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        """float32 (batch, samples) -> frames (batch, frames, dim), vectors (batch, dim) or None, int64 (batch,)."""
        frames: dict[int, Tensor] = {}
        vectors: dict[int, Tensor] = {}
        for rows, waves in rows_by_length(audio, lengths, least=self._least):
            if self._scene is not None:
                found = _tensor(self._scene(waves, self.model), "get_scene_embeddings", self._where, waves, ndim=2)
                vectors |= dict(zip(rows, found, strict=True))
            if self._timestamps is not None:
                frames |= dict(zip(rows, self._frames(waves)[0], strict=True))
            else:
                frames |= {row: vectors[row][None] for row in rows}
        counts = torch.tensor([len(frames[row]) for row in range(len(audio))], device=audio.device)
        return in_row_order(frames), in_row_order(vectors) if vectors else None, counts

    def _frames(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of timestamps (rows, frames, dim), and the times in milliseconds (rows, frames)."""
        call = self._timestamps
        found = call(waves, self.model) if call is not None else None
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise EncoderContractError(
                f"get_timestamp_embeddings of {self._where} must return embeddings and timestamps: got "
                f"{type(found).__name__}"
            )
        name = "get_timestamp_embeddings"
        frames = _tensor(found[0], name, self._where, waves, ndim=3)
        return frames, torch.as_tensor(found[1])

    def _hop_in_ms(self) -> float:
        """Return the spacing of the timestamps of noise."""
        waves = noise(_PROBED_SECONDS, rate_hz=self.sampling_rate)
        try:
            with torch.inference_mode():
                _, times = self._frames(waves)
        except EncoderContractError:
            raise
        except Exception as error:
            raise EncoderContractError(
                f"get_timestamp_embeddings of {self._where} failed on float32 {tuple(waves.shape)}: "
                f"{one_line(error, typed=True)}"
            ) from error
        at = times.detach().cpu().double().flatten()
        apart = at.diff()
        hop = float(apart.mean()) if len(apart) else math.nan
        covered = hop * len(at) / (1000.0 * _PROBED_SECONDS)
        if not (hop > 0 and 0.5 <= covered <= 2.0 and float((apart - hop).abs().max()) <= _UNEVEN * hop):
            raise EncoderContractError(
                f"the timestamps of {self._where} must be evenly spaced milliseconds over the clip: {len(at)} of "
                f"them for {_PROBED_SECONDS:g} s end at {float(at[-1]) if len(at) else math.nan:g}; without use for "
                "them, add --encoder-arg embedding=scene"
            )
        return round(hop, 6)

    def _whole_number(self, attribute: str) -> int:
        value = getattr(self.model, attribute, None)
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise EncoderContractError(
                f"the model of {self._where} needs the attribute {attribute}, a whole number: got {value!r}"
            ) from None


def _function(api: ModuleType, model: Any, name: str) -> Callable[..., Any] | None:
    """Return a function of the module, or a method of the model, as a function of audio and model."""
    found = getattr(api, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    method = getattr(model, name, None)
    return None if not callable(method) else lambda audio, _: method(audio)


def _tensor(found: Any, name: str, where: str, waves: Tensor, *, ndim: int) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim != ndim or len(found) != len(waves):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = "(sounds, size)" if ndim == 2 else "(sounds, timestamps, size)"
        raise EncoderContractError(
            f"{name} of {where} must return a tensor {expected} for {len(waves)} sounds: got {shape}"
        )
    return found.float()

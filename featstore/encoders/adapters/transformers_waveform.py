"""transformers models that take a waveform, and any other with a feature extractor."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.transformers_spectrogram import at_least, full_precision, given_or_whole, real
from featstore.errors import EncoderError

__all__ = ["OtherEncoder", "WaveformEncoder", "normalised"]


def normalised(audio: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over the real samples of each row; zeros after them.

    float32 (batch, samples), int64 (batch,) -> float32 (batch, samples). As ``Wav2Vec2FeatureExtractor`` does it to a
    clip alone.
    """
    keep = real(lengths, audio.shape[1])
    count = lengths[:, None]
    mean = audio.masked_fill(~keep, 0.0).double().sum(dim=1, keepdim=True) / count
    apart = (audio - mean).masked_fill(~keep, 0.0)
    variance = apart.square().sum(dim=1, keepdim=True) / count
    return (apart / (variance + 1e-7).sqrt()).float()


class WaveformEncoder(nn.Module):
    """A convolution over the waveform, then a transformer.

    An attention mask goes in where the feature extractor says that the model was trained with one. Such a model sees no
    padding, save where its own design reaches into it: the stacked positional convolutions of data2vec-audio, the
    convolutions of an adapter.

    One that was not (``feat_extract_norm`` of its configuration is ``group``, as in wav2vec2-base) sees zeros after a
    window, in the statistics of its first layer and in its attention, as it did in training: what comes out depends on
    the window and on its padded length, which the window's own length decides. ``--padding exact`` gives it no padding
    to see.

    Parameters
    ----------
    model : Module
        Of transformers.
    extractor
        The model's feature extractor; what it does is done here, over the real samples of each window.
    """

    def __init__(self, model: Any, *, extractor: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.normalises = bool(extractor.do_normalize)
        self.masks = bool(getattr(extractor, "return_attention_mask", False))
        self.sampling_rate = int(extractor.sampling_rate)
        self.n_layers = int(config.num_hidden_layers)
        self.layer_dim = int(config.hidden_size)
        self.layer_hop_in_ms = 1000.0 * math.prod(config.conv_stride) / self.sampling_rate
        adapted = bool(getattr(config, "add_adapter", False))
        self.output_dim = int(config.output_hidden_size) if adapted else self.layer_dim
        self.hop_size_in_ms = self.layer_hop_in_ms * (
            config.adapter_stride**config.num_adapter_layers if adapted else 1
        )
        self._adapted = adapted
        self._least_samples = _least_samples(config.conv_kernel, config.conv_stride)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """One pass: frames and their counts for each hidden state, and for None the model's own output."""
        masks = self.masks and lengths is not None
        lengths = given_or_whole(audio, lengths)
        with full_precision(audio):
            waves = normalised(audio, lengths.clamp(min=1)) if self.normalises else audio
        waves = at_least(waves, self._least_samples)
        lengths = lengths.clamp(min=self._least_samples)
        with warnings.catch_warnings():  # WavLM's attention: its mask and its bias are of two types, which is no fault
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            found = self.model(
                waves,
                attention_mask=real(lengths, waves.shape[1]).long() if masks else None,
                output_hidden_states=any(layer is not None for layer in layers),
            )
        return tuple(
            (
                found.last_hidden_state if layer is None else found.hidden_states[layer],
                None,
                self._n_frames(lengths, of_layer=layer is not None),
            )
            for layer in layers
        )

    def _n_frames(self, lengths: Tensor, *, of_layer: bool) -> Tensor:
        """By the model's own function; an adapter shortens the last output and no hidden state."""
        before_adapter = {"add_adapter": False} if self._adapted and of_layer else {}
        counted: Tensor = self.model._get_feat_extract_output_lengths(lengths, **before_adapter)
        return counted.long()


def _least_samples(kernels: Any, strides: Any) -> int:
    """Samples that make one frame."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return int(samples)


_LEAST_SECONDS = (0.1, 0.5, 1.0)
_PROBED_SECONDS = (1.0, 5.0)


class OtherEncoder(nn.Module):
    """Its own feature extractor prepares each window alone, on the CPU; windows of one shape go in together.

    Nothing is padded beyond what the extractor does to a window alone, so every frame is real. The hop and the width
    are measured on noise.

    Parameters
    ----------
    model : Module
        The encoder half where there are two.
    extractor
        The model's feature extractor.

    Raises
    ------
    EncoderError
        The model gives no frames, or as many whatever the length.
    """

    def __init__(self, model: Any, *, extractor: Any) -> None:
        super().__init__()
        self.model = model
        self._extractor = extractor
        self.sampling_rate = int(extractor.sampling_rate)
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self._least_samples = 1
        self._least_samples = self._shortest()
        short, long = (self._probe(seconds) for seconds in _PROBED_SECONDS)
        self.output_dim = long[-1].shape[2]
        self.hop_size_in_ms = self._hop_in_ms(short[-1], long[-1])
        self.n_layers: int | None = None
        if len(long) > 1 and len({(state.shape[1], state.shape[2]) for state in long[:-1]}) == 1:
            self.n_layers = len(long) - 2
            self.layer_dim = long[0].shape[2]
            self.layer_hop_in_ms = self._hop_in_ms(short[0], long[0])

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """Frames and their counts for each hidden state, and for None the model's own output."""
        counts = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
        rows: dict[int, list[Tensor]] = {}
        with full_precision(audio):  # extractors that are written in torch would be lowered on a CPU
            groups = self._by_shape(audio, counts)
        for together in groups:
            numbers = [number for number, _ in together]
            states = self._states([inputs for _, inputs in together], audio.device)
            chosen = [states[-1] if layer is None else states[layer] for layer in layers]
            for place, number in enumerate(numbers):
                rows[number] = [state[place] for state in chosen]
        return tuple(_stacked([rows[number][at] for number in range(len(audio))]) for at in range(len(layers)))

    def _by_shape(self, audio: Tensor, counts: list[int]) -> list[list[tuple[int, dict[str, Tensor]]]]:
        """Rows with what the extractor makes of each, those of equal shape together."""
        groups: dict[object, list[tuple[int, dict[str, Tensor]]]] = defaultdict(list)
        for number, count in enumerate(counts):
            wave = at_least(audio[number : number + 1, :count], self._least_samples)[0]
            found = self._extractor(wave.cpu().numpy(), sampling_rate=self.sampling_rate, return_tensors="pt")
            inputs = {name: value for name, value in found.items() if name in self._takes}
            groups[tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))].append((number, inputs))
        return list(groups.values())

    def _states(self, inputs: list[dict[str, Tensor]], device: torch.device) -> list[Tensor]:
        """Hidden states where the model tells them, and its own output last."""
        together = {name: torch.cat([each[name] for each in inputs]).to(device) for name in inputs[0]}
        found = self.model(**together, output_hidden_states=True)
        last = getattr(found, "last_hidden_state", None)
        if not isinstance(last, Tensor) or last.ndim != 3:
            raise EncoderError(f"{type(self.model).__name__} gives no frames (batch, frames, dim) as last_hidden_state")
        hidden = getattr(found, "hidden_states", None) or ()
        return [*(state for state in hidden if isinstance(state, Tensor) and state.ndim == 3), last]

    @torch.no_grad()
    def _probe(self, seconds: float) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        noise = 0.1 * torch.randn((1, round(seconds * self.sampling_rate)), generator=generator)
        with full_precision(noise):
            [[(_, inputs)]] = self._by_shape(noise, [noise.shape[1]])
            return self._states([inputs], noise.device)

    def _shortest(self) -> int:
        for seconds in _LEAST_SECONDS[:-1]:
            try:
                self._probe(seconds)
            except (RuntimeError, ValueError, IndexError):  # too short for a kernel or a window
                continue
            return round(seconds * self.sampling_rate)
        return round(_LEAST_SECONDS[-1] * self.sampling_rate)

    def _hop_in_ms(self, short: Tensor, long: Tensor) -> float:
        more = long.shape[1] - short.shape[1]
        if more <= 0:
            raise EncoderError(
                f"{type(self.model).__name__} gives {long.shape[1]} frames whatever the length of the audio, so "
                "which of them are real cannot be told: write an encoder file that knows"
            )
        return 1000.0 * (_PROBED_SECONDS[1] - _PROBED_SECONDS[0]) / more


def _stacked(rows: list[Tensor]) -> tuple[Tensor, None, Tensor]:
    counts = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), None, counts

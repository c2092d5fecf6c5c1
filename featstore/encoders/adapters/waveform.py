"""Models of waveforms: wav2vec2, data2vec-audio, HuBERT, WavLM, UniSpeech(-SAT), wav2vec2-conformer."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor, nn

from featstore.encoders.adapters.spectrograms import at_least, full_precision, given_or_whole, real

__all__ = ["WaveformEncoder", "normalised"]


def normalised(audio: Tensor, lengths: Tensor) -> Tensor:
    """Scale the real samples of each row to zero mean and unit variance, with zeros after them.

    float32 (batch, samples), int64 (batch,) -> float32 (batch, samples). ``Wav2Vec2FeatureExtractor`` does the same to
    a single clip.
    """
    keep = real(lengths, audio.shape[1])
    count = lengths[:, None]
    mean = audio.masked_fill(~keep, 0.0).double().sum(dim=1, keepdim=True) / count
    apart = (audio - mean).masked_fill(~keep, 0.0)
    variance = apart.square().sum(dim=1, keepdim=True) / count
    return (apart / (variance + 1e-7).sqrt()).float()


class WaveformEncoder(nn.Module):
    """A convolutional feature encoder and a transformer.

    An attention mask is passed if, according to the feature extractor, the model was trained with one. Padding then has
    no effect, except where the architecture mixes it in: in the stacked positional convolutions of data2vec-audio, and
    in the convolutions of an adapter.

    A model that was trained without a mask (``feat_extract_norm`` is ``group``, as in wav2vec2-base) processes the
    zeros after a window, in the statistics of its first layer and in its attention, as in training. Its output depends
    on the window and on the padded length, which the length of the window determines. ``--padding exact`` avoids
    padding.

    Parameters
    ----------
    model : Module
        A model of transformers.
    extractor
        The feature extractor of the model; its processing is repeated here, over the real samples of each window.
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
        """Run one pass: frames and their counts for each hidden state, and for None the model's own output."""
        masks = self.masks and lengths is not None
        lengths = given_or_whole(audio, lengths)
        with full_precision(audio):
            waves = normalised(audio, lengths.clamp(min=1)) if self.normalises else audio
        waves = at_least(waves, self._least_samples)
        lengths = lengths.clamp(min=self._least_samples)
        with warnings.catch_warnings():  # WavLM's attention has mask and bias of different dtypes, which is harmless
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
        """Count frames by the model's own function; an adapter shortens the last output and no hidden state."""
        before_adapter = {"add_adapter": False} if self._adapted and of_layer else {}
        counted: Tensor = self.model._get_feat_extract_output_lengths(lengths, **before_adapter)
        return counted.long()


def _least_samples(kernels: Any, strides: Any) -> int:
    """Return the number of samples of one frame."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        samples = (samples - 1) * stride + kernel
    return int(samples)

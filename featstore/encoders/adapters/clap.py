"""The audio tower of CLAP: one vector for a window of at most ten seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.spectrograms import full_precision, given_or_whole, power_spectrum

__all__ = ["ClapEncoder"]


class ClapEncoder(nn.Module):
    """The audio embedding of CLAP, not scaled to unit length. Each window has one frame, which is the same vector.

    A window shorter than ten seconds is repeated and padded as in the model's feature extractor. The extractor fuses
    views of longer clips; here these are cut into windows, and no window is marked as longer, alone or in a batch.

    Parameters
    ----------
    tower, projection : Module
        ``ClapAudioModel``, and the projection of its output to the space shared with text.
    extractor
        The feature extractor of the model.
    text : ClapText, optional
        The text tower. It is not a submodule: the identity of the audio embeddings does not include it.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, tower: Any, projection: Any, *, extractor: Any, text: Any = None) -> None:
        super().__init__()
        self.tower = tower
        self.projection = projection
        self.sampling_rate = int(extractor.sampling_rate)
        self.input_seconds = float(extractor.max_length_s)
        self.output_dim = int(projection.linear2.out_features)
        self.hop_size_in_ms = 1000.0 * self.input_seconds
        self._hop_samples = int(extractor.hop_length)
        self._input_samples = int(extractor.nb_max_samples)
        self._padding = str(extractor.padding)
        self._views = 4 if extractor.truncation == "fusion" else 1
        filters = extractor.mel_filters if extractor.truncation == "fusion" else extractor.mel_filters_slaney
        self.register_buffer("filters", torch.from_numpy(filters).double(), persistent=False)
        hann = torch.hann_window(int(extractor.fft_window_size), dtype=torch.float64)
        self.register_buffer("window", hann, persistent=False)
        self.text = text
        self.encode_text = None if text is None else self._text_vectors

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (batch, samples) -> (batch, 1, output_dim), (batch, output_dim), ones int64 (batch,)."""
        lengths = given_or_whole(audio, lengths)
        with full_precision(audio):
            features = self.features(audio, lengths)
        longer = torch.zeros((len(audio), 1), dtype=torch.bool, device=audio.device)
        vectors = self.projection(self.tower(input_features=features, is_longer=longer).pooler_output)
        return vectors[:, None], vectors, torch.ones_like(lengths)

    def _text_vectors(self, texts: list[str]) -> Tensor:
        """Return the text embedding of CLAP, not scaled to unit length, (texts, output_dim)."""
        vectors: Tensor = self.text(texts, device=self.window.device)
        return vectors

    def features(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, views, steps, mels), as in ``ClapFeatureExtractor``."""
        lengths = lengths.clamp(1, self._input_samples)[:, None]
        at = torch.arange(self._input_samples, device=audio.device)[None, :]
        times = {"repeatpad": self._input_samples // lengths, "repeat": self._input_samples // lengths + 1}
        repeats = times.get(self._padding, torch.ones_like(lengths))
        waves = audio.double().gather(1, at % lengths).masked_fill(at >= repeats * lengths, 0.0)
        power = power_spectrum(waves, window=self.window, hop_samples=self._hop_samples)
        decibels = 10.0 * (power @ self.filters).clamp(min=1e-10).log10()
        return decibels.float()[:, None].expand(-1, self._views, -1, -1)

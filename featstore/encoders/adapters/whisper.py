"""The encoder of Whisper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.spectrograms import at_least, full_precision, given_or_whole, power_spectrum

__all__ = ["WhisperEncoder"]


class WhisperEncoder(nn.Module):
    """Log-mel spectrum of 30 s for every window; frames after the end of the window are trimmed.

    The model was trained on 30 s with silence at the end and no mask, so the input is padded with silence. The feature
    extractor computes a spectrum every 10 ms and the second convolution halves the rate: a frame is 20 ms.

    Parameters
    ----------
    encoder : Module
        The encoder of the model.
    extractor
        The feature extractor of the model, for its filters and lengths.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, encoder: Any, *, extractor: Any) -> None:
        super().__init__()
        self.model = encoder
        self.sampling_rate = int(extractor.sampling_rate)
        self.input_seconds = float(extractor.chunk_length)
        self.output_dim = self.layer_dim = int(encoder.config.d_model)
        self.n_layers = int(encoder.config.encoder_layers)
        self._hop_samples = int(extractor.hop_length)
        stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        self.hop_size_in_ms = self.layer_hop_in_ms = 1000.0 * stride * self._hop_samples / self.sampling_rate
        self._input_samples = round(self.input_seconds * self.sampling_rate)
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(int(extractor.n_fft)), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, 1500, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """Run one pass: frames and their counts for each hidden state, and for None the encoder's own output."""
        lengths = given_or_whole(audio, lengths)
        with full_precision(audio):
            features = self.features(audio)
        found = self.model(features, output_hidden_states=any(layer is not None for layer in layers))
        steps = (lengths.clamp(1, self._input_samples) + self._hop_samples - 1) // self._hop_samples
        n_frames = self.model._get_feat_extract_output_lengths(steps).long()
        return tuple(
            (found.last_hidden_state if layer is None else found.hidden_states[layer], None, n_frames)
            for layer in layers
        )

    def features(self, audio: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, mels, steps), as in ``WhisperFeatureExtractor``."""
        waves = at_least(audio[:, : self._input_samples], self._input_samples)
        power = power_spectrum(waves, window=self.window, hop_samples=self._hop_samples)[:, :-1]
        logs = (power @ self.filters).clamp(min=1e-10).log10()
        loudest = logs.amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(logs, loudest - 8.0) + 4.0) / 4.0).transpose(1, 2)

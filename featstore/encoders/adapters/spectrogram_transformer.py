"""The audio spectrogram transformer: patches of a log-mel spectrum of fixed length."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from featstore.encoders.adapters.kaldi_features import HOP_SAMPLES, WINDOW_SAMPLES, FilterBanks, steps_of
from featstore.encoders.adapters.spectrograms import at_least, full_precision, given_or_whole, real

__all__ = ["PatchEncoder"]


class PatchEncoder(nn.Module):
    """Audio spectrogram transformer. A frame is the mean of its patches over frequency.

    The utterance vector is the mean of the class and distillation tokens, which is the input of the model's head.

    Parameters
    ----------
    model : Module
        ``ASTModel``.
    extractor
        The feature extractor of the model.
    banks : FilterBanks
        Filter banks of that extractor.
    """

    def __init__(self, model: Any, *, extractor: Any, banks: FilterBanks) -> None:
        super().__init__()
        self.model = model
        self.banks = banks
        config = model.config
        self.sampling_rate = int(extractor.sampling_rate)
        self.input_seconds = int(extractor.max_length) * HOP_SAMPLES / self.sampling_rate
        self.output_dim = self.layer_dim = int(config.hidden_size)
        self.n_layers = int(config.num_hidden_layers)
        self.hop_size_in_ms = self.layer_hop_in_ms = 1000.0 * config.time_stride * HOP_SAMPLES / self.sampling_rate
        self._steps = int(extractor.max_length)
        self._shift = (float(extractor.mean), 2.0 * float(extractor.std)) if extractor.do_normalize else (0.0, 1.0)
        self._rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self._patch, self._stride = int(config.patch_size), int(config.time_stride)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), (batch, output_dim), int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Run one pass: frames, utterance vectors and counts for each hidden state, and for None the model's output."""
        lengths = given_or_whole(audio, lengths)
        steps = steps_of(lengths.clamp(min=WINDOW_SAMPLES)).clamp(max=self._steps)
        with full_precision(audio):
            features = self.features(audio, steps)
        found = self.model(features, output_hidden_states=any(layer is not None for layer in layers))
        n_frames = ((steps - self._patch) // self._stride + 1).clamp(min=1)
        states = [found.last_hidden_state if layer is None else found.hidden_states[layer] for layer in layers]
        return tuple((self._over_frequency(state), state[:, :2].mean(dim=1), n_frames) for state in states)

    def _over_frequency(self, state: Tensor) -> Tensor:
        """(batch, 2 + rows * frames, dim) -> (batch, frames, dim): patches are ordered by frequency, then by time."""
        batch, tokens, dim = state.shape
        return state[:, 2:].reshape(batch, self._rows, (tokens - 2) // self._rows, dim).mean(dim=1)

    def features(self, audio: Tensor, steps: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, steps, mels), as in ``ASTFeatureExtractor``."""
        banks: Tensor = self.banks(at_least(audio, WINDOW_SAMPLES))
        banks = banks[:, : self._steps]
        banks = banks.masked_fill(~real(steps, banks.shape[1])[:, :, None], 0.0)
        banks = nn.functional.pad(banks, (0, 0, 0, self._steps - banks.shape[1]))
        mean, scale = self._shift
        return ((banks - mean) / scale).float()

"""wav2vec2-bert: a conformer over log-mel filter banks, normalised for each window."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from featstore.encoders.adapters.kaldi_features import HOP_SAMPLES, WINDOW_SAMPLES, FilterBanks, steps_of
from featstore.encoders.adapters.spectrograms import at_least, full_precision, given_or_whole, real

__all__ = ["FbankEncoder"]

_LEAST_SAMPLES = WINDOW_SAMPLES + HOP_SAMPLES  # two steps: the deviation of one step is undefined
_INT16 = 2.0**15


class FbankEncoder(nn.Module):
    """wav2vec2-bert. Two filter bank steps form a frame; each band has zero mean and unit variance over the window.

    An attention mask is always passed, so padding has no effect.

    Parameters
    ----------
    model : Module
        ``Wav2Vec2BertModel``.
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
        self.n_layers = int(config.num_hidden_layers)
        self.layer_dim = int(config.hidden_size)
        self._stack = int(extractor.stride)
        self.layer_hop_in_ms = 1000.0 * self._stack * HOP_SAMPLES / self.sampling_rate
        self._adapted = bool(config.add_adapter)
        self.output_dim = int(config.output_hidden_size) if self._adapted else self.layer_dim
        self.hop_size_in_ms = self.layer_hop_in_ms * (
            config.adapter_stride**config.num_adapter_layers if self._adapted else 1
        )

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        """float32 (batch, samples) -> (batch, frames, output_dim), None, int64 (batch,)."""
        return self.forward_layers(audio, lengths, layers=(None,))[0]

    def forward_layers(
        self, audio: Tensor, lengths: Tensor | None = None, *, layers: tuple[int | None, ...]
    ) -> tuple[tuple[Tensor, None, Tensor], ...]:
        """Run one pass: frames and their counts for each hidden state, and for None the model's own output."""
        lengths = given_or_whole(audio, lengths)
        steps = steps_of(lengths.clamp(min=_LEAST_SAMPLES))
        with full_precision(audio):
            features = self.features(audio, steps)
        n_frames = steps // self._stack
        found = self.model(
            features,
            attention_mask=real(n_frames, features.shape[1]).long(),
            output_hidden_states=any(layer is not None for layer in layers),
        )
        last: Tensor = self.model._get_feat_extract_output_lengths(n_frames)
        return tuple(
            (found.last_hidden_state, None, last.long())
            if layer is None
            else (found.hidden_states[layer], None, n_frames)
            for layer in layers
        )

    def features(self, audio: Tensor, steps: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, frames, stack * mels), as in ``SeamlessM4TFeatureExtractor``.

        The extractor normalises in float32, with errors up to 1e-4 in nearly constant bands; this method uses float64.
        """
        banks: Tensor = self.banks(at_least(audio, _LEAST_SAMPLES) * _INT16)
        banks = banks.float().double()  # rounded as in the extractor
        keep = real(steps, banks.shape[1])[:, :, None]
        mean = banks.masked_fill(~keep, 0.0).sum(dim=1, keepdim=True) / steps[:, None, None]
        apart = (banks - mean).masked_fill(~keep, 0.0)
        variance = apart.square().sum(dim=1, keepdim=True) / (steps[:, None, None] - 1)
        scaled = apart / (variance + 1e-7).sqrt()
        batch, available, mels = scaled.shape
        frames = available // self._stack
        return scaled[:, : frames * self._stack].reshape(batch, frames, self._stack * mels).float()

"""transformers models that take a spectrogram: Whisper, CLAP, wav2vec2-bert and AST, and their features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "HOP_SAMPLES",
    "WINDOW_SAMPLES",
    "ClapEncoder",
    "FbankEncoder",
    "FilterBanks",
    "PatchEncoder",
    "WhisperEncoder",
    "at_least",
    "full_precision",
    "given_or_whole",
    "power_spectrum",
    "real",
    "steps_of",
]


def full_precision(audio: Tensor) -> torch.autocast:
    """Lift a lower precision of the forward pass: it is for the model, and would spoil a spectrum."""
    return torch.autocast(audio.device.type, enabled=False)


def at_least(audio: Tensor, samples: int) -> Tensor:
    """Audio (batch, n) with zeros at its end where n is less than `samples`."""
    return torch.nn.functional.pad(audio, (0, max(0, samples - audio.shape[1])))


def given_or_whole(audio: Tensor, lengths: Tensor | None) -> Tensor:
    """Samples of each row, int64 (batch,): those that are given, or else all of them."""
    return torch.full((len(audio),), audio.shape[1], device=audio.device) if lengths is None else lengths


def real(lengths: Tensor, available: int) -> Tensor:
    """Which of so many places are within the length of each row, bool (batch, available)."""
    return torch.arange(available, device=lengths.device)[None, :] < lengths[:, None]


def power_spectrum(audio: Tensor, *, window: Tensor, hop_samples: int) -> Tensor:
    """Power of centred frames, the ends mirrored: (batch, frames, bins) of the type of `audio`."""
    spectrum = torch.stft(audio, len(window), hop_samples, window=window, return_complex=True)
    power: Tensor = spectrum.abs().square().transpose(1, 2)
    return power


WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
_FFT = 512
_FLOOR = 1.192092955078125e-07
_PREEMPHASIS = 0.97


def steps_of(lengths: Tensor) -> Tensor:
    """Steps of a filter bank that so many samples, at least 400, make."""
    return (lengths - WINDOW_SAMPLES) // HOP_SAMPLES + 1


class FilterBanks(nn.Module):
    """25 ms every 10 ms, pre-emphasis in each frame, nothing padded. In float64, as the other features here.

    Parameters
    ----------
    filters, window : Tensor
        float64 (257, mels) and (400,), as the feature extractor has them. They are no weights: no state holds them.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, *, filters: Tensor, window: Tensor) -> None:
        super().__init__()
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", window, persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """(batch, samples), at least 400 samples -> float64 (batch, steps, mels)."""
        frames = audio.double().unfold(1, WINDOW_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
        frames = (frames - _PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(frames, n=_FFT).abs().square()
        banks: Tensor = (power @ self.filters).clamp(min=_FLOOR).log()
        return banks


class WhisperEncoder(nn.Module):
    """Log-mel spectrum of 30 s, whatever the window; frames past the window's end are trimmed.

    It was trained on 30 s with silence at the end and no mask, so silence is what it sees here. Its feature extractor
    makes a spectrum every 10 ms and its second convolution halves that: a frame is 20 ms.

    Parameters
    ----------
    encoder : Module
        The encoder half.
    extractor
        The model's feature extractor, whose filters and lengths count.
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
        """One pass: frames and their counts for each hidden state, and for None the encoder's own output."""
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
        """float32 (batch, samples) -> (batch, mels, steps), as ``WhisperFeatureExtractor`` makes them."""
        waves = at_least(audio[:, : self._input_samples], self._input_samples)
        power = power_spectrum(waves, window=self.window, hop_samples=self._hop_samples)[:, :-1]
        logs = (power @ self.filters).clamp(min=1e-10).log10()
        loudest = logs.amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(logs, loudest - 8.0) + 4.0) / 4.0).transpose(1, 2)


class ClapEncoder(nn.Module):
    """The vector that CLAP compares with a text's, not scaled to unit length. A window is one frame: that vector.

    A window shorter than ten seconds is repeated and padded as its feature extractor does it. The extractor's fusion of
    views is for longer clips, which are cut into windows here; alone or in a batch, no window counts as longer.

    Parameters
    ----------
    tower, projection : Module
        ``ClapAudioModel`` and what leads from it to the space that audio and text share.
    extractor
        Its feature extractor.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, tower: Any, projection: Any, *, extractor: Any) -> None:
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

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (batch, samples) -> (batch, 1, output_dim), (batch, output_dim), ones int64 (batch,)."""
        lengths = given_or_whole(audio, lengths)
        with full_precision(audio):
            features = self.features(audio, lengths)
        longer = torch.zeros((len(audio), 1), dtype=torch.bool, device=audio.device)
        vectors = self.projection(self.tower(input_features=features, is_longer=longer).pooler_output)
        return vectors[:, None], vectors, torch.ones_like(lengths)

    def features(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, views, steps, mels), as ``ClapFeatureExtractor`` makes them."""
        lengths = lengths.clamp(1, self._input_samples)[:, None]
        at = torch.arange(self._input_samples, device=audio.device)[None, :]
        times = {"repeatpad": self._input_samples // lengths, "repeat": self._input_samples // lengths + 1}
        repeats = times.get(self._padding, torch.ones_like(lengths))
        waves = audio.double().gather(1, at % lengths).masked_fill(at >= repeats * lengths, 0.0)
        power = power_spectrum(waves, window=self.window, hop_samples=self._hop_samples)
        decibels = 10.0 * (power @ self.filters).clamp(min=1e-10).log10()
        return decibels.float()[:, None].expand(-1, self._views, -1, -1)


_LEAST_SAMPLES = WINDOW_SAMPLES + HOP_SAMPLES  # two steps: a deviation over one is no number
_INT16 = 2.0**15


class FbankEncoder(nn.Module):
    """Two steps of a filter bank make a frame; each band has zero mean and unit variance over the window.

    An attention mask always goes in, so padding changes nothing.

    Parameters
    ----------
    model : Module
        ``Wav2Vec2BertModel``.
    extractor
        Its feature extractor.
    banks : FilterBanks
        As that extractor makes them.
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
        """One pass: frames and their counts for each hidden state, and for None the model's own output."""
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
        """float32 (batch, samples) -> (batch, frames, stack * mels), as ``SeamlessM4TFeatureExtractor`` makes them.

        It normalises in float32, which costs it up to 1e-4 in bands that hardly change; here it is float64.
        """
        banks: Tensor = self.banks(at_least(audio, _LEAST_SAMPLES) * _INT16)
        banks = banks.float().double()  # rounded as there
        keep = real(steps, banks.shape[1])[:, :, None]
        mean = banks.masked_fill(~keep, 0.0).sum(dim=1, keepdim=True) / steps[:, None, None]
        apart = (banks - mean).masked_fill(~keep, 0.0)
        variance = apart.square().sum(dim=1, keepdim=True) / (steps[:, None, None] - 1)
        scaled = apart / (variance + 1e-7).sqrt()
        batch, available, mels = scaled.shape
        frames = available // self._stack
        return scaled[:, : frames * self._stack].reshape(batch, frames, self._stack * mels).float()


class PatchEncoder(nn.Module):
    """A frame is the mean of the patches that stand over one another; the utterance vector is the model's own.

    That vector is the mean of the class and the distillation token, which is what the model's head reads.

    Parameters
    ----------
    model : Module
        ``ASTModel``.
    extractor
        Its feature extractor.
    banks : FilterBanks
        As that extractor makes them.
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
        """One pass: frames, own vectors and counts for each hidden state, and for None the model's own output."""
        lengths = given_or_whole(audio, lengths)
        steps = steps_of(lengths.clamp(min=WINDOW_SAMPLES)).clamp(max=self._steps)
        with full_precision(audio):
            features = self.features(audio, steps)
        found = self.model(features, output_hidden_states=any(layer is not None for layer in layers))
        n_frames = ((steps - self._patch) // self._stride + 1).clamp(min=1)
        states = [found.last_hidden_state if layer is None else found.hidden_states[layer] for layer in layers]
        return tuple((self._over_frequency(state), state[:, :2].mean(dim=1), n_frames) for state in states)

    def _over_frequency(self, state: Tensor) -> Tensor:
        """(batch, 2 + rows * frames, dim) -> (batch, frames, dim): patches are in order of frequency, then of time."""
        batch, tokens, dim = state.shape
        return state[:, 2:].reshape(batch, self._rows, (tokens - 2) // self._rows, dim).mean(dim=1)

    def features(self, audio: Tensor, steps: Tensor) -> Tensor:
        """float32 (batch, samples) -> (batch, steps, mels), as ``ASTFeatureExtractor`` makes them."""
        banks: Tensor = self.banks(at_least(audio, WINDOW_SAMPLES))
        banks = banks[:, : self._steps]
        banks = banks.masked_fill(~real(steps, banks.shape[1])[:, :, None], 0.0)
        banks = nn.functional.pad(banks, (0, 0, 0, self._steps - banks.shape[1]))
        mean, scale = self._shift
        return ((banks - mean) / scale).float()

"""Any other transformers model with a feature extractor, slower than the specific adapters."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.adapters.spectrograms import at_least, full_precision
from featstore.errors import EncoderError

__all__ = ["OtherEncoder"]

_LEAST_SECONDS = (0.1, 0.5, 1.0)
_PROBED_SECONDS = (1.0, 5.0)


class OtherEncoder(nn.Module):
    """A model whose own feature extractor prepares each window by itself, on the CPU; equal shapes are batched.

    Nothing is padded beyond what the extractor does to a single window, so every frame is real. The hop and the width
    are measured on noise.

    Parameters
    ----------
    model : Module
        The encoder, for encoder-decoder models.
    extractor
        The feature extractor of the model.

    Raises
    ------
    EncoderError
        The model returns no frames, or the same number for every length.
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
        """Return frames and their counts for each hidden state, and for None the model's own output."""
        counts = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
        rows: dict[int, list[Tensor]] = {}
        with full_precision(audio):  # autocast on a CPU would affect extractors that are written in torch
            groups = self._by_shape(audio, counts)
        for together in groups:
            numbers = [number for number, _ in together]
            states = self._states([inputs for _, inputs in together], audio.device)
            chosen = [states[-1] if layer is None else states[layer] for layer in layers]
            for place, number in enumerate(numbers):
                rows[number] = [state[place] for state in chosen]
        return tuple(_stacked([rows[number][at] for number in range(len(audio))]) for at in range(len(layers)))

    def _by_shape(self, audio: Tensor, counts: list[int]) -> list[list[tuple[int, dict[str, Tensor]]]]:
        """Group rows, with the extractor's output for each, by its shapes."""
        groups: dict[object, list[tuple[int, dict[str, Tensor]]]] = defaultdict(list)
        for number, count in enumerate(counts):
            wave = at_least(audio[number : number + 1, :count], self._least_samples)[0]
            found = self._extractor(wave.cpu().numpy(), sampling_rate=self.sampling_rate, return_tensors="pt")
            inputs = {name: value for name, value in found.items() if name in self._takes}
            groups[tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))].append((number, inputs))
        return list(groups.values())

    def _states(self, inputs: list[dict[str, Tensor]], device: torch.device) -> list[Tensor]:
        """Return the hidden states if the model has them, followed by its own output."""
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
            except (RuntimeError, ValueError, IndexError):  # too short for a kernel or window
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

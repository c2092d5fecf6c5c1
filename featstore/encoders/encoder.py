"""An encoder as it was loaded: what it declares, what it is, and one checked forward pass."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.contract import ContractFacts, EncoderOutput, check_output, contract_facts
from featstore.encoders.pooling import Output
from featstore.encoders.source_code import CodeModule, code_sha256
from featstore.encoders.specs import spec_with_layer
from featstore.errors import EncoderContractError, EncoderError
from featstore.records import NamedBy, Recipe

__all__ = ["Encoder", "told_failure"]

_LIGHT_PARAMETERS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A loaded encoder: the module, what it declares, what it is, and what is kept of each forward pass.

    Attributes
    ----------
    spec : str
        What it was asked for by, without a layer.
    identity : mapping
        What it is: see `featstore.encoders.fingerprint`.
    earlier : mapping or None
        What it was to an earlier featstore, under which older stores have it.
    code : tuple of CodeModule
        The modules of the user's that it is made of.
    """

    module: nn.Module
    name: str
    spec: str
    identity: Mapping[str, Any]
    outputs: tuple[Output, ...] = (Output(),)
    earlier: Mapping[str, Any] | None = None
    code: tuple[CodeModule, ...] = ()
    named_by: NamedBy = "class"
    facts: ContractFacts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", contract_facts(self.module))
        self._check_outputs()
        self._check_on_noise()

    def made_of(self, code: tuple[CodeModule, ...]) -> Encoder:
        """The same encoder, of which it is known now what code it is made of."""
        encoder = copy.copy(self)
        object.__setattr__(encoder, "code", code)
        object.__setattr__(encoder, "identity", {**self.identity, "code_sha256": code_sha256(code)})
        return encoder

    def recipe(
        self,
        *,
        padding: str,
        precision: str,
        frame_dtype: str,
        resampler: str,
        format_version: int,
        max_window_seconds: float | None = None,
        output: Output | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """Everything that decides the numbers this encoder will make of one output, the first, under these settings.

        `identity` is the encoder's own unless it is given.
        """
        output = output or self.outputs[0]
        layer = {} if output.layer is None else {"layer": output.layer}
        return Recipe(
            encoder=f"{self.name}{output.suffix}",
            encoder_identity={**(self.identity if identity is None else identity), **layer},
            sample_rate_hz=self.facts.sample_rate_hz,
            dim=self.dim_of(output.layer),
            hop_seconds=self.hop_seconds_of(output.layer),
            padding=padding,
            precision=precision,
            frame_dtype=frame_dtype,
            resampler=resampler,
            format_version=format_version,
            pool=output.pool,
            max_window_seconds=self._cut_by_request(max_window_seconds),
            named_by=self.named_by,
        )

    def spec_of(self, output: Output) -> str:
        """How one output is named on the command line."""
        return spec_with_layer(self.spec, output.layer)

    def longest_window_seconds(self, asked: float | None) -> float | None:
        """Audio that a window may hold: the least of what the encoder takes and what is asked for."""
        limits = [limit for limit in (self.facts.input_seconds, asked) if limit is not None]
        return min(limits, default=None)

    def _cut_by_request(self, asked: float | None) -> float | None:
        """What is asked for, where it cuts more than the encoder's own limit, which is the same for every recipe."""
        own = self.facts.input_seconds
        return asked if asked is not None and (own is None or asked < own) else None

    def dim_of(self, layer: int | None) -> int:
        """Width of a layer's frames."""
        return self.facts.dim if layer is None or self.facts.layers is None else self.facts.layers.dim

    def hop_seconds_of(self, layer: int | None) -> float:
        """Time from one frame of a layer to the next."""
        return self.facts.hop_seconds if layer is None or self.facts.layers is None else self.facts.layers.hop_seconds

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Layers of its outputs, each once."""
        return tuple(dict.fromkeys(output.layer for output in self.outputs))

    @property
    def has_weights(self) -> bool:
        """Whether it has parameters, and so gains from a lower precision on a GPU."""
        return any(True for _ in self.module.parameters())

    @property
    def is_light(self) -> bool:
        """Whether it has so few parameters, or none, that one core of a CPU encodes about as fast as another decodes.

        Were each of them used at every sample of a second, that would be some hundred million products, which a core
        does in a hundredth of it; mostly they are used far less often.
        """
        return sum(parameter.numel() for parameter in self.module.parameters()) <= _LIGHT_PARAMETERS

    def compile(self) -> None:
        """Compile the forward pass (``torch.compile``) for inputs of any length, once; the first batches are slow."""
        if self.module._compiled_call_impl is not None:
            return
        self.module.compile(dynamic=True)
        if self.facts.layers is not None:
            module: Any = self.module
            module.forward_layers = torch.compile(module.forward_layers, dynamic=True)

    def forward(self, waves: Tensor, lengths: Tensor | None) -> tuple[EncoderOutput, ...]:
        """One forward pass: a checked output for each of `layers`. `lengths` goes to an encoder that takes it."""
        given = {} if lengths is None or not self.facts.takes_lengths else {"lengths": lengths}
        if self.layers == (None,):
            found = (self.module(waves, **given),)
        else:
            found = tuple(self.module.forward_layers(waves, **given, layers=self.layers))  # type: ignore[operator]
            if len(found) != len(self.layers):
                raise EncoderContractError(
                    f"{self.name}.forward_layers must return an output for each of {len(self.layers)} layers: "
                    f"got {len(found)}"
                )
        return tuple(
            check_output(output, name=self.name, batch=len(waves), dim=self.dim_of(layer))
            for output, layer in zip(found, self.layers, strict=True)
        )

    def _check_outputs(self) -> None:
        chosen = [layer for layer in self.layers if layer is not None]
        if chosen and self.facts.layers is None:
            raise EncoderError(f"{self.name} has no layers to choose from: leave out --layers and #layer")
        for layer in chosen:
            most = self.facts.layers.count if self.facts.layers is not None else 0
            if not 0 <= layer <= most:
                raise EncoderError(f"{self.name} has layers 0 to {most} and last: got {layer}")

    def _check_on_noise(self) -> None:
        """One second of noise and one of silence, so that a broken encoder is found before any shard is read."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand((2, self.facts.sample_rate_hz), generator=generator) - 0.5
        noise[1] = 0.0
        try:
            with torch.inference_mode():
                outputs = self.forward(noise, None)
        except EncoderContractError:
            raise
        except Exception as error:
            raise EncoderContractError(told_failure(self.name, noise.shape, error)) from error
        pools = {output.pool for output in self.outputs}
        if pools != {"mean"} and any(each.utterance is not None and each.frames.shape[1] == 1 for each in outputs):
            raise EncoderError(f"{self.name} gives one vector for a window, which leaves nothing to pool: --pool mean")
        for output in outputs:
            for row, what in enumerate(("noise", "silence")):
                vectors = output.frames[row]
                if output.utterance is not None:
                    vectors = torch.cat([vectors, output.utterance[row : row + 1]])
                if not torch.isfinite(vectors).all():
                    raise EncoderContractError(
                        f"{self.name}.forward must return finite numbers: NaN or infinity for {what}"
                    )


def told_failure(name: str, shape: Sequence[int], error: Exception) -> str:
    """One line about a forward pass that failed."""
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    return f"{name}.forward failed on float32 {tuple(shape)}: {reason}"

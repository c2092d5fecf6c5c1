"""A loaded encoder: its declarations, its identity, and its checked forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featstore.encoders.contract import (
    ContractFacts,
    EncoderOutput,
    LayerFacts,
    check_output,
    check_text_output,
    contract_facts,
)
from featstore.encoders.pooling import Output
from featstore.encoders.source_code import CodeModule, code_sha256
from featstore.encoders.specs import spec_with_layer
from featstore.errors import EncoderContractError, EncoderError
from featstore.formatting import one_line
from featstore.records import NamedBy, Recipe, check_encoder_name, sha256_of

__all__ = ["Encoder", "failure_line"]

_LIGHT_PARAMETERS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A loaded encoder: the module, its declarations, its identity, and the outputs that are kept of a forward pass.

    Attributes
    ----------
    spec : str
        Spec that the encoder was loaded by, without a layer.
    identity : mapping
        See `featstore.encoders.fingerprint`.
    outputs : tuple of Output
        Layers and pools that are kept.
    earlier : mapping or None
        Identity in stores of an earlier version of featstore.
    code : tuple of CodeModule
        User modules that the encoder consists of.
    chosen_name : str or None
        Name that the user chose for its feature sets, if it is not ``name``; not part of its identity.
    text_identity : callable
        See `featstore.encoders.contract.LoadedModel`.
    """

    module: nn.Module
    name: str
    spec: str
    identity: Mapping[str, Any]
    outputs: tuple[Output, ...] = (Output(),)
    earlier: Mapping[str, Any] | None = None
    code: tuple[CodeModule, ...] = ()
    named_by: NamedBy = "class"
    chosen_name: str | None = None
    text_identity: Callable[[], Mapping[str, Any]] = dict
    facts: ContractFacts = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "facts", contract_facts(self.module))
        self._check_outputs()
        self._check_on_noise()

    def with_code(self, code: tuple[CodeModule, ...]) -> Encoder:
        """Return the encoder with its user modules, if it has any, which become part of its identity."""
        if not code:
            return self
        encoder = copy.copy(self)
        object.__setattr__(encoder, "code", code)
        object.__setattr__(encoder, "identity", {**self.identity, "code_sha256": code_sha256(code)})
        return encoder

    def named(self, name: str | None) -> Encoder:
        """Return a copy of the encoder whose feature sets have another name; None keeps the default.

        Raises UsageError for a name that cannot be used.
        """
        if name is None:
            return self
        check_encoder_name(name)
        encoder = copy.copy(self)
        object.__setattr__(encoder, "chosen_name", name)
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
        """Return the recipe: everything that determines the numbers of one output under these settings.

        The defaults of `output` and `identity` are the first output and the identity of the encoder.
        """
        output = output or self.outputs[0]
        layer = {} if output.layer is None else {"layer": output.layer}
        recipe = Recipe(
            encoder=f"{self.name}{output.suffix}",
            encoder_identity={**(self.identity if identity is None else identity), **layer},
            sample_rate_hz=self.facts.sample_rate_hz,
            dim=self.facts_of(output.layer).dim,
            hop_seconds=self.facts_of(output.layer).hop_seconds,
            padding=padding,
            precision=precision,
            frame_dtype=frame_dtype,
            resampler=resampler,
            format_version=format_version,
            pool=output.pool,
            max_window_seconds=self._cut_by_request(max_window_seconds),
            named_by=self.named_by,
        )
        return recipe if self.chosen_name is None else recipe.renamed(f"{self.chosen_name}{output.suffix}")

    @property
    def shown_name(self) -> str:
        """Name of its feature sets, without suffixes of layers and pools."""
        return self.chosen_name or self.name

    def spec_of(self, output: Output) -> str:
        """Return the spec of one output on the command line."""
        return spec_with_layer(self.spec, output.layer)

    def longest_window_seconds(self, requested: float | None) -> float | None:
        """Return the maximum duration of a window: the smaller of the encoder's limit and `requested`."""
        limits = [limit for limit in (self.facts.input_seconds, requested) if limit is not None]
        return min(limits, default=None)

    def _cut_by_request(self, requested: float | None) -> float | None:
        """Return `requested` if it is below the encoder's own limit, which is not part of a recipe."""
        own = self.facts.input_seconds
        return requested if requested is not None and (own is None or requested < own) else None

    def facts_of(self, layer: int | None) -> ContractFacts | LayerFacts:
        """Return the declarations of a layer: its width and hop."""
        return self.facts if layer is None or self.facts.layers is None else self.facts.layers

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Distinct layers of its outputs."""
        return tuple(dict.fromkeys(output.layer for output in self.outputs))

    @property
    def has_weights(self) -> bool:
        """Whether the encoder has parameters, so that a lower precision speeds it up on a GPU."""
        return any(True for _ in self.module.parameters())

    @property
    def is_light(self) -> bool:
        """Whether the encoder has so few parameters that one CPU core encodes about as fast as another decodes.

        If each of 20,000 parameters were used for every sample of a second of audio, a core would need some hundred
        million products, or about 10 ms; most parameters are used far less often.
        """
        return sum(parameter.numel() for parameter in self.module.parameters()) <= _LIGHT_PARAMETERS

    def compile(self) -> None:
        """Compile the forward pass (``torch.compile``) for inputs of any length; the first batches are slow."""
        if self.module._compiled_call_impl is not None:
            return
        self.module.compile(dynamic=True)
        if self.facts.layers is not None:
            module: Any = self.module
            module.forward_layers = torch.compile(module.forward_layers, dynamic=True)

    def forward(self, waves: Tensor, lengths: Tensor | None) -> tuple[EncoderOutput, ...]:
        """Run one forward pass, and return a checked output for each of `layers`; `lengths` is passed if supported."""
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
            check_output(output, name=self.name, batch=len(waves), dim=self.facts_of(layer).dim)
            for output, layer in zip(found, self.layers, strict=True)
        )

    @property
    def text_sha256(self) -> str | None:
        """Hash of what determines the vectors of texts besides the recipe; None without a text tower."""
        return sha256_of(self.text_identity()) if self.facts.takes_text else None

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return the checked vectors of texts, (texts, dim).

        Raises
        ------
        EncoderError
            The encoder has no text tower, or fails on the texts.
        EncoderContractError
            Its output breaks the contract.
        """
        if not self.facts.takes_text:
            raise EncoderError(
                f"{self.name} has no text tower: text needs an encoder with encode_text, such as an hf: CLAP model"
            )
        try:
            output = self.module.encode_text(list(texts))  # type: ignore[operator]
        except Exception as error:
            raise EncoderError(f"{self.name}.encode_text failed: {one_line(error, typed=True)}") from error
        return check_text_output(output, name=self.name, texts=len(texts), dim=self.facts.dim)

    def _check_outputs(self) -> None:
        chosen = [layer for layer in self.layers if layer is not None]
        if chosen and self.facts.layers is None:
            raise EncoderError(f"{self.name} has no layers to choose from: omit --layers and #layer")
        for layer in chosen:
            most = self.facts.layers.count if self.facts.layers is not None else 0
            if not 0 <= layer <= most:
                raise EncoderError(f"{self.name} has layers 0 to {most} and last: got {layer}")

    def _check_on_noise(self) -> None:
        """Encode a second of noise and of silence, to detect a broken encoder before any shard is read."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand((2, self.facts.sample_rate_hz), generator=generator) - 0.5
        noise[1] = 0.0
        try:
            with torch.inference_mode():
                outputs = self.forward(noise, None)
        except EncoderContractError:
            raise
        except Exception as error:
            raise EncoderContractError(failure_line(self.name, noise.shape, error)) from error
        pools = {output.pool for output in self.outputs}
        if pools != {"mean"} and any(each.utterance is not None and each.frames.shape[1] == 1 for each in outputs):
            raise EncoderError(f"{self.name} returns one vector per window, so that --pool must be mean")
        for output in outputs:
            for row, what in enumerate(("noise", "silence")):
                vectors = output.frames[row]
                if output.utterance is not None:
                    vectors = torch.cat([vectors, output.utterance[row : row + 1]])
                if not torch.isfinite(vectors).all():
                    raise EncoderContractError(
                        f"{self.name}.forward must return finite numbers: NaN or infinity for {what}"
                    )


def failure_line(name: str, shape: Sequence[int], error: Exception) -> str:
    """Return one line about a forward pass that failed."""
    return f"{name}.forward failed on float32 {tuple(shape)}: {one_line(error, typed=True)}"

"""What breaks the encoder contract, each in one line that says which rule, and what came."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from featstore.errors import EncoderContractError
from handmade import build


class Sound(torch.nn.Module):
    """Keeps the contract; each test changes one thing."""

    def __init__(self, **declared: Any) -> None:
        super().__init__()
        for name, value in {"sampling_rate": 16_000, "output_dim": 4, "hop_size_in_ms": 40, **declared}.items():
            if value is not None:
                setattr(self, name, value)

    def forward(self, audio: torch.Tensor) -> Any:
        return audio[:, : audio.shape[1] // 640 * 640].reshape(len(audio), -1, 640)[:, :, :4]


class Returns(Sound):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, audio: torch.Tensor) -> Any:
        return self.make(super().forward(audio))


def why(module: object) -> str:
    with pytest.raises(EncoderContractError) as caught:
        build(module)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_a_sound_encoder_is_taken_with_what_it_declares() -> None:
    facts = build(Sound()).facts
    assert (facts.sample_rate_hz, facts.dim, facts.hop_seconds, facts.takes_lengths) == (16_000, 4, 0.04, False)


def test_an_encoder_that_is_no_module_is_refused() -> None:
    class Plain:
        def eval(self) -> Plain:
            return self

    assert "torch.nn.Module" in why(Plain())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("sampling_rate", 16_000.5),
        ("output_dim", 0),
        ("output_dim", "4"),
        ("output_dim", True),
        ("hop_size_in_ms", -1),
        ("hop_size_in_ms", float("nan")),
        ("hop_size_in_ms", float("inf")),
    ],
)
def test_a_declaration_that_is_missing_or_senseless_is_named(attribute: str, value: object) -> None:
    message = why(Sound(**{attribute: value}))
    assert attribute in message
    assert repr(value) in message


def test_all_declarations_that_are_wrong_are_named_at_once() -> None:
    message = why(Sound(sampling_rate=None, output_dim=-3, hop_size_in_ms="fast"))
    assert all(name in message for name in ("sampling_rate", "output_dim", "hop_size_in_ms", "'fast'"))


@pytest.mark.parametrize(
    ("lacking", "has", "value", "part"),
    [
        ("sampling_rate", "sample_rate", 8000, "sample_rate = 8000"),
        ("sampling_rate", "sr", 8000, "sr = 8000"),
        ("sampling_rate", "SampleRate", 8000, "SampleRate = 8000"),
        ("sampling_rate", "sampling_rat", 8000, "sampling_rat = 8000"),
        ("sampling_rate", "sample_rate", "8 kHz", None),
        ("sampling_rate", "volume", 11, None),
        ("output_dim", "embed_dim", 768, "embed_dim = 768"),
        ("output_dim", "hidden_size", 768, "hidden_size = 768"),
        ("hop_size_in_ms", "hop_length", 320, "hop_length = 320"),
        ("hop_size_in_ms", "hop_ms", 20.0, "hop_ms = 20.0"),
        ("hop_size_in_ms", "hop_size", lambda: 20, "hop_size()"),
    ],
)
def test_a_missing_declaration_is_named_with_the_attribute_that_may_be_it(
    lacking: str, has: str, value: object, part: str | None
) -> None:
    message = why(Sound(**{lacking: None, has: value}))
    assert f"{lacking} (" in message
    assert "is missing" in message
    assert (has in message) == (part is not None)
    assert part is None or part in message


def test_a_class_without_forward_is_reported_before_it_is_run() -> None:
    class Encodes(torch.nn.Module):
        sampling_rate, output_dim, hop_size_in_ms = 16_000, 4, 40

        def encode(self, audio: torch.Tensor) -> torch.Tensor:
            return audio

    assert "forward (audio) is missing, the class has encode()" in why(Encodes())


def test_an_attribute_that_is_suggested_is_never_read() -> None:
    class Renames(Sound):
        @property
        def sample_rate(self) -> int:
            raise RuntimeError("read")

    message = why(Renames(sampling_rate=None, output_dim=None))
    assert "output_dim (values per frame) is missing" in message
    assert build(Renames()).facts.sample_rate_hz == 16_000


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda frames: frames.mean(1), "(2, 4)"),
        (lambda frames: frames[None], "(1, 2, 25, 4)"),
        (lambda frames: frames[:, :, :3], "(2, 25, 3)"),
        (lambda frames: frames[:1], "(1, 25, 4)"),
        (lambda frames: frames[:, :0], "(2, 0, 4)"),
        (lambda frames: frames.numpy(), "ndarray"),
        (lambda frames: {"frames": frames}, "dict"),
        (lambda frames: (frames, frames), "(2, 25, 4)"),
        (lambda frames: (frames, None, None, None), "tuple"),
        (lambda frames: (frames, None, [25, 25]), "list"),
        (lambda frames: (frames, None, torch.tensor([25.0, 25.0])), "float32"),
        (lambda frames: (frames, None, torch.tensor([25])), "(1,)"),
        (lambda frames: (frames, None, torch.tensor([26, 1])), "[26, 1]"),
        (lambda frames: (frames, None, torch.tensor([25, 0])), "[25, 0]"),
        (lambda frames: frames.long(), "int64"),
        (lambda frames: frames * float("nan"), "NaN"),
        (lambda frames: (frames, frames.mean(1) / 0), "inf"),
    ],
    ids=[
        "no frames axis",
        "one axis too many",
        "wrong width",
        "wrong batch",
        "no frames",
        "an array",
        "a dict",
        "utterance of wrong shape",
        "four things",
        "counts that are no tensor",
        "counts that are not whole",
        "counts of wrong shape",
        "more frames than there are",
        "no frame",
        "integers",
        "NaN frames",
        "infinite utterance vectors",
    ],
)  # fmt: skip
def test_output_that_breaks_the_contract_is_reported_before_any_shard_is_read(make: Any, part: str) -> None:
    message = why(Returns(make))
    assert part in message


def test_a_forward_pass_that_raises_is_reported_with_its_reason() -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("the weights\nare upside down")

    message = why(Returns(fail))
    assert "RuntimeError: the weights are upside down" in message


def test_a_pair_of_frames_and_utterance_vectors_is_taken() -> None:
    assert build(Returns(lambda frames: (frames, frames.mean(1)))).facts.dim == 4


def test_lengths_are_passed_to_an_encoder_that_takes_them() -> None:
    class Masks(Sound):
        def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
            return super().forward(audio if lengths is None else audio[:, : lengths.max()])

    assert build(Masks()).facts.takes_lengths

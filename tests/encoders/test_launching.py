"""Batches that are begun on a GPU and asked for later: the same path, on a CPU that plays its streams and events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from featstore.encoders.batch_outputs import HostCopy, to_host
from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output
from featstore.encoders.runner import EncoderRun, NonFiniteRow
from featstore.errors import EncoderError
from handmade import started
from layered import Layered


class AStream:
    """What was recorded on it is reached when something that was sent after it is waited for, as on a GPU."""

    def __init__(self) -> None:
        self.recorded: list[AnEvent] = []

    def event(self, **kind: bool) -> AnEvent:
        return AnEvent(self)

    def to_host(self, tensors: Sequence[torch.Tensor]) -> Sent:
        return Sent(copy=to_host(tensors), after=tuple(self.recorded))


class AnEvent:
    def __init__(self, stream: AStream) -> None:
        self.stream = stream
        self.is_reached = False

    def record(self, stream: object) -> None:
        assert stream is self.stream
        self.stream.recorded.append(self)

    def elapsed_time(self, other: AnEvent) -> float:
        if not (self.is_reached and other.is_reached):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 5.0


@dataclass
class Sent:
    copy: HostCopy
    after: tuple[AnEvent, ...]

    def arrays(self) -> list[np.ndarray]:
        arrays = self.copy.arrays()
        for event in self.after:
            event.is_reached = True
        return arrays


class Counts(Layered):
    """Tells how many frames are real, as models with a length function of their own do."""

    def forward_layers(self, audio: torch.Tensor, lengths: torch.Tensor | None = None, *, layers: Any) -> list[object]:
        counts = torch.full((len(audio),), audio.shape[1]) if lengths is None else lengths
        return [(frames, None, -(-counts // 320)) for frames in super().forward_layers(audio, lengths, layers=layers)]  # type: ignore[misc]


OUTPUTS = (Output(layer=0), Output(layer=1, pool="std"), Output(layer=1), Output(pool="max"))


def launching(module: torch.nn.Module, monkeypatch: pytest.MonkeyPatch, *, padding: str = "0.25") -> EncoderRun:
    encoder = Encoder(module=module.eval(), name="tiny", spec="tiny", identity={}, outputs=OUTPUTS)
    run = started(encoder, padding=padding, precision="bfloat16")
    run._uploads = object()  # type: ignore[assignment]
    monkeypatch.setattr(run, "_upload", torch.from_numpy)
    monkeypatch.setattr(run, "_on_device", torch.from_numpy)
    stream = AStream()
    monkeypatch.setattr(torch.cuda, "Event", stream.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr("featstore.encoders.runner.to_host", stream.to_host)
    return run


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    n_samples = np.array([4000, 3500, 2100], np.int64)
    audio = np.random.default_rng(seed).uniform(-1, 1, (3, 4000)).astype(np.float32)
    return np.where(np.arange(4000) < n_samples[:, None], audio, 0).astype(np.float32), n_samples


@pytest.mark.parametrize("padding", ["0.25", "xares"])
@pytest.mark.parametrize("kind", [Layered, Counts])
def test_a_batch_that_was_begun_gives_what_one_that_is_waited_for_does(
    kind: type[Layered], padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launching(kind(), monkeypatch, padding=padding)
    first, second = run.begin(*batch()), run.begin(*batch(1))
    for result, seed in ((first, 0), (second, 1)):
        for begun, waited_for in zip(result(), run(*batch(seed)), strict=True):
            np.testing.assert_array_equal(begun.utterance, waited_for.utterance)
            assert (begun.frames is None) == (waited_for.frames is None)
            for mine, theirs in zip(begun.frames or (), waited_for.frames or (), strict=True):
                np.testing.assert_array_equal(mine, theirs)
                assert mine.dtype == np.float16
    assert run.busy_seconds == pytest.approx(0.01)
    assert run.batches_ahead == 1


def test_a_row_of_a_begun_batch_that_is_no_number_is_named_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    audio, n_samples = batch()
    audio[1, 2] = np.nan
    spoiled = launching(Layered(), monkeypatch).begin(audio, n_samples)
    with pytest.raises(NonFiniteRow) as caught:
        spoiled()
    assert caught.value.row == 1


def test_halves_of_a_batch_that_is_known_not_to_fit_are_begun_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    run = launching(Layered(), monkeypatch)
    whole = run(*batch())
    run._most_samples = 8000
    launched = []
    monkeypatch.setattr(run, "_launch", lambda *of, launch=run._launch: launched.append(len(of[0])) or launch(*of))
    for begun, expected in zip(run.begin(*batch())(), whole, strict=True):
        np.testing.assert_array_equal(begun.utterance, expected.utterance)
    assert launched == [1, 2]
    audio, n_samples = batch()
    audio[2, 2] = np.nan
    spoiled = run.begin(audio, n_samples)
    with pytest.raises(NonFiniteRow) as caught:
        spoiled()
    assert caught.value.row == 2


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"


@pytest.mark.parametrize("when", ["_launch", "arrays"])
def test_a_batch_for_which_a_library_has_no_room_is_encoded_by_itself_when_the_one_before_has_left(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launching(Layered(), monkeypatch)
    whole = run(*batch())
    freed: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: freed.append("the batch before"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("what was kept"))

    def fails(*given: object) -> None:
        raise RuntimeError(CUBLAS)

    monkeypatch.setattr(*((run, when) if when == "_launch" else (HostCopy, when)), fails)
    for begun, expected in zip(run.begin(*batch())(), whole, strict=True):
        np.testing.assert_array_equal(begun.utterance, expected.utterance)
    assert freed == (["the batch before", "what was kept"] if when == "_launch" else [])


@pytest.mark.parametrize("step", ["_launch", "_encode"])
def test_a_device_that_fails_before_or_after_the_forward_pass_is_one_line_too(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launching(Layered(), monkeypatch)

    def fails(*given: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, step, fails)
    with pytest.raises(EncoderError, match=r"tiny\.forward.*float32 \(3, 4000\).*RuntimeError.*CUDA error"):
        (run.begin if step == "_launch" else run)(*batch())


def test_what_goes_wrong_on_the_device_is_one_line_when_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = launching(Layered(), monkeypatch).begin(*batch())

    def fails(copy: HostCopy) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(HostCopy, "arrays", fails)
    with pytest.raises(EncoderError, match=r"tiny\.forward.*float32 \(3, 4000\).*RuntimeError.*CUDA error"):
        begun()


def test_what_went_wrong_with_the_batch_before_is_one_line_when_the_next_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = launching(Layered(), monkeypatch)

    def fails(audio: np.ndarray) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(run, "_upload", fails)
    with pytest.raises(EncoderError, match=r"RuntimeError.*CUDA error"):
        run.begin(*batch())


def test_a_batch_is_laid_out_all_the_same_where_no_memory_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here none can, for there is no GPU; on a machine that has one, a container may let a process pin little."""
    run = launching(Layered(), monkeypatch)
    empty = torch.empty

    def refuses(*shape: Any, pin_memory: bool = False, **kind: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **kind).fill_(7)

    monkeypatch.setattr(torch, "empty", refuses)
    blank = run.blank((2, 3))
    assert (blank.shape, blank.dtype, blank.any()) == ((2, 3), np.float32, False)
    blank[1, 2] = 1.0

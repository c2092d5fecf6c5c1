"""What the CPU plays elsewhere, on a GPU: batches that are begun, memory that runs out, the size of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from featstore.encoders.batch_size import find_batch_seconds
from featstore.encoders.encoder import Encoder
from featstore.encoders.memory import free_bytes, peak_bytes
from featstore.encoders.pooling import Output
from featstore.encoders.runner import EncoderRun, NonFiniteRow
from handmade import started
from layered import Layered

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is shown")

OUTPUTS = (Output(layer=0), Output(layer=1, pool="std"), Output(layer=1), Output(pool="max"))
RATE = 16_000


class Counts(Layered):
    """Tells how many frames are real; the counts stay on the GPU."""

    def forward_layers(self, audio: torch.Tensor, lengths: torch.Tensor | None = None, *, layers: Any) -> list[object]:
        counts = torch.full((len(audio),), audio.shape[1], device=audio.device) if lengths is None else lengths
        return [(frames, None, -(-counts // 320)) for frames in super().forward_layers(audio, lengths, layers=layers)]  # type: ignore[misc]


class OnTheHost(Layered):
    """Hands out what it made on the CPU, as encoders do that X-ARES runs."""

    def forward_layers(self, audio: torch.Tensor, lengths: torch.Tensor | None = None, *, layers: Any) -> list[object]:
        return [frames.cpu() for frames in super().forward_layers(audio, lengths, layers=layers)]  # type: ignore[attr-defined]


class Convolves(torch.nn.Module):
    """Products of many terms, which TF32 and bfloat16 round and float32 does not."""

    sampling_rate, output_dim, hop_size_in_ms = RATE, 64, 20

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(256, 1, 320, generator=generator) / 18)
        self.second = torch.nn.Parameter(torch.randn(256, 64, generator=generator) / 16)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return torch.conv1d(audio[:, None], self.first, stride=320).transpose(1, 2) @ self.second


class Hungry(torch.nn.Module):
    """Takes so many bytes of a GPU for each window."""

    sampling_rate, output_dim, hop_size_in_ms = RATE, 2, 20

    def __init__(self, *, bytes_per_window: int) -> None:
        super().__init__()
        self.bytes_per_window = bytes_per_window
        self.fitted: list[int] = []

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        if audio.is_cuda:
            held = torch.empty(len(audio) * self.bytes_per_window, dtype=torch.uint8, device=audio.device)
            del held
        self.fitted.append(len(audio))
        return audio[:, : audio.shape[1] // 320 * 320].reshape(len(audio), -1, 320)[:, :, :2]


def run_of(
    module: torch.nn.Module,
    *,
    device: str = "cuda",
    padding: str = "0.25",
    precision: str = "float32",
    outputs: tuple[Output, ...] = (Output(),),
) -> EncoderRun:
    encoder = Encoder(module=module.eval(), name="tiny", spec="tiny", identity={}, outputs=outputs)
    return started(encoder, device=device, padding=padding, precision=precision)


def batch(run: EncoderRun, *, rows: int = 5, samples: int = 2 * RATE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Laid out where the run wants it."""
    rng = np.random.default_rng(seed)
    n_samples = rng.integers(samples // 2, samples, rows, endpoint=True)
    audio = run.blank((rows, samples))
    for row, count in enumerate(n_samples):
        audio[row, :count] = rng.uniform(-1, 1, count)
    return audio, n_samples


@pytest.fixture(autouse=True)
def empty_gpu() -> Iterator[None]:
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


def assert_close(one: Any, other: Any, *, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine.utterance, theirs.utterance, rtol=rtol, atol=atol)
        assert (mine.frames is None) == (theirs.frames is None)
        for a, b in zip(mine.frames or (), theirs.frames or (), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=rtol, atol=10 * atol)


@pytest.mark.parametrize("padding", ["0.25", "xares"])
@pytest.mark.parametrize("kind", [Layered, Counts, OnTheHost])
def test_a_batch_that_was_begun_gives_what_one_that_is_waited_for_does(kind: type[Layered], padding: str) -> None:
    on_gpu = run_of(kind(), padding=padding, outputs=OUTPUTS)
    on_cpu = run_of(kind(), padding=padding, outputs=OUTPUTS, device="cpu")
    assert on_gpu.batches_ahead == 1
    with on_gpu.at_work():
        batches = [batch(on_gpu, seed=seed) for seed in range(12)]
        begun = [on_gpu.begin(*each) for each in batches]  # all are under way at once
        found = [result() for result in begun]
        waited_for = [on_gpu(*each) for each in batches]
    assert on_gpu.busy_seconds > 0
    for mine, theirs, (audio, n_samples) in zip(found, waited_for, batches, strict=True):
        assert_close(mine, theirs)
        assert_close(mine, on_cpu(audio.copy(), n_samples))


def test_float32_is_not_rounded_and_lower_precisions_are_near() -> None:
    expected = run_of(Convolves(), device="cpu")
    for precision, within in (("float32", 1e-4), ("tf32", 2e-2), ("bfloat16", 1e-1), ("float16", 2e-2)):
        run = run_of(Convolves(), precision=precision)
        with run.at_work():
            audio, n_samples = batch(run)
            [found] = run.begin(audio, n_samples)()
        [right] = expected(audio.copy(), n_samples)
        apart = np.linalg.norm(found.utterance - right.utterance) / np.linalg.norm(right.utterance)
        assert apart < within, precision


def test_a_row_that_is_no_number_is_named_when_it_is_asked_for() -> None:
    run = run_of(Layered(), outputs=OUTPUTS)
    with run.at_work():
        audio, n_samples = batch(run)
        audio[1, 2] = np.nan
        spoiled = run.begin(audio, n_samples)
        with pytest.raises(NonFiniteRow) as caught:
            spoiled()
    assert caught.value.row == 1


def test_a_batch_that_does_not_fit_is_halved_and_later_ones_are_never_so_large() -> None:
    free = free_bytes(device="cuda")
    assert free is not None
    module = Hungry(bytes_per_window=int(0.3 * free))  # three fit, eight do not; halves of four do not, of two do
    run = run_of(module)
    with run.at_work():
        audio, n_samples = batch(run, rows=8)
        module.fitted.clear()
        begun = run.begin(audio, n_samples)
        later = run.begin(audio, n_samples)
        found = [begun(), later()]
        found.append(run(audio, n_samples))
    assert set(module.fitted) == {2}
    modest = run_of(Hungry(bytes_per_window=0), device="cpu")
    for each in found:
        assert_close(each, modest(audio.copy(), n_samples))


def test_a_size_of_batch_is_found_and_fits() -> None:
    run = run_of(Convolves())
    with run.at_work():
        found = find_batch_seconds(run, sample_rate_hz=RATE, window_seconds=2.0, most_seconds=64.0)
        assert found in {2.0, 4.0, 8.0, 16.0, 32.0, 64.0}
        [encoded] = run.begin(*batch(run, rows=round(found / 2)))()
    assert np.isfinite(encoded.utterance).all()


def test_no_batch_is_to_take_more_than_half_of_the_free_memory() -> None:
    free = free_bytes(device="cuda")
    assert free is not None
    run = run_of(Hungry(bytes_per_window=int(0.2 * free)))
    with run.at_work():
        audio, n_samples = batch(run, rows=1)
        peak = peak_bytes(lambda: run(audio, n_samples), device="cuda")
        found = find_batch_seconds(run, sample_rate_hz=RATE, window_seconds=1.0, most_seconds=64.0)
    assert peak is not None
    assert 0.19 * free < peak < 0.25 * free
    assert found in {1.0, 2.0}


def test_what_a_forward_pass_kept_of_the_cpu_is_found_on_the_gpu() -> None:
    class Keeps(Layered):
        kept: dict[int, torch.Tensor]

        def forward_layers(self, audio: torch.Tensor, lengths: Any = None, *, layers: Any) -> list[object]:
            self.kept = getattr(self, "kept", {})
            return super().forward_layers(
                audio * self.kept.setdefault(audio.shape[1], torch.ones(audio.shape[1], device=audio.device)),
                lengths,
                layers=layers,
            )

    run = started(Keeps(), device="cuda")  # ran a second of noise on the CPU before
    with run.at_work():
        [found] = run.begin(*batch(run, samples=RATE))()
    assert np.isfinite(found.utterance).all()

"""Running an encoder: trimming, pooling, numbers that are none, memory that runs out."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featstore.encoders.contract import EncoderOutput
from featstore.encoders.devices import gpu_multiplies_bfloat16, pick_device, pick_devices, set_up_device
from featstore.encoders.pooling import Output
from featstore.encoders.runner import EncoderRun, NonFiniteRow, real_frames
from featstore.errors import EncoderError, UsageError
from featstore.extract import EncoderRequest, open_engine
from handmade import build, started


class Ramp(torch.nn.Module):
    """Frame t of a row is t, in both columns; 10 frames a second at 100 Hz."""

    sampling_rate, output_dim, hop_size_in_ms = 100, 2, 100.0

    def forward(self, audio: torch.Tensor) -> Any:
        frames = torch.arange(max(1, audio.shape[1] // 10), dtype=torch.float32)
        return frames[None, :, None].expand(len(audio), -1, 2).clone()


def batch(*lengths: int, to: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    audio = np.zeros((len(lengths), to or max(lengths)), np.float32)
    return audio, np.array(lengths, np.int64)


def test_frames_of_padding_are_trimmed_before_pooling_and_storing() -> None:
    [encoded] = started(Ramp())(*batch(100, 34, 3))
    assert [len(frames) for frames in encoded.frames] == [10, 3, 1]
    np.testing.assert_allclose(encoded.utterance[:, 0], [4.5, 1.0, 0.0])
    assert encoded.frames[0].dtype == np.float16
    assert encoded.utterance.dtype == np.float32


def test_under_xares_nothing_is_trimmed() -> None:
    [encoded] = started(Ramp(), padding="xares")(*batch(100, 34, 3))
    assert [len(frames) for frames in encoded.frames] == [10, 10, 10]
    np.testing.assert_allclose(encoded.utterance[:, 0], 4.5)


def test_an_encoders_own_utterance_vector_is_kept() -> None:
    class Own(Ramp):
        def forward(self, audio: torch.Tensor) -> Any:
            frames = super().forward(audio)
            return frames, frames[:, 0] + 7

    np.testing.assert_array_equal(started(Own())(*batch(50, 20))[0].utterance, 7.0)


def test_lengths_are_true_sample_counts_and_are_withheld_under_xares() -> None:
    class Sees(Ramp):
        seen: list[Any]

        def forward(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> Any:
            self.seen = [*getattr(self, "seen", []), None if lengths is None else lengths.tolist()]
            return super().forward(audio)

    masks, blind = Sees(), Sees()
    started(masks)(*batch(50, 20))
    started(blind, padding="xares")(*batch(50, 20))
    assert masks.seen[-1] == [50, 20]
    assert blind.seen[-1] is None


@given(seconds=st.floats(0.0001, 1000), hop=st.sampled_from([0.01, 0.02, 0.04, 0.3]), available=st.integers(1, 5000))
def test_real_frames_follow_the_designs_formula(seconds: float, hop: float, available: int) -> None:
    [count] = real_frames(np.array([seconds]), hop_seconds=hop, available=available)
    assert count == max(1, min(available, round(seconds / hop)))


class Spoils(Ramp):
    """Row 1 of a batch longer than a second comes out spoiled."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, audio: torch.Tensor) -> Any:
        frames = super().forward(audio)
        if audio.shape[1] > 100:
            frames[1, 4] = self.value
        return frames


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_no_number_is_named(value: float) -> None:
    with pytest.raises(NonFiniteRow, match="NaN") as caught:
        started(Spoils(value))(*batch(200, 200, 200))
    assert caught.value.row == 1


def test_a_frame_that_does_not_fit_float16_is_named_with_the_remedy() -> None:
    with pytest.raises(NonFiniteRow, match=r"1e\+06.*float16.*--dtype float32") as caught:
        started(Spoils(1e6))(*batch(200, 200))
    assert caught.value.row == 1
    assert started(Spoils(1e6), frame_dtype="float32")(*batch(200, 200))[0].frames[1].max() == 1e6


def test_what_stands_in_padding_does_not_matter() -> None:
    [encoded] = started(Spoils(float("nan")))(*batch(200, 34))
    assert np.isfinite(encoded.utterance).all()


def test_a_forward_pass_that_fails_on_a_batch_is_one_line() -> None:
    class Fails(Ramp):
        def forward(self, audio: torch.Tensor) -> Any:
            if audio.shape[1] < 50:
                raise RuntimeError("Kernel size\ncan't be greater than input")
            return super().forward(audio)

    with pytest.raises(EncoderError, match=r"float32 \(1, 20\).*RuntimeError"):
        started(Fails())(*batch(20))


class Small(Ramp):
    """Holds no more than so many samples at once, as a GPU does."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []

    def forward(self, audio: torch.Tensor) -> Any:
        self.sizes.append(len(audio))
        if audio.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(audio)


def test_products_are_rounded_to_tf32_where_that_is_asked_for_and_nowhere_else() -> None:
    """cuDNN would by itself."""
    for precision, said in (
        ("tf32", ("high", True)),
        ("float32", ("highest", False)),
        ("bfloat16", ("highest", False)),
    ):
        with started(Ramp(), precision=precision).at_work():
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == said


@pytest.fixture
def newer_names() -> Any:
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("PyTorch has them from 2.9 on")
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("newer_names")
@pytest.mark.parametrize("where", ["fp32_precision", "cuda.matmul.fp32_precision", "cudnn.fp32_precision"])
def test_an_encoder_that_asks_for_tf32_by_torchs_newer_names_is_run_as_the_recipe_says(where: str) -> None:
    """PyTorch refuses to read by the older names what was set by the newer; and a name for all reaches cuDNN."""
    module = torch.backends
    for name in where.split(".")[:-1]:
        module = getattr(module, name)
    module.fp32_precision = "tf32"
    operations = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    before = [each.fp32_precision for each in operations]
    for precision, said in (("float32", ("highest", False, "ieee")), ("tf32", ("high", True, "tf32"))):
        with started(Ramp(), precision=precision).at_work():
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == said[:2]
            assert {each.fp32_precision for each in operations} == {said[2]}
        assert [each.fp32_precision for each in operations] == before


def test_what_an_encoder_returns_on_another_device_is_brought_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders that end in ``.cpu()`` are run by X-ARES. Here ``meta``, which mixes with no other, is the GPU."""
    run = started(Ramp())
    device = torch.device("meta")
    monkeypatch.setattr(run, "_device", device)
    monkeypatch.setattr(run, "_on_device", lambda numbers: torch.from_numpy(numbers).to(device))
    for own, counts in ((None, None), (torch.ones(2, 2), None), (None, torch.tensor([3, 1]))):
        output = EncoderOutput(frames=torch.ones(2, 5, 2), utterance=own, n_frames=counts)
        with torch.inference_mode():
            made = run._device_output(Output(), run._layer(None, output, np.array([50, 20])))
        assert {tensor.device for tensor in made.to_transfer()} == {device}


class FailsLater:
    """A kernel that is broken: the call that launches it returns, and the next that touches the device raises."""

    def is_finite(self) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be ...")


def test_what_goes_wrong_on_a_device_is_one_line_wherever_it_comes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(Ramp())
    monkeypatch.setattr(run, "_device_output", lambda output, layer: FailsLater())
    for encode in (run, run.begin):
        with pytest.raises(EncoderError, match=r"handmade\.forward.*float32 \(2, 50\).*AcceleratorError"):
            encode(*batch(50, 20))


class Held:
    """What a forward pass has on its device while it runs."""


class FullGpu(EncoderRun):
    """A GPU on which a batch fits only when nothing of the last attempt is left."""

    held: weakref.ref[Held] | None = None

    def _launch(self, audio: np.ndarray, n_samples: np.ndarray) -> Any:
        activations = Held()
        self.held = weakref.ref(activations)
        raise torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, audio: np.ndarray, n_samples: np.ndarray) -> Any:
        self.held_at_the_next_attempt = self.held is not None and self.held() is not None
        return super().__call__(audio, n_samples)


def test_a_batch_is_tried_again_when_what_the_failed_attempt_held_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(Ramp())
    recipe = encoder.recipe(
        padding="0.25", precision="float32", frame_dtype="float16", resampler="none", format_version=1
    )
    run = FullGpu(encoder, recipe, device="cpu", keep_frames=True)
    [alone] = run(*batch(100, 34))
    run._uploads = object()  # type: ignore[assignment]
    monkeypatch.setattr(run, "_on_device", torch.from_numpy)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    [encoded] = run.begin(*batch(100, 34))()
    assert run.held is not None
    assert not run.held_at_the_next_attempt
    np.testing.assert_array_equal(encoded.utterance, alone.utterance)
    assert run.busy_seconds > 0


def test_a_row_that_is_no_number_is_named_by_its_place_in_the_batch_and_not_in_its_half() -> None:
    class SmallAndSpoils(Small):
        def forward(self, audio: torch.Tensor) -> Any:
            frames = super().forward(audio)
            return torch.where(audio[:, :1, None] > 0.9, torch.nan, frames)

    audio, n_samples = batch(*[100] * 8)
    audio[6] = 1.0
    with pytest.raises(NonFiniteRow, match="NaN") as caught:
        started(SmallAndSpoils(300))(audio, n_samples)
    assert caught.value.row == 6


def test_what_float16_cannot_hold_on_its_way_is_reported_with_the_remedy() -> None:
    class Overflows(Ramp):
        def forward(self, audio: torch.Tensor) -> Any:
            loud = audio[:, :200].abs().amax(dim=1, keepdim=True) * torch.full((1, 2), 1e5)
            return super().forward(audio) + loud[:, None].half()

    loud = np.ones((1, 300), np.float32)
    with pytest.raises(NonFiniteRow, match=r"float16.*65,504.*--precision bfloat16"):
        started(Overflows(), precision="float16")(loud, np.array([300]))


@pytest.mark.parametrize("asked", ["gpu", "mps", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_a_usage_error(asked: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        pick_device(asked)


@pytest.mark.parametrize("asked", ["cuda", "cuda:1", "all", "cuda:0,cuda:1"])
def test_gpus_that_the_driver_counts_and_torch_cannot_use_are_a_usage_error(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a driver that is too old: NVML counts, and the first call of CUDA fails."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"--device (cuda|cuda:[01]|all)\b"):
        pick_devices(asked)
    assert pick_devices("auto") == ("cpu",)


def test_a_gpu_that_lets_no_one_in_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(device: str) -> None:
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors ...")

    monkeypatch.setattr(torch.cuda, "set_device", refuses)
    monkeypatch.setattr(torch.cuda, "device", refuses)
    with pytest.raises(EncoderError, match=r"cuda:1.*CUDA error"):
        set_up_device("cuda:1", threads=torch.get_num_threads())
    with pytest.raises(EncoderError, match=r"\bcuda\b.*CUDA error"):
        gpu_multiplies_bfloat16("cuda")


@pytest.mark.parametrize(
    ("asked", "rank", "device"),
    [("auto", 3, "cuda:3"), ("cuda", 3, "cuda:3"), ("cuda", None, "cuda"), ("cuda:1", 3, "cuda:1"), ("cpu", 3, "cpu")],
)
def test_processes_of_one_machine_take_a_gpu_each_unless_they_are_reported_which(
    asked: str, rank: int | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(asked, local_rank=rank) == device


@pytest.mark.parametrize(("device", "entered"), [("cuda:3", ["cuda:3"]), ("cuda", []), ("cpu", [])])
def test_an_encoder_that_goes_to_cuda_as_it_is_made_goes_to_the_gpu_of_its_process(
    device: str, entered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the processes of one machine, each with its own GPU, would all begin on the first."""
    current: list[str] = []

    @contextmanager
    def sets(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    seen: list[list[str]] = []
    monkeypatch.setattr(torch.cuda, "device", sets)
    monkeypatch.setattr("featstore.encoders.devices.pick_devices", lambda asked, *, local_rank: (device,))
    monkeypatch.setattr(EncoderRequest, "load", lambda request: seen.append([*current]))
    with open_engine(EncoderRequest(spec="logmel"), device=device, local_rank=3):
        assert seen == [entered]
        assert current == []

"""Memory that runs out, and not in PyTorch's allocator of a device: a RuntimeError, told by its text alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from featstore.encoders import batch_size as budget
from featstore.encoders.batch_size import find_batch_seconds
from featstore.encoders.check.length import Step, _broke
from featstore.encoders.memory import is_out_of_memory
from featstore.errors import EncoderError
from handmade import started

RATE = 1000
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"

# as PyTorch 1.7 to 2.13 say it, each from a report of somebody whose memory was full
TOO_LITTLE = [
    CUBLAS,
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k, &alpha, a, lda)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 31.75 GiB total capacity; 612.33 MiB already allocated)",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "HIP out of memory. Tried to allocate 2.00 GiB",
    "Triton Error [CUDA]: out of memory",
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "2359296 bytes. Error code 12 (Cannot allocate memory)",
    "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 19 bytes.",
]
OTHERWISE = [
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "mat1 and mat2 shapes cannot be multiplied (4x3 and 2x1)",
    "the memory bank of this model is out of memory slots",
    "",
]


@pytest.mark.parametrize("text", TOO_LITTLE)
def test_what_libraries_say_when_memory_runs_out_is_known(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))  # only PyTorch's own errors count


@pytest.mark.parametrize("text", OTHERWISE)
def test_no_other_failure_is_taken_for_one_of_memory(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))


def test_a_machine_without_room_is_reported_to_pytorch_numpy_and_python_alike() -> None:
    for allocate in (lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**50)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."))


class Small(torch.nn.Module):
    """Holds so many windows; of more it says what `fails` raises."""

    sampling_rate, output_dim, hop_size_in_ms = RATE, 1, 10

    def __init__(self, fails: Any, *, most: int = 2) -> None:
        super().__init__()
        self.fails, self.most = fails, most
        self.sizes: list[int] = []

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(audio))
        if len(audio) > self.most:
            self.fails()
        return audio[:, : audio.shape[1] // 10 * 10].reshape(len(audio), -1, 10)[:, :, :1]


def says(text: str, kind: type[Exception] = RuntimeError) -> Any:
    def fails() -> None:
        raise kind(text)

    return fails


def batch(n_windows: int) -> tuple[np.ndarray, np.ndarray]:
    audio = np.random.default_rng(0).uniform(-1, 1, (n_windows, 100)).astype(np.float32)
    return audio, np.full(n_windows, 100, np.int64)


@pytest.mark.parametrize(
    "fails",
    [
        says(CUBLAS),
        says("CUDA out of memory", torch.OutOfMemoryError),
        lambda: torch.empty(2**50),
        lambda: np.empty(2**50),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_anyone_is_reported(fails: Any) -> None:
    module = Small(fails)
    run = started(module)
    [encoded] = run(*batch(8))
    np.testing.assert_array_equal(encoded.utterance, started(Small(fails, most=8))(*batch(8))[0].utterance)
    module.sizes.clear()
    run(*batch(8))
    assert max(module.sizes) == 2


def test_one_window_that_does_not_fit_is_one_line_with_what_the_library_said() -> None:
    module = Small(says(CUBLAS + "\nand more"), most=2)
    run = started(module)
    module.most = 0
    with pytest.raises(EncoderError, match=r"\bcpu\b.*\b100\b.*\(CUDA e") as caught:
        run(*batch(1))
    assert "`cublasCreate(handle)` and more)" in str(caught.value)
    assert "forward failed" not in str(caught.value)


def test_any_other_failure_is_the_encoders() -> None:
    module = Small(says("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"))
    with pytest.raises(EncoderError, match=r"handmade\.forward.*float32 \(8, 100\).*RuntimeError.*CUDA error"):
        started(module)(*batch(8))
    assert module.sizes[-1] == 8


def test_a_size_of_batch_is_found_below_what_a_library_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_seconds", lambda run, audio, n_samples: run(audio, n_samples) and 0.01)
    monkeypatch.setattr(budget, "peak_bytes", lambda work, **_: work() and None)
    module = Small(says(CUBLAS), most=4)
    assert find_batch_seconds(started(module), sample_rate_hz=RATE, window_seconds=0.1, most_seconds=1.6) == 1.6
    assert [size for size in module.sizes if size > 4] == [8]  # and never again


def test_a_check_tells_a_length_that_does_not_fit_from_an_encoder_that_fails() -> None:
    step = Step(audio_seconds=3.0, seconds=0.1, peak_bytes=None, frames=30)
    verdicts = {}
    for text in (CUBLAS, "shapes cannot be multiplied"):
        error = EncoderError("told")
        error.__cause__ = RuntimeError(text)
        verdicts[text] = _broke([step], 10.0, error)
    assert [verdicts[text].verdict for text in verdicts] == ["warning", "failed"]
    assert "10 s" in verdicts[CUBLAS].measured

"""Decoding against soundfile and soxr called directly, and what is left out before it is decoded."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from featstore.errors import UnusableClip
from featstore.extract import audio
from featstore.extract.audio import decode, encode_flac
from handmade import audio_bytes, noise


def decoded(data: bytes, *, max_seconds: float = 3600.0) -> np.ndarray:
    return decode(data, sample_rate_hz=16_000, max_seconds=max_seconds)


def directly(data: bytes) -> np.ndarray:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if rate == 16_000 else soxr.resample(mono, rate, 16_000, quality="HQ")


def why(data: bytes, **options: float) -> str:
    with pytest.raises(UnusableClip) as caught:
        decoded(data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_channels_are_averaged_and_then_resampled(extension: str, rate: int, channels: int) -> None:
    data = audio_bytes(noise(0.7, rate=rate, channels=channels), extension, rate=rate)
    np.testing.assert_allclose(decoded(data), directly(data), atol=1e-6)
    assert len(decoded(data)) == pytest.approx(0.7 * 16_000, abs=1)


@pytest.mark.parametrize("extension", ["ogg", "mp3"])
def test_lossy_formats_are_read_as_soundfile_reads_them(extension: str) -> None:
    data = audio_bytes(noise(1.0, rate=22_050, channels=2), extension, rate=22_050)
    np.testing.assert_allclose(decoded(data), directly(data), atol=1e-6)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("cut_at", [None, 30_000, 20])
def test_a_file_in_memory_and_calls_back_into_python_read_the_same(
    extension: str, cut_at: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = audio_bytes(noise(6.0, rate=22_050), extension, rate=22_050)[:cut_at]

    def result() -> str | list[float]:
        try:
            return decoded(data).tolist()
        except UnusableClip as reason:
            return str(reason)

    monkeypatch.setattr(audio, "_BYTES_COPIED", (0, len(data)))
    in_memory = result()
    monkeypatch.setattr(audio, "_BYTES_COPIED", (0, 0))
    assert result() == in_memory


def test_where_the_system_gives_no_file_in_memory_a_clip_is_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: str) -> int:
        raise OSError(24, "Too many open files")

    data = audio_bytes(noise(3.0), "wav")
    whole = decoded(data)
    monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    np.testing.assert_array_equal(decoded(data), whole)


def test_decoding_leaves_no_descriptor_open() -> None:
    open_ones = Path("/proc/self/fd")
    if not open_ones.is_dir():
        pytest.skip("the system does not list open descriptors")
    data = audio_bytes(noise(3.0), "flac")
    before = len([*open_ones.iterdir()])
    for piece in (data, data[:40_000], b"RIFF" + data):
        with contextlib.suppress(UnusableClip):
            decoded(piece)
    assert len([*open_ones.iterdir()]) == before


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file_of_many_blocks_is_the_same_as_in_one_piece(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = audio_bytes(noise(1.3, rate=rate, channels=3), "flac", rate=rate)
    whole = decoded(data)
    for block_bytes in (12_000, 65_536, len(noise(1.3, rate=rate)) * 12):
        monkeypatch.setattr(audio, "_BLOCK_BYTES", block_bytes)
        np.testing.assert_array_equal(decoded(data), whole)


def test_flac_round_trip_is_16_bit() -> None:
    wave = noise(0.5)
    np.testing.assert_allclose(decoded(encode_flac(wave, 16_000)), wave, atol=1 / 32_000)


def test_how_much_is_decoded_is_reported_before_it_is() -> None:
    calls: list[int] = []
    decode(audio_bytes(noise(1.0, rate=8000), rate=8000), sample_rate_hz=16_000, max_seconds=9, admit=calls.append)
    assert calls == [64_000]


def wav(*, channels: int = 1, rate: int = 16_000, body: bytes = b"", claimed: int | None = None) -> bytes:
    """A 16-bit WAV file with a header of the given values."""
    size = len(body) if claimed is None else claimed
    block = 2 * channels
    form = struct.pack("<HHIIHH", 1, channels & 0xFFFF, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    return b"".join(
        [b"RIFF", struct.pack("<I", 36 + size & 0xFFFFFFFF), b"WAVEfmt ", struct.pack("<I", 16), form, b"data",
         struct.pack("<I", size), body]
    )  # fmt: skip


def flac_claiming(frames: int) -> bytes:
    """A short FLAC whose STREAMINFO claims `frames` samples."""
    data = bytearray(audio_bytes(noise(0.2), "flac"))
    word = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames
    data[18:26] = word.to_bytes(8, "big")
    return bytes(data)


def test_a_header_that_claims_ten_hours_is_not_decoded() -> None:
    assert re.search(r"36,000 s.*--max-clip-seconds 3600", why(flac_claiming(36_000 * 16_000)))


def test_a_long_clip_is_skipped_by_the_limit_that_was_given() -> None:
    assert "--max-clip-seconds 0.5" in why(audio_bytes(noise(0.6)), max_seconds=0.5)
    assert len(decoded(audio_bytes(noise(0.6)), max_seconds=0.6)) == 9600


def test_a_false_claim_within_the_limit_costs_no_memory() -> None:
    data = flac_claiming(3600 * 16_000)
    with contextlib.suppress(UnusableClip):
        assert len(decoded(data)) <= 16_000


def test_a_thousand_channels_are_not_decoded() -> None:
    assert re.search(r"1,000.*\b64\b", why(wav(channels=1000, body=bytes(20_000))))


@pytest.mark.parametrize("rate", [1, 99, 2**31 - 1])
def test_a_sample_rate_that_no_audio_has_is_not_decoded(rate: int) -> None:
    assert "sample rate" in why(wav(rate=rate, body=bytes(200)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "decode"),
        (b"RIFF", "decode"),
        (b"not audio at all" * 100, "decode"),
        (wav(), "no samples"),
        (audio_bytes(np.array([0.1, np.nan, 0.2], np.float32)), "NaN or infinite"),
        (audio_bytes(np.array([0.1, np.inf, 0.2], np.float32)), "NaN or infinite"),
        (audio_bytes(np.array([1e30, 0.2], np.float32)), "1e+30"),
    ],
    ids=["empty", "cut", "text", "zero samples", "NaN", "infinite", "far too loud"],
)
def test_what_is_no_audio_is_reported_with_its_reason(data: bytes, reason: str) -> None:
    assert reason in why(data)


def test_a_reason_is_the_same_whenever_it_is_reported() -> None:
    assert why(b"not audio" * 9) == why(b"not audio" * 9)


def test_one_sample_too_short_to_resample_has_no_samples() -> None:
    assert "no samples" in why(audio_bytes(np.ones(1, np.float32), rate=48_000))

"""FLAC by dr_flac: the samples that libsndfile returns, bit for bit, and its reasons where a file is damaged."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import soundfile

from featstore.errors import UnusableClip
from featstore.extract import flac
from featstore.extract.audio import decode
from featstore.extract.flac import read_flac
from handmade import audio_bytes, noise

pytest.importorskip("miniaudio")
RATE = 16_000


def flac_of(samples: np.ndarray, *, rate: int = RATE, subtype: str = "PCM_16", level: float = 0.5) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="FLAC", subtype=subtype, compression_level=level)
    return out.getvalue()


def result(data: bytes) -> bytes | str:
    """The decoded samples, or the reason to skip the file."""
    try:
        return decode(data, sample_rate_hz=RATE, max_seconds=60.0).tobytes()
    except UnusableClip as reason:
        return str(reason)


def both(data: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes | str, bytes | str]:
    """By dr_flac where it is used, and by libsndfile alone."""
    first = result(data)
    with monkeypatch.context() as without:
        without.setattr(flac, "_reader", lambda: None)
        return first, result(data)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_samples_are_those_of_libsndfile_bit_for_bit(subtype: str, channels: int) -> None:
    for rate, level, wave in (
        (RATE, 0.0, noise(0.4, channels=channels)),
        (44_100, 1.0, np.clip(4 * noise(0.4, rate=44_100, channels=channels), -1, 1)),
        (96_000, 0.5, np.sin(np.arange(30_000 * channels) / 50).reshape(-1, channels)),
        (RATE, 0.5, np.zeros((5000, channels))),
        (RATE, 0.5, np.ones((17, channels))),
    ):
        data = flac_of(wave, rate=rate, subtype=subtype, level=level)
        expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        found = read_flac(data, frames=len(expected), channels=channels, rate_hz=rate)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (44_100, 2)])
def test_a_clip_of_any_format_does_not_depend_on_miniaudio(
    form: str, rate: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, expected = both(audio_bytes(noise(1.0, rate=rate, channels=channels), form, rate=rate), monkeypatch)
    assert isinstance(expected, bytes)
    assert found == expected


def test_a_damaged_file_gives_what_libsndfile_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    data = flac_of(noise(1.5), level=0.0)
    damaged = [data[: rng.randrange(len(data))] for _ in range(40)]
    for at in [*range(8 * 60), *(rng.randrange(8 * len(data)) for _ in range(200))]:
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        damaged.append(bytes(changed))
    damaged += [data[:5000] + data[9000:], data[:9000] + data[5000:], data + data[5000:], data + data]
    for each in damaged:
        found, expected = both(each, monkeypatch)
        assert found == expected


def test_only_complete_files_of_one_block_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flac_of(noise(1.0))
    as_the_header = {"frames": RATE, "channels": 1, "rate_hz": RATE}
    assert read_flac(data, **as_the_header) is not None
    for other in ({"frames": RATE + 1}, {"channels": 2}, {"rate_hz": 8000}):
        assert read_flac(data, **{**as_the_header, **other}) is None
    assert read_flac(data[:-200], **as_the_header) is None
    assert read_flac(audio_bytes(noise(1.0)), **as_the_header) is None
    calls = []
    monkeypatch.setattr("featstore.extract.audio.read_flac", lambda *_, **header: calls.append(header))
    result(data)
    assert calls == [as_the_header]
    monkeypatch.setattr("featstore.extract.audio._BLOCK_BYTES", 4 * RATE)
    result(data)
    assert len(calls) == 1

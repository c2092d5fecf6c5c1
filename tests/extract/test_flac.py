"""FLAC by dr_flac: the samples that libsndfile returns, bit for bit, and its reasons where a file is damaged."""

from __future__ import annotations

import dataclasses
import io
import random
import struct

import numpy as np
import pytest
import soundfile

from featstore.errors import UnusableClip
from featstore.extract import flac
from featstore.extract.audio import decode
from featstore.extract.flac import FlacHeader, flac_header, read_flac
from handmade import audio_bytes, noise

pytest.importorskip("miniaudio")
RATE = 16_000


def flac_of(samples: np.ndarray, *, rate: int = RATE, subtype: str = "PCM_16", level: float = 0.5) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="FLAC", subtype=subtype, compression_level=level)
    return out.getvalue()


PADDING, SEEKTABLE = (1, bytes(6)), (3, bytes(8) + bytes(8) + b"\x10\x00")
COMMENTS = (4, struct.pack("<I2sII3sI0s", 2, b"me", 2, 3, b"A=1", 0, b""))


def start_of_frames(data: bytes) -> int:
    at, is_last = 4, False
    while not is_last:
        is_last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


def with_metadata(data: bytes, *blocks: tuple[int, bytes]) -> bytes:
    """The file with its STREAMINFO and these blocks (type, content) as metadata."""
    out = bytearray(data[:42])
    out[4] = 0
    last = 4
    for kind, content in blocks:
        last = len(out)
        out += bytes([kind]) + len(content).to_bytes(3, "big") + content
    out[last] |= 0x80
    return bytes(out) + data[start_of_frames(data) :]


def flipped(data: bytes, at: int) -> bytes:
    """The file with one bit flipped."""
    changed = bytearray(data)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)


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
        header = flac_header(data)
        assert header == FlacHeader(rate_hz=rate, channels=channels, frames=len(expected))
        found = read_flac(data, header)
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
    damaged += [flipped(data, at) for at in (rng.randrange(8 * len(data)) for _ in range(200))]
    damaged += [data[:5000] + data[9000:], data[:9000] + data[5000:], data + data[5000:], data + data]
    for each in damaged:
        found, expected = both(each, monkeypatch)
        assert found == expected


@pytest.mark.parametrize("blocks", [(), (PADDING,), (SEEKTABLE, PADDING), (COMMENTS,), (PADDING, COMMENTS, SEEKTABLE)])
def test_damaged_metadata_gives_what_libsndfile_gives(
    blocks: tuple[tuple[int, bytes], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_metadata(flac_of(noise(0.1)), *blocks)
    assert flac_header(data) == FlacHeader(rate_hz=RATE, channels=1, frames=RATE // 10)
    used = 0
    for at in range(8 * (start_of_frames(data) + 16)):
        changed = flipped(data, at)
        found, expected = both(changed, monkeypatch)
        assert found == expected, at
        used += flac_header(changed) is not None
    assert used  # as after a bit flip in the MD5 checksum, which neither decoder checks
    for end in range(start_of_frames(data) + 16):
        found, expected = both(data[:end], monkeypatch)
        assert found == expected


@pytest.mark.parametrize(
    "block",
    [
        (1, b"not zero"),
        (2, b"appl" + bytes(7)),
        (2, b"ap"),
        (3, bytes(17)),
        (4, b""),
        (4, bytes(7)),
        (4, bytes(9)),
        (4, struct.pack("<III", 0, 2, 0)),
        (4, struct.pack("<II", 0, 0xFFFF_FFFF)),
        (4, struct.pack("<II", 0xFFFF_FFFF, 0)),
        (5, bytes(396)),
        (6, bytes(32)),
        (0, bytes(34)),
        (9, b"reserved"),
        (126, b""),
        (127, b""),
    ],
)
def test_unusual_metadata_gives_what_libsndfile_gives(
    block: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = flac_of(noise(0.1))
    for data in (
        with_metadata(plain, block),
        with_metadata(plain, COMMENTS, block),
        with_metadata(plain, block, PADDING),
    ):
        found, expected = both(data, monkeypatch)
        assert found == expected


@pytest.mark.parametrize(
    ("rate", "channels", "bits", "frames"),
    [
        (44_100, 2, 16, 99),
        (655_350, 8, 24, 2**36 - 1),
        (1, 1, 8, 1),
        (0, 2, 16, 99),
        (44_100, 2, 16, 0),
        (44_100, 2, 12, 99),
        (44_100, 2, 20, 99),
        (44_100, 2, 32, 99),
    ],
)
def test_the_header_is_read_as_rfc_9639_defines_it(rate: int, channels: int, bits: int, frames: int) -> None:
    fields = f"{rate:020b}{channels - 1:03b}{bits - 1:05b}{frames:036b}"
    data = bytearray(with_metadata(flac_of(noise(0.1)), COMMENTS, PADDING))
    data[18:26] = int(fields, 2).to_bytes(8, "big")
    is_decoded = rate > 0 and frames > 0 and bits in (8, 16, 24)
    expected = FlacHeader(rate_hz=rate, channels=channels, frames=frames) if is_decoded else None
    assert flac_header(bytes(data)) == expected


def test_bytes_inserted_between_intact_frames_do_not_change_the_samples() -> None:
    """The one kind of damage that libsndfile rejects and dr_flac does not."""
    data = flac_of(noise(1.5), level=0.0)
    second = data.index(data[start_of_frames(data) :][:4], start_of_frames(data) + 4)
    assert result(data[:second] + b"inserted" + data[second:]) == result(data)


def test_only_complete_files_of_one_block_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = flac_of(noise(1.0))
    header = flac_header(data)
    assert header == FlacHeader(rate_hz=RATE, channels=1, frames=RATE)
    assert read_flac(data, header) is not None
    for other in ({"frames": RATE + 1}, {"channels": 2}, {"rate_hz": 8000}):
        assert read_flac(data, dataclasses.replace(header, **other)) is None
    assert read_flac(data[:-200], header) is None
    assert flac_header(audio_bytes(noise(1.0))) is None
    calls = []
    monkeypatch.setattr("featstore.extract.audio.read_flac", lambda _, header: calls.append(header))
    result(data)
    assert calls == [header]
    monkeypatch.setattr("featstore.extract.audio._BLOCK_BYTES", 4 * RATE)
    result(data)
    assert len(calls) == 1


@pytest.mark.parametrize("damage", [0, 200])
def test_the_buffer_is_asked_once_for_each_clip(damage: int) -> None:
    data = flac_of(noise(1.0, channels=2))
    admitted: list[int] = []
    data = data[: len(data) - damage]
    if damage:
        with pytest.raises(UnusableClip):
            decode(data, sample_rate_hz=8000, max_seconds=60.0, admit=admitted.append)
    else:
        decode(data, sample_rate_hz=8000, max_seconds=60.0, admit=admitted.append)
    assert admitted == [4 * 8000]


def test_limits_are_checked_before_the_first_sample_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, max_seconds in ((flac_of(noise(1.0)), 0.5), (flac_of(noise(1.0), rate=50), 60.0)):
        reasons = []
        for _ in range(2):
            with pytest.raises(UnusableClip) as reason:
                decode(data, sample_rate_hz=RATE, max_seconds=max_seconds)
            reasons.append((str(reason.value), reason.value.seconds))
            monkeypatch.setattr(flac, "_reader", lambda: None)
        monkeypatch.undo()
        assert reasons[0] == reasons[1]

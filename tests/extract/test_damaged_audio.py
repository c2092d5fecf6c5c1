"""Damaged and cut audio files: the samples of the sound file, as many as it has, or a skip with its reason."""

from __future__ import annotations

import io
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featstore.errors import UnusableClip
from featstore.extract.audio import _ogg_crc32, damage_of, decode
from handmade import audio_bytes, clip, extract, noise, write_tar
from tiny import task


def length(data: bytes, *, rate: int = 16_000) -> int | None:
    """Samples that a file decodes to; None where it is skipped, with a reason of one line."""
    try:
        return len(decode(data, sample_rate_hz=rate, max_seconds=60.0))
    except UnusableClip as error:
        reason = str(error)
    assert reason
    assert "\n" not in reason
    return None


def opus(seconds: float) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, noise(seconds), 16_000, format="OGG", subtype="OPUS")
    return out.getvalue()


def mp3(seconds: float, *, mode: str = "CONSTANT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, noise(seconds), 16_000, format="MP3", bitrate_mode=mode)
    return out.getvalue()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


OGG = audio_bytes(noise(2.0), "ogg")
SOUND = {"ogg": OGG, "opus": opus(2.0), "flac": audio_bytes(noise(2.0), "flac"), "wav": audio_bytes(noise(2.0))}


@pytest.mark.parametrize("form", ["ogg", "opus", "flac"])
def test_a_flip_anywhere_gives_all_samples_or_a_reason(form: str) -> None:
    data = SOUND[form]
    whole = length(data)
    assert whole
    rng = random.Random(0)
    head = 8 * 42 if form == "flac" else 0  # STREAMINFO, the sample rate in it, has no checksum
    for bit in (*range(head, head + 400, 7), *(rng.randrange(head, 8 * len(data)) for _ in range(400))):
        assert length(flipped(data, bit)) in (whole, None)


def test_of_an_ogg_file_every_flip_is_seen() -> None:
    first_four_bytes = 32  # without them it is no Ogg file, and libsndfile refuses it
    assert not any(damage_of(flipped(OGG, bit)) == "" for bit in range(first_four_bytes, 8 * len(OGG), 5))


@pytest.mark.parametrize("form", SOUND)
def test_a_file_that_breaks_off_anywhere_is_skipped(form: str) -> None:
    data = SOUND[form]
    assert length(data)
    for at in (*range(0, 60, 9), *range(60, len(data), len(data) // 20), len(data) - 1):
        assert length(data[:at]) is None


def test_an_ogg_file_that_lacks_a_page_or_goes_on_without_one_is_skipped() -> None:
    pages = [at for at in range(len(OGG)) if OGG[at : at + 4] == b"OggS"]
    assert len(pages) > 3
    for at, following in pairwise(pages[1:]):
        assert length(OGG[:at] + OGG[following:]) is None
        assert length(OGG[:at] + b"TAG") is None


def test_an_ogg_file_without_a_page_that_is_marked_as_the_last_is_read() -> None:
    """Some encoders mark none: all but one of the recordings of two languages in Debian's klettres-data."""
    last = OGG.rfind(b"OggS")
    page = bytearray(OGG[last:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", _ogg_crc32(bytes(page)))
    assert length(OGG[:last] + bytes(page)) == length(OGG)


def test_what_follows_the_end_of_an_ogg_file_and_a_second_stream_are_no_damage() -> None:
    assert damage_of(OGG) == damage_of(OGG + b"TAG" + bytes(125)) == damage_of(OGG + OGG) == ""
    assert length(OGG + b"TAG" + bytes(125)) == length(OGG)


def test_every_form_that_libsndfile_writes_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # libsndfile writes an SD2's second file beside the first, which has no name here
    n_forms = 0
    for form in sorted(soundfile.available_formats()):
        if form in ("RAW", "SD2"):
            continue
        for subtype in soundfile.available_subtypes(form):
            out = io.BytesIO()
            try:
                soundfile.write(out, noise(0.4), 16_000, format=form, subtype=subtype)
                expected, rate = soundfile.read(io.BytesIO(out.getvalue()))
            except (soundfile.SoundFileError, ValueError):
                continue
            assert length(out.getvalue(), rate=rate) == len(expected), (form, subtype)
            n_forms += 1
    assert n_forms > 50


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_an_mp3_with_a_count_is_skipped_where_it_breaks_off_and_one_without_is_not(mode: str) -> None:
    data = mp3(4.0, mode=mode)
    assert length(data) == 64_000
    assert length(b"ID3\x03\0\0\0\0\x02\x01" + bytes(257) + data) == 64_000
    assert length(data + b"TAG" + bytes(125)) == 64_000
    assert length(data[: len(data) // 2]) is None
    tag = next(at for at in range(100) if data[at : at + 4] in (b"Xing", b"Info"))
    without = data[data.index(data[:2], tag) :]
    assert length(without)
    assert length(without[: len(without) // 2])


def wav(claimed: int, body: bytes) -> bytes:
    form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    head = b"RIFF" + struct.pack("<I", 36 + claimed & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + form
    return head + b"data" + struct.pack("<I", claimed) + body


@pytest.mark.parametrize("claimed", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_that_came_through_a_pipe_claims_no_length(claimed: int) -> None:
    body = (noise(0.5) * 2**14).astype("<i2").tobytes()
    assert length(wav(claimed, body)) == length(wav(len(body), body)) == 8000
    assert length(wav(len(body) + 2, body)) is None


def test_a_damaged_clip_is_skipped_by_extract_and_the_others_are_stored(tmp_path: Path) -> None:
    damaged = flipped(OGG, 8 * (len(OGG) // 2))
    assert len(soundfile.read(io.BytesIO(damaged))[0]) != len(soundfile.read(io.BytesIO(OGG))[0])
    write_tar(
        tmp_path / "data/tiny/train-0.tar",
        [("bad.ogg", damaged), ("bad.json", b"{}"), *clip("good", noise(0.3), extension="ogg")],
    )
    [record] = extract(task(), tmp_path / "data", tmp_path / "store")
    assert record.clips == 1
    assert [(skipped.key, skipped.seconds) for skipped in record.skipped] == [("bad", None)]
    np.testing.assert_allclose(record.audio_seconds, 0.3)

"""Decoding and resampling of audio. The only module that imports soundfile and soxr."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UnusableClip
from featstore.extract.flac import flac_header, read_flac

if TYPE_CHECKING:
    from soundfile import SoundFile

__all__ = [
    "MAX_AMPLITUDE",
    "MAX_CHANNELS",
    "RESAMPLER",
    "SAMPLE_RATES_HZ",
    "cut_file",
    "damage_of",
    "decode",
    "encode_flac",
    "encode_ogg",
    "missing_frames_allowed",
    "prepare",
]


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_PAGE = struct.Struct("<4sBBqIII")
_OGG_HEADER_BYTES, _FIRST_PAGE, _LAST_PAGE = 27, 2, 4
_UNKNOWN_WAV_BYTES = 0x7FFF_0000  # writers to a pipe claim about 2 or 4 GiB; no member of a shard is as large
_MP3_FRAME = 1152
_MP3_TAG_WITHIN_BYTES = 4096


def damage_of(data: bytes) -> str:
    """Reason why a file is damaged or truncated, found from its container; empty if none is found."""
    if data.startswith(b"OggS"):
        return _damage_of_ogg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _damage_of_wav(data)
    return ""


def missing_frames_allowed(data: bytes, *, form: str) -> int | None:
    """Number of frames that decoding may return less than the header counts; None if the count is an estimate.

    The count of an MP3 is exact if its first frame is a Xing or Info tag, except for what a decoder drops at both ends:
    two MP3 frames are allowed. Without the tag libsndfile estimates the count from the size and the first bit rate.
    """
    if form != "MP3":
        return 0
    start = 0
    if data.startswith(b"ID3") and len(data) > 10:  # the size has 7 bits in each of four bytes
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    has_count = re.search(rb"Xing|Info", data[start : start + _MP3_TAG_WITHIN_BYTES]) is not None
    return 2 * _MP3_FRAME if has_count else None


def _damage_of_ogg(data: bytes) -> str:
    """Check the pages: each has a checksum, and a sequence number that increases by one until a stream or file ends."""
    at = 0
    next_numbers: dict[int, int] = {}
    while data[at : at + 4] == b"OggS":
        segments = data[at + _OGG_HEADER_BYTES : at + _OGG_HEADER_BYTES + (data[at + 26] if at + 26 < len(data) else 0)]
        end = at + _OGG_HEADER_BYTES + len(segments) + sum(segments)
        if end > len(data) or len(data) < at + _OGG_HEADER_BYTES or len(segments) < data[at + 26]:
            return f"it breaks off in the Ogg page at byte {at:,}"
        _, _, flags, _, stream, number, checksum = _OGG_PAGE.unpack_from(data, at)
        if _ogg_crc32(data[at : at + 22] + bytes(4) + data[at + 26 : end]) != checksum:
            return f"it is damaged: the checksum of the Ogg page at byte {at:,} is wrong"
        if not flags & _FIRST_PAGE and next_numbers.get(stream, number) != number:
            return f"it is damaged: before the Ogg page at byte {at:,} others are missing"
        next_numbers[stream] = number + 1 & 0xFFFF_FFFF
        if flags & _LAST_PAGE:
            del next_numbers[stream]
        at = end
    return f"it is damaged: no Ogg page at byte {at:,}" if next_numbers and at < len(data) else ""


def _ogg_crc32(page: bytes) -> int:
    """CRC-32 of Ogg: zlib's polynomial with the bits of every byte and of the result reversed, initial value 0."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _damage_of_wav(data: bytes) -> str:
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data":
            available = len(data) - at
            if available < size < _UNKNOWN_WAV_BYTES:
                return f"it breaks off: its header claims {size:,} bytes of audio, and {available:,} are there"
            return ""
        at += size + size % 2
    return ""


RESAMPLER = "soxr-HQ"
MAX_CHANNELS = 64
SAMPLE_RATES_HZ = (100, 768_000)
MAX_AMPLITUDE = 2.0**31  # audio is within [-1, 1], or integer samples that were stored as floats
_BLOCK_BYTES = 16 << 20
_UNKNOWN_FRAMES = 1 << 62  # libsndfile counts 2**63 - 1 if a header has no count, as in a FLAC written to a pipe
_BYTES_COPIED = (24 << 10, 8 << 20)  # smaller files take two or three reads; larger ones are not copied


def decode(
    data: bytes, *, sample_rate_hz: int, max_seconds: float, admit: Callable[[int], None] = lambda _: None
) -> NDArray[np.float32]:
    """Decode an audio file to mono at `sample_rate_hz`: channels are averaged, then resampled.

    The file is read block by block, so that only one block is in memory in addition to the result.

    Parameters
    ----------
    data : bytes
        wav, flac, ogg, mp3 or another format that libsndfile reads.
    max_seconds : float
        A clip whose header claims a longer duration is not decoded.
    admit : callable
        Called with the size of the result in bytes, after the header and before the first sample is read; may block.

    Returns
    -------
    float32 (samples,)

    Raises
    ------
    UnusableClip
        The file is unreadable, empty, too long, damaged or truncated, has too many channels, or has samples that are
        not audio. ``seconds`` is the claimed duration of a clip that is too long.
    """
    import soundfile

    try:
        header = flac_header(data)
        if header is not None and header.frames * header.channels * 4 < _BLOCK_BYTES:
            _check_header(
                rate_hz=header.rate_hz, frames=header.frames, channels=header.channels, max_seconds=max_seconds
            )
            admit(round(header.frames / header.rate_hz * sample_rate_hz) * 4)
            samples = read_flac(data, header)
            if samples is not None:
                return _checked(_at_rate(iter([(_downmixed(samples), True)]), header.rate_hz, sample_rate_hz))
            admit = lambda _: None  # noqa: E731 - it was called; libsndfile gives the reason, or the samples
        with _as_file(data) as stored, soundfile.SoundFile(stored, closefd=False) as file:
            rate = int(file.samplerate)
            _check_header(rate_hz=rate, frames=file.frames, channels=file.channels, max_seconds=max_seconds)
            if damage := damage_of(data):
                raise UnusableClip(damage)
            admit(round(file.frames / rate * sample_rate_hz) * 4)
            missing_allowed = missing_frames_allowed(data, form=file.format)
            blocks = _mono_blocks(file, max_seconds=max_seconds, missing_allowed=missing_allowed)
            mono = _at_rate(blocks, rate, sample_rate_hz)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise UnusableClip(f"it cannot be decoded: {_reason(error)}") from error
    return _checked(mono)


def prepare(
    samples: NDArray[np.generic], *, rate_hz: int, sample_rate_hz: int, max_seconds: float
) -> NDArray[np.float32]:
    """Average the channels of decoded audio and resample it, as `decode` does with a file.

    Parameters
    ----------
    samples : (samples,) or (channels, samples)
        Audio in [-1, 1].
    rate_hz : int
        Sample rate of `samples`.

    Returns
    -------
    float32 (samples,) at `sample_rate_hz`

    Raises
    ------
    UnusableClip
        It is empty, too long, or not audio, or its sample rate is not supported.
    """
    lowest, highest = SAMPLE_RATES_HZ
    if not lowest <= rate_hz <= highest:
        raise UnusableClip(f"its sample rate is {rate_hz:,} Hz, which is not within {lowest} to {highest:,}")
    if samples.ndim not in (1, 2) or not samples.size:
        raise UnusableClip(f"its samples have shape {samples.shape}: (samples,) or (channels, samples) is supported")
    if (seconds := samples.shape[-1] / rate_hz) > max_seconds:
        raise UnusableClip(f"it has {seconds:,.0f} s, more than max_clip_seconds {max_seconds:g}", seconds=seconds)
    mono = _downmixed(np.atleast_2d(samples).astype(np.float32, copy=False).T)
    return _checked(_at_rate(iter([(mono, True)]), rate_hz, sample_rate_hz))


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    if not len(samples):
        raise UnusableClip("it has no samples")
    largest = max(float(samples.max()), -float(samples.min()))  # both are NaN if any sample is
    if not np.isfinite(largest):
        raise UnusableClip("it holds samples that are NaN or infinite")
    if largest > MAX_AMPLITUDE:
        raise UnusableClip(f"it holds samples as large as {largest:.3g}: audio is within [-1, 1]")
    return samples


@contextmanager
def _as_file(data: bytes) -> Iterator[int | io.BytesIO]:
    """A file that libsndfile can read: a descriptor if possible, else a Python file object.

    Each call into a Python file object waits for the GIL: about a dozen calls for a clip of five seconds.
    """
    least, most = _BYTES_COPIED
    descriptor = _in_memory(data) if least <= len(data) <= most else None
    if descriptor is None:
        yield io.BytesIO(data)
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _in_memory(data: bytes) -> int | None:
    """Descriptor of an in-memory file with `data`; None if the system provides none."""
    try:
        descriptor = os.memfd_create("clip")
    except (AttributeError, OSError):
        return None
    try:
        is_complete = os.write(descriptor, data) == len(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except OSError:
        is_complete = False
    if is_complete:
        return descriptor
    os.close(descriptor)
    return None


def encode_flac(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """Encode a waveform, float32 (samples,) or (samples, channels) in [-1, 1], as 16-bit FLAC."""
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def encode_ogg(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """Encode a waveform, float32 (samples,) in [-1, 1], as Ogg Vorbis, a fifth of the size of FLAC, for playback."""
    import soundfile

    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", sample_rate_hz, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(samples), sample_rate_hz):  # the encoder crashes on minutes of audio in one call
            file.write(np.clip(samples[start : start + sample_rate_hz], -1.0, 1.0))
    return out.getvalue()


_FLAC_CHANNELS, _FLAC_RATE_HZ = 8, 655_350
_AS_STORED = {"PCM_32": ("int32", "PCM_32"), "DOUBLE": ("float64", "DOUBLE")}
_LOSSY_OR_FLOAT = ("FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")


def cut_file(
    path: Path,
    *,
    span: Callable[[int], tuple[int, int | None]],
    channels: tuple[int, ...] | None,
    max_overshoot_seconds: float,
) -> tuple[str, bytes]:
    """Cut samples out of an audio file: extension and bytes of a file with exactly these samples.

    Integer samples of up to 24 bits are written as FLAC. Other samples (float, 32 bits, decoded MP3, Vorbis and Opus)
    are written as WAV of their type, because FLAC would round them.

    Parameters
    ----------
    path : Path
    span : callable
        Takes the sample rate of the file; returns the first sample and the one after the last, None for the end.
    channels : tuple of int or None
        Channels to keep; None keeps all.
    max_overshoot_seconds : float
        A segment that ends later than the file, by at most this, is cut at the end of the file.

    Raises
    ------
    UnusableClip
        The file cannot be read, or the samples or channels are not in it.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            rate = int(file.samplerate)
            first, end = _within(file, span(rate), max_overshoot_seconds)
            wanted = tuple(range(file.channels)) if channels is None else channels
            if missing := [channel for channel in wanted if not 0 <= channel < file.channels]:
                raise UnusableClip(f"its recording has {file.channels} channels, and no channel {missing[0]}")
            dtype, form, subtype = _lossless(file.subtype, n_channels=len(wanted), rate_hz=rate)
            _go_to(file, first)
            samples = file.read(end - first, dtype=dtype, always_2d=True)
            if len(samples) < end - first:
                raise UnusableClip(f"its recording breaks off at sample {first + len(samples):,} of {file.frames:,}")
        out = io.BytesIO()
        soundfile.write(out, samples[:, list(wanted)], rate, format=form, subtype=subtype)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise UnusableClip(f"its recording cannot be decoded: {_reason(error)}") from error
    return form.lower(), out.getvalue()


def _within(file: SoundFile, span: tuple[int, int | None], max_overshoot_seconds: float) -> tuple[int, int]:
    """The first sample and the one after the last, in the file. Raises UnusableClip if they are not."""
    rate, (first, end) = file.samplerate, span
    if end is None:
        end = file.frames
    if not 0 <= first < min(end, file.frames) or end > file.frames + max_overshoot_seconds * rate:
        raise UnusableClip(
            f"its segment, {first / rate:g} to {end / rate:g} s, is not in its recording of {file.frames / rate:g} s"
        )
    return first, min(end, file.frames)


def _lossless(subtype: str, *, n_channels: int, rate_hz: int) -> tuple[str, str, str]:
    """How samples are read and written without loss: data type, format and subtype of the new file."""
    if subtype in _AS_STORED:
        dtype, stored = _AS_STORED[subtype]
        return dtype, "WAV", stored
    if subtype in _LOSSY_OR_FLOAT:
        return "float32", "WAV", "FLOAT"
    form = "FLAC" if n_channels <= _FLAC_CHANNELS and rate_hz <= _FLAC_RATE_HZ else "WAV"
    return ("int32", form, "PCM_24") if "24" in subtype else ("int16", form, "PCM_16")


def _go_to(file: Any, first: int) -> None:
    """Move to a sample. Seeking is exact in PCM and FLAC only: other files are decoded up to there."""
    if file.subtype.startswith("PCM_") or file.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW"):
        file.seek(first)
        return
    while first > 0:
        read = len(file.read(min(first, 1 << 20), dtype="float32", always_2d=True))
        if not read:
            return
        first -= read


def _reason(error: Exception) -> str:
    """Message of libsndfile without object addresses, because reasons are stored and compared."""
    text = getattr(error, "error_string", str(error))
    return " ".join(str(text).split()).removeprefix("Error : ")[:160]


def _check_header(*, rate_hz: int, frames: int, channels: int, max_seconds: float) -> None:
    """Raise UnusableClip if a header claims unsupported values."""
    if not SAMPLE_RATES_HZ[0] <= rate_hz <= SAMPLE_RATES_HZ[1]:
        lowest, highest = SAMPLE_RATES_HZ
        raise UnusableClip(
            f"its header claims a sample rate of {rate_hz:,} Hz, which is not within {lowest} to {highest:,}"
        )
    claimed = frames / rate_hz
    if claimed > max_seconds:
        raise UnusableClip(
            f"its header claims {claimed:,.0f} s, more than --max-clip-seconds {max_seconds:g}", seconds=claimed
        )
    if channels > MAX_CHANNELS:
        raise UnusableClip(f"it has {channels:,} channels, more than {MAX_CHANNELS}")


def _mono_blocks(
    file: SoundFile, *, max_seconds: float, missing_allowed: int | None
) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Blocks of the averaged channels, float32 (frames,), each with whether it is the last. There is at least one.

    Fewer frames than the header counts are damage, if the count is exact: see `missing_frames_allowed`.
    """
    block_frames = max(1, _BLOCK_BYTES // (4 * file.channels))
    frames, last = 0, False
    while not last:
        block = file.read(block_frames, dtype="float32", always_2d=True)
        frames += len(block)
        seconds = frames / file.samplerate
        if seconds > max_seconds:
            raise UnusableClip(
                "it holds more than --max-clip-seconds, and more than its header claims", seconds=seconds
            )
        last = len(block) < block_frames
        if last and missing_allowed is not None and frames + missing_allowed < file.frames < _UNKNOWN_FRAMES:
            raise UnusableClip(
                f"it is damaged or breaks off: its header counts {file.frames:,} frames, and {frames:,} come out of it"
            )
        yield _downmixed(block), last


def _downmixed(block: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average the channels, one pass per channel: NumPy's mean over a short last axis takes ten times as long."""
    if block.shape[1] == 1 and block.base is None:  # not a view of a buffer with the size that the header claims
        return block[:, 0]
    total = np.array(block[:, 0])
    for channel in range(1, block.shape[1]):
        total += block[:, channel]
    if block.shape[1] > 1:
        total /= np.float32(block.shape[1])
    return total


def _at_rate(blocks: Iterator[tuple[NDArray[np.float32], bool]], rate_hz: int, wanted_hz: int) -> NDArray[np.float32]:
    """Resample block by block; the result equals that of one call over all samples (tested against soxr)."""
    if rate_hz == wanted_hz:
        pieces = [block for block, _ in blocks]
    else:
        import soxr

        stream = soxr.ResampleStream(rate_hz, wanted_hz, 1, dtype="float32", quality="HQ")
        pieces = [np.asarray(stream.resample_chunk(block, last=last), np.float32) for block, last in blocks]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

"""Faster decoding of FLAC with dr_flac, if the package miniaudio is installed.

FLAC is lossless: dr_flac and libsndfile return the same float32 samples bit for bit, so stored embeddings do not depend
on which of the two decoded a clip. A file that dr_flac decodes is not opened by libsndfile, which takes 0.1 to 0.5 ms:
its header is parsed here, and a file with unusual metadata is left to libsndfile.

One kind of damage is treated differently: if bytes are inserted between frames that are themselves intact, dr_flac
finds every frame by its checksums and returns the right samples, and libsndfile rejects the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FlacHeader", "flac_header", "read_flac"]

_STREAMINFO, _PADDING, _SEEKTABLE, _VORBIS_COMMENT = 0, 1, 3, 4
_STREAMINFO_BYTES, _SEEK_POINT_BYTES = 34, 18
_FIRST_FRAMES = (b"\xff\xf8", b"\xff\xf9")  # a frame's sync code, blocks of fixed or variable size
_BITS_PER_SAMPLE = (8, 16, 24)  # those that libsndfile decodes


@dataclass(frozen=True, slots=True, kw_only=True)
class FlacHeader:
    """The counts of a FLAC file's STREAMINFO: sample rate in Hz, channels, and frames (samples per channel)."""

    rate_hz: int
    channels: int
    frames: int


def flac_header(data: bytes) -> FlacHeader | None:
    """Parse the metadata of a FLAC file (RFC 9639, section 8).

    Returns None if miniaudio is not installed, and for a file that `read_flac` must not decode: it is not FLAC, its
    length is unknown, its samples do not have 8, 16 or 24 bits, or its metadata has damage, which dr_flac ignores and
    libsndfile may reject, or blocks other than those that encoders write (STREAMINFO, PADDING, SEEKTABLE,
    VORBIS_COMMENT).
    """
    if _reader() is None or not data.startswith(b"fLaC"):
        return None
    at, is_last = 4, False
    while not is_last and at + 4 <= len(data):
        is_last, block, size = data[at] >= 0x80, data[at] & 0x7F, int.from_bytes(data[at + 1 : at + 4], "big")
        if (block == _STREAMINFO) != (at == 4) or not _is_sound(block, data[at + 4 : at + 4 + size]):
            return None
        at += 4 + size
    if data[at : at + 2] not in _FIRST_FRAMES:
        return None
    packed = int.from_bytes(data[18:26], "big")
    header = FlacHeader(rate_hz=packed >> 44, channels=(packed >> 41 & 7) + 1, frames=packed & 0xF_FFFF_FFFF)
    bits_per_sample = (packed >> 36 & 31) + 1
    return header if header.rate_hz and header.frames and bits_per_sample in _BITS_PER_SAMPLE else None


def _is_sound(block: int, content: bytes) -> bool:
    """Whether a metadata block is of a type and structure that needs no check by libsndfile."""
    if block == _STREAMINFO:
        return len(content) == _STREAMINFO_BYTES
    if block == _SEEKTABLE:
        return len(content) % _SEEK_POINT_BYTES == 0
    return block == _PADDING or (block == _VORBIS_COMMENT and _are_comments(content))


def _are_comments(content: bytes) -> bool:
    """Whether the lengths of the vendor's name and of each comment add up to the block."""

    def number(at: int) -> int:
        return int.from_bytes(content[at : at + 4], "little")

    at = 4 + number(0)
    count, at = number(at), at + 4
    for _ in range(count):
        if at >= len(content):
            return False
        at += 4 + number(at)
    return at == len(content)


def read_flac(data: bytes, header: FlacHeader) -> NDArray[np.float32] | None:
    """Decode a complete FLAC file, float32 (frames, channels) in [-1, 1]; all of its samples are in memory at once.

    Returns None for a file that dr_flac does not decode completely, for example a damaged one: libsndfile then decodes
    it, or gives the reason.
    """
    read = _reader()
    if read is None:
        return None
    from miniaudio import MiniaudioError

    try:
        sound = read(data)
    except (MiniaudioError, ArithmeticError):  # miniaudio divides by the sample rate
        return None
    if (sound.num_frames, sound.nchannels, sound.sample_rate) != (header.frames, header.channels, header.rate_hz):
        return None
    return np.frombuffer(sound.samples, np.float32).reshape(header.frames, header.channels)


@cache
def _reader() -> Callable[[bytes], Any] | None:
    """Return miniaudio's function, which decodes outside the GIL; None if it is not installed."""
    try:
        from miniaudio import flac_read_f32
    except ImportError:
        return None
    read: Callable[[bytes], Any] = flac_read_f32
    return read

"""What an audio file's container shows of damage that libsndfile passes over. Pure: bytes in, a reason out.

libsndfile drops an Ogg page whose checksum is wrong and reads on, takes the last page that it finds for the end, and
shortens a WAV to the bytes that are there. Each of these is a shorter clip without an error. An Ogg file that ends with
a complete page is accepted where no page is marked as the last of its stream: some encoders mark none, and one that was
cut between two pages looks the same. FLAC needs nothing here:
libsndfile checks its checksums. An MP3 has no checksums; see `missing_frames_allowed` for what its header is good for.
"""

from __future__ import annotations

import re
import struct
import zlib

__all__ = ["damage_of", "missing_frames_allowed"]

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_OGG_PAGE = struct.Struct("<4sBBqIII")
_OGG_HEADER_BYTES, _FIRST_PAGE, _LAST_PAGE = 27, 2, 4
_UNKNOWN_WAV_BYTES = 0x7FFF_0000  # what writes to a pipe claims about 2 or 4 GiB; no member of a shard is as large
_MP3_FRAME = 1152
_MP3_TAG_WITHIN_BYTES = 4096


def damage_of(data: bytes) -> str:
    """Why a file is damaged or cut off, by what its container says; empty where it does not show."""
    if data.startswith(b"OggS"):
        return _damage_of_ogg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _damage_of_wav(data)
    return ""


def missing_frames_allowed(data: bytes, *, form: str) -> int | None:
    """Frames that decoding may give less than the header counts; None where the count is an estimate.

    The count of an MP3 is exact where its first frame is a Xing or Info tag, up to what a decoder drops at either end:
    two MP3 frames are allowed. Without the tag libsndfile estimates it from the size and the first bit rate.
    """
    if form != "MP3":
        return 0
    start = 0
    if data.startswith(b"ID3") and len(data) > 10:  # its size is in 7 bits of each of four bytes
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    has_count = re.search(rb"Xing|Info", data[start : start + _MP3_TAG_WITHIN_BYTES]) is not None
    return 2 * _MP3_FRAME if has_count else None


def _damage_of_ogg(data: bytes) -> str:
    """Walk the pages: each has a checksum and a number that goes up by one, until the last of a stream or file."""
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
    """CRC-32 of Ogg: zlib's polynomial, with the bits of every byte and of the result mirrored, from 0 and unturned."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def _damage_of_wav(data: bytes) -> str:
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data":
            there = len(data) - at
            if there < size < _UNKNOWN_WAV_BYTES:
                return f"it breaks off: its header claims {size:,} bytes of audio, and {there:,} are there"
            return ""
        at += size + size % 2
    return ""

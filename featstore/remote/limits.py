"""Limits for untrusted servers: bytes of an object, time of a transfer, names of a listing.

A size that a server states is never allocated: received bytes are counted, and reading stops after the requested
number. A transfer may take `client.RetryPolicy.transfer_seconds` (five minutes by default), and one more second for
each `LEAST_BYTES_A_SECOND` received bytes. So a slow connection that makes progress is not aborted, and a server that
sends a byte now and then is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

__all__ = ["LEAST_BYTES_A_SECOND", "MOST_BYTES", "MOST_DEPTH", "MOST_FOLDERS", "MOST_LISTED", "MOST_NAMES",
           "MOST_PAGE_BYTES", "Pace", "TooSlow", "read_limited"]  # fmt: skip

LEAST_BYTES_A_SECOND = 1000  # per request; up to 32 requests share a connection
MOST_BYTES = 512 << 20  # of an object of unknown size; a catalogue of 100,000 parts has a fifth of it
MOST_PAGE_BYTES = 32 << 20  # of an index page
MOST_NAMES = 1_000_000  # in one folder, or in total below a folder of a web server
MOST_LISTED = 5_000_000  # objects below a prefix of a bucket
MOST_FOLDERS = 20_000
MOST_DEPTH = 16


class TooSlow(Exception):
    """A server sends too slowly."""

    def __init__(self, received: int, seconds: float) -> None:
        super().__init__(
            f"received {received:,} bytes in {seconds:.0f} s, which is too slow; increase FEATSTORE_TIMEOUT"
        )


class Pace:
    """Checks the speed of one transfer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    def check(self, received: int) -> None:
        """Raise TooSlow if `received` bytes are too few for the elapsed time."""
        seconds = time.monotonic() - self._began
        if seconds > self._seconds + received / LEAST_BYTES_A_SECOND:
            raise TooSlow(received, seconds)


def read_limited(chunks: Iterable[Any], *, most_bytes: int, pace: Pace) -> bytes:
    """Join chunks up to `most_bytes` + 1 bytes, and do not read further; the extra byte shows that there is more."""
    pieces: list[Any] = []
    received = 0
    for chunk in chunks:
        pieces.append(chunk)
        received += len(chunk)
        if received > most_bytes:
            break
        pace.check(received)
    return b"".join(pieces)[: most_bytes + 1]

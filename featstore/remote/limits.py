"""What a server may cost: bytes of an object, time of a transfer, names of a listing. Nothing of a server is believed.

A size that a server states is never allocated: bytes are counted as they come, and reading stops past what was asked
for. A transfer may take `client.Patience.transfer_seconds` (five minutes by default), and a second more for every
`LEAST_BYTES_A_SECOND` that have come: whatever the size, a slow connection that makes progress is not cut off, and a
server that sends a byte now and then is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

__all__ = ["LEAST_BYTES_A_SECOND", "MOST_BYTES", "MOST_DEPTH", "MOST_FOLDERS", "MOST_LISTED", "MOST_NAMES",
           "MOST_PAGE_BYTES", "Pace", "TooSlow", "gathered"]  # fmt: skip

LEAST_BYTES_A_SECOND = 1000  # of one request; thirty-two of them share a connection
MOST_BYTES = 512 << 20  # of an object whose size no seal states: a catalogue of 100,000 parts has a fifth of it
MOST_PAGE_BYTES = 32 << 20  # of an index page
MOST_NAMES = 1_000_000  # of one folder, and of all that is below a folder of a web server
MOST_LISTED = 5_000_000  # objects below a prefix of a bucket
MOST_FOLDERS = 20_000
MOST_DEPTH = 16


class TooSlow(Exception):
    """A server sends less than it must."""

    def __init__(self, received: int, seconds: float) -> None:
        super().__init__(
            f"{received:,} bytes came in {seconds:.0f} s, which is too slow; FEATSTORE_TIMEOUT allows more"
        )


class Pace:
    """The clock of one transfer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = time.monotonic()

    def check(self, received: int) -> None:
        """Raise TooSlow where less has come than must have by now."""
        seconds = time.monotonic() - self._began
        if seconds > self._seconds + received / LEAST_BYTES_A_SECOND:
            raise TooSlow(received, seconds)


def gathered(chunks: Iterable[Any], *, most_bytes: int, pace: Pace) -> bytes:
    """Chunks as one: at most `most_bytes`, and one byte more where there is more, of which nothing else is taken."""
    taken: list[Any] = []
    received = 0
    for chunk in chunks:
        taken.append(chunk)
        received += len(chunk)
        if received > most_bytes:
            break
        pace.check(received)
    return b"".join(taken)[: most_bytes + 1]

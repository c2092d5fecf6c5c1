"""Bounds what lies between two stages that run at different speeds."""

from __future__ import annotations

import threading

__all__ = ["Room"]


class Room:
    """Lets numbered things in while what is inside stays under a limit, and the oldest always.

    Things leave in order of their numbers, 0, 1, 2... Were the oldest kept waiting for room, none could ever leave.

    Parameters
    ----------
    most_bytes : int
        What may be inside together; one thing alone may be larger.
    most_things : int
        How many numbers may be ahead of the oldest.
    """

    def __init__(self, *, most_bytes: int, most_things: int) -> None:
        self._most_bytes = most_bytes
        self._most_things = most_things
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._bytes = 0
        self._oldest = 0
        self._closed = False

    def enter(self, number: int, n_bytes: int) -> bool:
        """Wait for room for thing `number`; False where the room was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(number, n_bytes))
            if self._closed:
                return False
            self._inside[number] = n_bytes
            self._bytes += n_bytes
            return True

    def leave(self) -> None:
        """The oldest thing leaves, whether or not it had entered."""
        with self._changed:
            self._bytes -= self._inside.pop(self._oldest, 0)
            self._oldest += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Turn away whoever waits, and whoever comes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, number: int, n_bytes: int) -> bool:
        ahead = number - self._oldest
        return ahead <= 0 or (ahead < self._most_things and self._bytes + n_bytes <= self._most_bytes)

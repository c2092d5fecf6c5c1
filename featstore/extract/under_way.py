"""Keeps batches that were begun, and what follows them, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["UnderWay"]


class UnderWay:
    """Batches that were begun, and what is to be done once all before it are settled, in order.

    Parameters
    ----------
    at_most : int
        Batches that may be under way when another thing is asked for.
    """

    def __init__(self, *, at_most: int) -> None:
        self._at_most = at_most
        self._waiting: deque[tuple[Callable[[], None], bool]] = deque()
        self._batches = 0

    def batch(self, settle: Callable[[], None]) -> None:
        """A batch was begun; ``settle`` asks for its result."""
        self._waiting.append((settle, True))
        self._batches += 1
        self.settle(at_most=self._at_most)

    def then(self, action: Callable[[], None]) -> None:
        """Do something after the batches that are under way."""
        self._waiting.append((action, False))
        self.settle(at_most=self._at_most)

    def settle(self, *, at_most: int) -> None:
        """Settle batches until so many are under way, and do what waited for them."""
        while self._waiting and (self._batches > at_most or not self._waiting[0][1]):
            action, is_batch = self._waiting.popleft()
            self._batches -= is_batch
            action()

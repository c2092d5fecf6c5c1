"""Runs work in a thread pool ahead of its consumer, in order and with a limit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_order(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T], *, ahead: int) -> Iterator[_R]:
    """Yield the results of `work` for each item, in order; at most `ahead` results are pending or not yet consumed.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(in_order(pool, abs, [-3, 1, -2], ahead=2))
    [3, 1, 2]
    """
    pending: deque[Future[_R]] = deque()
    try:
        for item in items:
            if len(pending) >= ahead:
                yield pending.popleft().result()
            pending.append(pool.submit(work, item))
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()

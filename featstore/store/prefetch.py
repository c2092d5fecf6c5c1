"""Work done ahead of whoever takes its results, in order, and no further than is said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["in_order"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_order(pool: ThreadPoolExecutor, work: Callable[[_T], _R], items: Iterable[_T], *, ahead: int) -> Iterator[_R]:
    """Results of `work` for each item, in order; at most `ahead` of them are under way or wait to be taken.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(in_order(pool, abs, [-3, 1, -2], ahead=2))
    [3, 1, 2]
    """
    coming: deque[Future[_R]] = deque()
    try:
        for item in items:
            if len(coming) >= ahead:
                yield coming.popleft().result()
            coming.append(pool.submit(work, item))
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()

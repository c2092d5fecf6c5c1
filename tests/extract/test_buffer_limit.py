"""A buffer limit admits what fits, the oldest always, and never deadlocks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from featstore.extract.shard_reader import BufferLimit


def blocked(limit: BufferLimit, number: int, n_bytes: int) -> threading.Thread:
    thread = threading.Thread(target=limit.enter, args=(number, n_bytes), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_the_oldest_comes_in_however_large_it_is() -> None:
    assert BufferLimit(most_bytes=10, most_clips=5).enter(0, 1000)


def test_what_does_not_fit_waits_until_the_oldest_has_left() -> None:
    limit = BufferLimit(most_bytes=10, most_clips=5)
    limit.enter(0, 6)
    waiting = blocked(limit, 1, 5)
    assert waiting.is_alive()
    limit.leave()
    waiting.join(5)
    assert not waiting.is_alive()


def test_no_more_clips_than_allowed_are_ahead_of_the_oldest() -> None:
    limit = BufferLimit(most_bytes=10, most_clips=2)
    assert limit.enter(0, 0)
    assert limit.enter(1, 0)
    assert blocked(limit, 2, 0).is_alive()
    limit.close()


def test_one_that_never_entered_changes_nothing() -> None:
    limit = BufferLimit(most_bytes=10, most_clips=5)
    limit.leave()
    assert limit.enter(1, 10)


def test_none_is_admitted_once_it_is_closed() -> None:
    limit = BufferLimit(most_bytes=10, most_clips=5)
    limit.enter(0, 10)
    waiting = blocked(limit, 1, 1)
    limit.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert not limit.enter(2, 0)


def test_many_threads_with_clips_larger_than_the_limit_all_get_through() -> None:
    limit = BufferLimit(most_bytes=10, most_clips=8)
    with ThreadPoolExecutor(4) as pool:
        entered = [pool.submit(limit.enter, number, 7 + number % 9) for number in range(200)]
        for future in entered:
            assert future.result(timeout=10)
            limit.leave()

"""Room lets in what fits, the oldest always, and never deadlocks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from featstore.extract.shard_reader import Room


def blocked(room: Room, number: int, n_bytes: int) -> threading.Thread:
    thread = threading.Thread(target=room.enter, args=(number, n_bytes), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread


def test_the_oldest_comes_in_however_large_it_is() -> None:
    assert Room(most_bytes=10, most_things=5).enter(0, 1000)


def test_what_does_not_fit_waits_until_the_oldest_has_left() -> None:
    room = Room(most_bytes=10, most_things=5)
    room.enter(0, 6)
    waiting = blocked(room, 1, 5)
    assert waiting.is_alive()
    room.leave()
    waiting.join(5)
    assert not waiting.is_alive()


def test_no_more_things_than_allowed_are_ahead_of_the_oldest() -> None:
    room = Room(most_bytes=10, most_things=2)
    assert room.enter(0, 0)
    assert room.enter(1, 0)
    assert blocked(room, 2, 0).is_alive()
    room.close()


def test_one_that_never_entered_leaves_room_as_it_is() -> None:
    room = Room(most_bytes=10, most_things=5)
    room.leave()
    assert room.enter(1, 10)


def test_closing_turns_everybody_away() -> None:
    room = Room(most_bytes=10, most_things=5)
    room.enter(0, 10)
    waiting = blocked(room, 1, 1)
    room.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert not room.enter(2, 0)


def test_many_threads_with_things_larger_than_the_room_all_get_through() -> None:
    room = Room(most_bytes=10, most_things=8)
    with ThreadPoolExecutor(4) as pool:
        entered = [pool.submit(room.enter, number, 7 + number % 9) for number in range(200)]
        for future in entered:
            assert future.result(timeout=10)
            room.leave()

"""Shards that are handed out one after another: when the next is asked for, and what is fetched meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from featstore.errors import ShardError
from featstore.extract.shard_reader import ClipStream, ShardBreaks, ShardEnds
from featstore.extract.shards import AnyShard, find_shards
from featstore.remote import open_remote
from handmade import clip, noise, write_split

N_CLIPS = 80  # more than are read ahead


class Feed:
    """Yields shards at once, and notes when it was asked."""

    def __init__(self, shards: tuple[AnyShard, ...]) -> None:
        self.shards = shards
        self.second = threading.Event()

    def __iter__(self) -> Iterator[AnyShard]:
        for number, shard in enumerate(self.shards):
            if number == 1:
                self.second.set()
            yield shard

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feeds")
    clips = [clip(f"clip-{number:03d}", noise(0.05, seed=number)) for number in range(2 * N_CLIPS)]
    write_split(folder / "tiny", "train", clips, shards=2)
    return folder / "tiny"


@pytest.fixture
def elsewhere(folder: Path, request: pytest.FixtureRequest) -> str:
    url = f"memory://{request.node.name}"
    for path in folder.glob("*.tar"):
        open_remote(url).put(path.name, path.read_bytes())
    return url


def stream(feed: Feed) -> ClipStream:
    return ClipStream(feed, sample_rate_hz=16000, max_clip_seconds=10, decode_threads=1)


def test_the_next_shard_of_a_url_is_fetched_while_the_one_before_is_read(elsewhere: str) -> None:
    feed = Feed(find_shards(elsewhere, "train-*.tar"))
    with stream(feed) as clips:
        assert feed.second.wait(20)  # of the first shard no clip has been taken
        ends = [event for event in clips if isinstance(event, ShardEnds)]
    assert [event.shard.name for event in ends] == [shard.name for shard in feed.shards]


def test_a_shard_of_this_machine_is_asked_for_when_the_one_before_has_been_read(folder: Path) -> None:
    feed = Feed(find_shards(folder, "train-*.tar"))
    with stream(feed) as clips:
        assert not feed.second.wait(0.2)
        assert sum(isinstance(event, ShardEnds) for event in clips) == 2
    assert feed.second.is_set()


def test_a_shard_that_cannot_be_fetched_ahead_breaks_in_its_turn(elsewhere: str, tmp_path: Path) -> None:
    feed = Feed(find_shards(elsewhere, "train-*.tar"))
    open_remote(elsewhere).delete([feed.shards[1].name])
    with stream(feed) as clips:
        ends = [event for event in clips if isinstance(event, ShardEnds | ShardBreaks)]
    assert [type(event) for event in ends] == [ShardEnds, ShardBreaks]
    assert isinstance(ends[1], ShardBreaks)
    assert isinstance(ends[1].error, ShardError)


def test_what_was_fetched_and_is_not_read_leaves_no_file(
    elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with stream(Feed(find_shards(elsewhere, "train-*.tar"))) as clips:
        next(iter(clips))
    assert not list(tmp_path.iterdir())

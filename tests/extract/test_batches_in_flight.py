"""Batches that are begun before the last is complete make the same store, in the same order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import featstore
import tiny
from featstore.encoders.batch_outputs import Encoded
from featstore.encoders.runner import EncoderRun
from featstore.errors import EncoderContractError, ShardError, StoreError
from featstore.extract import pipeline
from featstore.extract import shard_reader as stream
from featstore.extract.batching import LengthBatcher
from featstore.extract.pipeline import ShardState
from featstore.extract.results import ClipTaken, EncodeSettings, Finished, ShardEncoded, ShardRead
from featstore.extract.shard_reader import (
    ClipRead,
    DecodedClip,
    Event,
    ShardAwaited,
    ShardBegins,
    ShardBreaks,
    ShardEnds,
)
from featstore.extract.windows import Window
from featstore.store import EmbeddedWindow, Member, PartWriter, ShardIdentity
from handmade import assert_equal_stores, build, clip, extract, noise, write_split, write_tar


@dataclass
class Source:
    """A shard of clips of these lengths, in samples. A window's first sample is its number."""

    name: str
    lengths: list[int]
    breaks: bool

    def identity(self, *, sha256: str = "") -> ShardIdentity:
        return ShardIdentity(name=self.name, size=1, mtime_ns=1, sha256=sha256)


def known(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class Stream:
    """Events of shards that need no decoding; after each shard, and in the middle, the next is waited for."""

    read_seconds = decode_seconds = 0.0

    def __init__(self, shards: Sequence[Source], **_: Any) -> None:
        self.shards = shards

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        number = itertools.count(1)
        for shard in self.shards:
            yield ShardBegins(shard, shard.identity())  # type: ignore[arg-type]
            for length in shard.lengths:
                samples = np.full(length, next(number), np.float32)
                clip = DecodedClip(key=f"{samples[0]:g}", meta="{}", samples=samples)
                yield ClipRead(clip.key, known(clip))
            if shard.breaks:
                yield ShardBreaks(shard, ShardError(shard.name))  # type: ignore[arg-type]
            else:
                yield ShardEnds(shard, known("00"))  # type: ignore[arg-type]
            if len(shard.lengths) % 3 == 2:
                yield ShardAwaited()


class Late:
    """An encoder that returns the first sample of each window; notes the windows of each batch in order."""

    busy_seconds = 0.0

    def __init__(self, *, batches_ahead: int) -> None:
        self.batches_ahead = batches_ahead
        self.begun: list[list[float]] = []
        self.in_flight = self.most_in_flight = 0

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], Sequence[Encoded]]:
        self.begun.append(audio[:, 0].tolist())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

        def result() -> Sequence[Encoded]:
            self.in_flight -= 1
            return [Encoded(utterance=audio[:, :1].copy(), frames=None)]

        return result


class Store:
    """Notes the parts that are committed, in order, and those that are aborted."""

    def __init__(self) -> None:
        self.committed: dict[str, list[tuple[str, float]]] = {}
        self.aborted: list[str] = []

    def begin_part(self, shard: str, *, generation: int | None) -> SimpleNamespace:
        windows: list[EmbeddedWindow] = []

        def commit(members: list[Member], **_: Any) -> SimpleNamespace:
            self.committed[shard] = [(window.key, float(window.utterance[0])) for window in windows]
            return SimpleNamespace(objects={})

        return SimpleNamespace(
            windows=0, frames=0, add=windows.append, commit=commit, abort=lambda: self.aborted.append(shard)
        )


SOURCES = st.lists(
    st.tuples(st.lists(st.integers(1, 9), max_size=7), st.sampled_from([False, False, True])), max_size=7
)


@given(drawn=SOURCES, batches_ahead=st.integers(0, 3), shards_ahead=st.integers(0, 4), may_wait=st.booleans())
def test_every_shard_is_committed_once_with_its_windows_in_order_whatever_shares_a_batch_or_breaks(
    *, drawn: list[tuple[list[int], bool]], batches_ahead: int, shards_ahead: int, may_wait: bool
) -> None:
    sources = [Source(f"s{n}", lengths, breaks) for n, (lengths, breaks) in enumerate(drawn)]
    store, encoder, opened = Store(), Late(batches_ahead=batches_ahead), []

    class Watched(pipeline.ShardExtraction):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            opened.append(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "ClipStream", Stream)
        patched.setattr(pipeline, "ShardExtraction", Watched)
        run = pipeline.Pipeline(
            targets=lambda _: [pipeline.PartTarget(output=0, writer=store, frames_stored=False, generation=0)],  # type: ignore[arg-type]
            encoder=encoder,
            encoder_name="late",
            plan=lambda n: (Window(start=0, stop=n, padded=-(-n // 3) * 3),),
            batcher=LengthBatcher(budget_samples=12, shards_ahead=shards_ahead),
            max_pending_bytes=None if may_wait else 8,
            settings=EncodeSettings(
                sample_rate_hz=16_000,
                max_clip_seconds=9,
                decode_threads=1,
                versions={},
                device="cpu",
                batch_seconds=1.0,
            ),
        )
        events = [(len(encoder.begun), event) for event in run.run(sources)]  # type: ignore[arg-type]
    assert encoder.in_flight == 0
    assert encoder.most_in_flight <= batches_ahead + 1  # one more while the next is begun
    clips = itertools.count(1)
    keys = {source.name: [next(clips) for _ in source.lengths] for source in sources}
    good = {source.name for source in sources if not source.breaks}
    assert store.committed == {name: [(str(key), float(key)) for key in keys[name]] for name in good}
    assert sorted(store.aborted) == sorted(source.name for source in sources if source.breaks)
    assert [each.state for each in opened] == [
        ShardState.FAILED if each.breaks else ShardState.COMMITTED for each in sources
    ]
    read = {event.shard.name: n_begun for n_begun, event in events if isinstance(event, ShardRead)}
    begun = {key: n_begun for n_begun, batch in enumerate(encoder.begun, start=1) for key in batch}
    complete = [max(read[name], *(begun[key] for key in keys[name]), 0) for name in store.committed]
    assert complete == sorted(complete)  # committed in the order in which they were read and all their windows begun
    assert sum(isinstance(event, ClipTaken) for _, event in events) == sum(len(source.lengths) for source in sources)
    assert list(read) == [source.name for source in sources]
    assert {event.shard.name for _, event in events if isinstance(event, ShardEncoded)} == good
    assert isinstance(events[-1][1], Finished)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = [clip(f"c{n:02d}", noise(0.2 + 0.17 * (n % 5), seed=n)) for n in range(30)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=5)
    return tmp_path / "data"


def answering_late(patched: pytest.MonkeyPatch, *, batches_ahead: int) -> list[int]:
    """Let the encoder be asked for batches ahead, as on a GPU; notes how many were not yet asked for."""
    begin = EncoderRun.begin
    unsettled: list[int] = [0]

    def late(
        run: EncoderRun, audio: NDArray[np.float32], n_samples: NDArray[np.int64]
    ) -> Callable[[], Sequence[Encoded]]:
        unsettled.append(unsettled[-1] + 1)

        def result() -> Sequence[Encoded]:
            unsettled.append(unsettled[-1] - 1)
            return begin(run, audio, n_samples)()

        return result

    patched.setattr(EncoderRun, "begin", late)
    patched.setattr(EncoderRun, "batches_ahead", batches_ahead)
    return unsettled


@pytest.mark.parametrize("batches_ahead", [1, 3])
def test_a_store_is_the_same_however_many_batches_are_ahead(data: Path, tmp_path: Path, batches_ahead: int) -> None:
    options = {"frames": "always", "batch_seconds": 1.0}
    extract(tiny.task(), data, tmp_path / "at-once", **options)
    with pytest.MonkeyPatch.context() as patched:
        unsettled = answering_late(patched, batches_ahead=batches_ahead)
        (record,) = extract(tiny.task(), data, tmp_path / "late", **options)
    assert max(unsettled) == batches_ahead + 1  # one more while the next is begun
    assert unsettled[-1] == 0
    assert record.shards_done == 5
    assert_equal_stores(tmp_path / "at-once", tmp_path / "late")


def test_a_part_is_never_committed_without_windows_whose_write_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of a window fails while the commit of its shard is queued behind it, and the disk is well again."""
    add, seen = PartWriter.add, []

    def failing_once(part: PartWriter, window: EmbeddedWindow) -> None:
        seen.append(window.key)
        if len(seen) == 3:
            time.sleep(0.3)  # the encoder is done with the shard meanwhile
            raise StoreError("cannot write to the store: a cable was pulled")
        add(part, window)

    monkeypatch.setattr(PartWriter, "add", failing_once)
    with pytest.raises(StoreError, match="a cable was pulled"):
        extract(tiny.task(), data, tmp_path / "store")
    monkeypatch.undo()
    held = [fs.key.tolist() for fs in featstore.open(str(tmp_path / "store")).feature_sets()]
    assert all(len(keys) % 6 == 0 and "c00" not in keys for keys in held)  # whole shards, and not the one that failed
    extract(tiny.task(), data, tmp_path / "store")
    extract(tiny.task(), data, tmp_path / "whole")
    assert_equal_stores(tmp_path / "store", tmp_path / "whole")


def test_a_content_hash_that_is_still_to_come_when_all_clips_are_encoded_is_waited_for(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (8, 9):
        write_tar(data / "tiny" / f"train-{number}.tar", [])
    original = stream.sha256_of_file
    monkeypatch.setattr(stream, "sha256_of_file", lambda path: time.sleep(0.2) or original(path))
    (record,) = extract(tiny.task(), data, tmp_path / "store", workers=1)
    assert record.shards_done == 7


class BreaksOnLoud(torch.nn.Module):
    sampling_rate, output_dim, hop_size_in_ms = 16_000, 4, 40

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        frames = audio[:, : audio.shape[1] // 640 * 640].reshape(len(audio), -1, 640)[:, :, :4]
        return torch.where(frames.abs().amax(dim=(1, 2), keepdim=True) > 0.9, torch.nan, frames)


def test_a_clip_that_breaks_a_batch_is_named_though_the_next_was_begun(data: Path, tmp_path: Path) -> None:
    loud = clip("loud", np.full(9000, 0.99, np.float32))
    write_split(tmp_path / "data/tiny", "train-loud", [loud])
    with pytest.MonkeyPatch.context() as patched:
        answering_late(patched, batches_ahead=2)
        with pytest.raises(EncoderContractError, match=r"'loud'.*train-loud-000\.tar.*NaN"):
            extract(tiny.task(), data, tmp_path / "store", encoder=build(BreaksOnLoud()))

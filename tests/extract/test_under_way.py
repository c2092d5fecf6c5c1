"""Batches that are begun before the last is settled come to the same store, in the same order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
from featstore.errors import EncoderContractError, StoreError
from featstore.extract import shard_reader as stream
from featstore.extract.pipeline import UnderWay
from featstore.store import EmbeddedWindow, PartWriter
from handmade import assert_equal_stores, build, clip, extract, noise, write_split, write_tar


@given(things=st.lists(st.booleans(), max_size=30), at_most=st.integers(0, 3))
def test_batches_and_what_waits_for_them_are_done_in_order_and_in_time(things: list[bool], at_most: int) -> None:
    under_way = UnderWay(at_most=at_most)
    done: list[int] = []
    for number, is_batch in enumerate(things):
        (under_way.batch if is_batch else under_way.then)(lambda number=number: done.append(number))  # type: ignore[misc]
        waiting = [n for n in range(number + 1) if n not in done]
        assert sum(things[n] for n in waiting) <= at_most
        assert not waiting or things[waiting[0]]  # nothing waits but for a batch
    under_way.settle(at_most=0)
    assert done == list(range(len(things)))


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
        with pytest.raises(EncoderContractError, match=r"clip 'loud' of train-loud-000\.tar: .* NaN"):
            extract(tiny.task(), data, tmp_path / "store", encoder=build(BreaksOnLoud()))

"""Batches on their way through the encoder: gathered from windows, begun, and settled in the order they began."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import EncoderContractError, EncoderError
from featstore.extract.batches import Batch, Batcher, PendingWindow, stack
from featstore.extract.outcome import EncodeSettings, StageTimes
from featstore.extract.shard_work import ShardWork
from featstore.extract.stream import ShardEnds
from featstore.extract.under_way import UnderWay

if TYPE_CHECKING:
    from featstore.encoders.made import Encoded

__all__ = ["BatchEncoder", "BatchWork"]


class BatchEncoder(Protocol):
    """Encodes batches: see `featstore.encoders.running.EncoderRun`."""

    @property
    def batches_ahead(self) -> int:
        """Batches to begin before the result of the first is asked for."""

    @property
    def busy_seconds(self) -> float:
        """Time that the device has spent on batches."""

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Zeros for a batch to be laid out in."""

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], Sequence[Encoded]]:
        """Begin one batch: audio (batch, samples), n_samples int64 (batch,). The callable gives each output."""


class BatchWork:
    """Windows of the shards that are open, on their way through the encoder.

    Parameters
    ----------
    commit : callable
        Is told of a shard, and of the hash of its file, once all of its windows are encoded.
    most_held_bytes : int or None
        When so much of embeddings waits for others, windows wait no longer; None where none outlasts its shard.
    """

    def __init__(
        self,
        *,
        encoder: BatchEncoder,
        encoder_name: str,
        batcher: Batcher,
        commit: Callable[[ShardWork, Future[str]], None],
        most_held_bytes: int | None,
        settings: EncodeSettings,
        times: StageTimes,
    ) -> None:
        self._encoder = encoder
        self._encoder_name = encoder_name
        self._batcher = batcher
        self._commit = commit
        self._most_held_bytes = most_held_bytes
        self._budget_samples = settings.batch_seconds * settings.sample_rate_hz
        self._times = times
        self._under_way = UnderWay(at_most=encoder.batches_ahead)
        self._open: dict[int, ShardWork] = {}
        self._closed: dict[int, Future[str]] = {}

    def open(self, shard: ShardWork) -> None:
        """Windows of this shard are to come."""
        self._open[shard.number] = shard

    def add(self, window: PendingWindow) -> None:
        """Take a window; begin what has become a batch."""
        for batch in self._batcher.add(window):
            self._begin(batch)
            self._make_room()

    def _make_room(self) -> None:
        """Let as many windows as it takes wait no longer, those first that have waited longest."""
        while self._most_held_bytes is not None and self._held_bytes() > self._most_held_bytes:
            self._under_way.settle(at_most=0)
            if not (batches := tuple(self._batcher.oldest())):
                return
            for batch in batches:
                self._begin(batch)

    def _held_bytes(self) -> int:
        """Embeddings in memory because a window waits: those behind it, and what is unwritten of whole shards."""
        waiting = sum(shard.waiting_bytes for shard in self._open.values())
        return waiting + sum(self._open[number].unwritten_bytes for number in self._closed)

    def end_shard(self, shard: ShardWork) -> None:
        """No more windows of this shard are to come: begin what is to wait no longer."""
        for batch in self._batcher.end_shard(shard.number):
            self._begin(batch)

    def close(self, shard: ShardWork, ended: ShardEnds) -> None:
        """Let the shard be committed once all of its windows are encoded, which may be now."""
        self._closed[shard.number] = ended.sha256
        self._commit_if_all_begun(shard)

    def give_up(self, shard: ShardWork) -> None:
        """The shard broke off: what was written of it goes."""
        self._batcher.forget(shard.number)
        del self._open[shard.number]
        self._under_way.then(shard.give_up)

    def then(self, action: Callable[[], None]) -> None:
        """Do something after the batches that are under way."""
        self._under_way.then(action)

    def settle_all(self) -> None:
        """Nothing comes for now: begin what waits for others, and wait for all that is under way."""
        for batch in self._batcher.flush():
            self._begin(batch)
        self._under_way.settle(at_most=0)

    def _begin(self, batch: Batch) -> None:
        shards = {window.shard: self._open[window.shard] for window in batch}
        with self._told_of(batch, shards):
            audio, n_samples = stack(batch, blank=self._encoder.blank)
            result = self._encoder.begin(audio, n_samples)
        self._times.batches += 1
        self._times.budgets += min(1.0, audio.size / self._budget_samples)
        self._under_way.batch(partial(self._settle, batch, shards, result))
        for window in batch:
            shards[window.shard].note_begun()
        for shard in shards.values():
            self._commit_if_all_begun(shard)

    def _commit_if_all_begun(self, shard: ShardWork) -> None:
        if shard.number in self._closed and shard.is_all_begun:
            del self._open[shard.number]
            self._under_way.then(partial(self._commit, shard, self._closed.pop(shard.number)))

    def _settle(self, batch: Batch, shards: Mapping[int, ShardWork], result: Callable[[], Sequence[Encoded]]) -> None:
        with self._told_of(batch, shards):
            outputs = result()
        for row, window in enumerate(batch):
            shards[window.shard].keep(window.index, outputs, row=row)
        for shard in shards.values():
            shard.store_what_is_next()

    @contextmanager
    def _told_of(self, batch: Batch, shards: Mapping[int, ShardWork]) -> Iterator[None]:
        """Count the time as the encoder's, and let its errors name the clip."""
        from featstore.encoders.running import NonFiniteRow  # it imports torch: whoever encodes has that already

        began = time.perf_counter()
        try:
            yield
        except NonFiniteRow as problem:
            clip = _told(batch[problem.row], shards)
            raise EncoderContractError(f"{self._encoder_name} failed on {clip}: {problem}") from problem
        except EncoderError as problem:
            others = f" or the {len(batch) - 1} batched with it" if len(batch) > 1 else ""
            raise type(problem)(f"{problem}; it was at {_told(batch[0], shards)}{others}") from problem
        finally:
            self._times.encode += time.perf_counter() - began


def _told(window: PendingWindow, shards: Mapping[int, ShardWork]) -> str:
    work = shards[window.shard]
    return f"clip {work.key_of(window.index)!r} of {work.shard.name}"

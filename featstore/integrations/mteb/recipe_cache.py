"""The clips of one recipe in a store: looked up by content, encoded if they are missing, and committed in parts."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featstore.errors import EncoderContractError, EncoderError, StoreNotFound, UnusableClip
from featstore.extract.encoder_changes import DriftCheck
from featstore.extract.job import EncodeJob, EncoderCard, StoredOutput, software_versions
from featstore.extract.options import ExtractOptions
from featstore.extract.task import stored_recipes
from featstore.integrations.mteb.calls import DATASETS, Call, Clip, groups
from featstore.store import EmbeddedWindow, FeatureSet, Member, ShardIdentity, SplitWriter, open_store

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading

__all__ = ["Encoded", "Encoding", "RecipeCache", "versions"]

_log = logging.getLogger("featstore")

_PART_CLIPS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Windows of a clip in seconds, with their vectors, float32 (windows, dim)."""

    starts: tuple[float, ...]
    seconds: tuple[float, ...]
    utterance: NDArray[np.float32]


class Encoding(Protocol):
    """A model under the recipe of a call."""

    @property
    def card(self) -> EncoderCard:
        """The recipe, with one output."""

    @property
    def options(self) -> ExtractOptions:
        """Options of extraction."""

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Return the output for the reference signals."""

    def group_seconds(self, job: EncodeJob) -> float:
        """Seconds of audio to encode in one call of `encode`."""

    def encode(self, clips: Sequence[Clip], call: Call, job: EncodeJob) -> list[Encoded | UnusableClip]:
        """Encode clips of a call."""


class RecipeCache:
    """The clips of one recipe in a store: looked up by key, and encoded if they are missing.

    Several processes may use one store. A clip that two of them encode at the same time is stored twice, with the same
    vectors.
    """

    def __init__(self, encoding: Encoding, *, store_url: str, commit_seconds: float) -> None:
        self._encoding = encoding
        self._store_url = store_url
        self._commit_seconds = commit_seconds
        [self._recipe], notes = stored_recipes(encoding.card, store_url)
        self._check = DriftCheck(encoding, notes=notes)
        self._places: dict[str, tuple[FeatureSet, int, int]] = {}  # feature set, first window, end
        self._read: dict[str, tuple[str, ...]] = {}  # path of a feature set -> its parts when it was read

    def embed(self, call: Call) -> NDArray[np.float32]:
        """Return the vectors of all clips of a call, after encoding those that the store lacks."""
        self._refresh()
        keys: list[str] = []
        unusable = self._encode_missing(call, keys)
        if unusable:
            row, reason = next(iter(unusable.items()))
            raise UnusableClip(
                f"{len(unusable)} of {len(keys)} clips of {call.dataset}/{call.split} cannot be used, all others are "
                f"in the store; input {row}: {reason}"
            )
        if keys and not all(key in self._places for key in keys):
            self._refresh()
        vectors = np.empty((len(keys), self._recipe.dim), np.float32)
        for row, key in enumerate(keys):
            vectors[row] = self._vector(key)
        return vectors

    def _encode_missing(self, call: Call, keys: list[str]) -> dict[int, UnusableClip]:
        """Append the keys of a call's clips to `keys`, and encode the missing ones. Returns unusable clips by row."""
        found = set()

        def missing() -> Iterator[Clip]:
            for clip in call.clips():
                keys.append(clip.key)
                if clip.key not in self._places and clip.key not in found:
                    found.add(clip.key)
                    yield clip

        job = self._job(call)
        writer: SplitWriter | None = None
        unusable: dict[int, UnusableClip] = {}
        pending: list[_Pending] = []
        committed_at = time.monotonic()
        try:
            for group in groups(missing(), seconds=partial(self._encoding.group_seconds, job)):
                writer = writer or self._open_writer(job)
                for clip, encoded in zip(group, self._encode(group, call, job), strict=True):
                    if isinstance(encoded, UnusableClip):
                        unusable[clip.row] = encoded
                    else:
                        pending.append(_Pending(key=clip.key, row=clip.row, meta=call.meta(clip), encoded=encoded))
                if len(pending) >= _PART_CLIPS or time.monotonic() - committed_at >= self._commit_seconds:
                    part, pending = pending, []
                    _commit(writer, part, split=call.split)
                    committed_at = time.monotonic()
        finally:
            if writer is not None:
                if pending:
                    _commit(writer, pending, split=call.split)
                writer.write_catalogue()
        _log.info("%s/%s: encoded %d of %d clips", call.dataset, call.split, len(found) - len(unusable), len(keys))
        return unusable

    def _encode(self, group: list[Clip], call: Call, job: EncodeJob) -> list[Encoded | UnusableClip]:
        try:
            return self._encoding.encode(group, call, job)
        except EncoderError as error:
            rows = f"{group[0].row} to {group[-1].row}" if len(group) > 1 else str(group[0].row)
            kind = EncoderContractError if isinstance(error, EncoderContractError) else EncoderError
            raise kind(f"{error}; it was at inputs {rows} of {call.dataset}/{call.split}") from error

    def _job(self, call: Call) -> EncodeJob:
        card, options = self._encoding.card, self._encoding.options
        return EncodeJob(
            card=card,
            outputs=(StoredOutput(recipe=self._recipe, spec=card.outputs[0].spec, frames_stored=False),),
            options=options,
            frames_wanted=False,
            store_url=self._store_url,
            data_folder="",
            dataset=call.dataset,
            crop_seconds=None,
            split=call.split,
        )

    def _open_writer(self, job: EncodeJob) -> SplitWriter:
        """Open the feature set of a call, after comparing the encoder's output with the stored one."""
        self._check.check_once(job)  # before anything is written
        writer = job.open_writer(job.outputs[0])
        self._check.note_canaries(self._store_url)
        for note in self._check.take_notes():
            _log.warning("%s", note)
        writer.begin_run()
        if writer.has_leftovers:
            writer.sweep()
        return writer

    def _refresh(self) -> None:
        """Find the clips of the feature sets that have changed since they were read."""
        try:
            store = open_store(self._store_url)
        except StoreNotFound:
            return
        for fs in store.feature_sets(encoder=self._recipe.group_name):
            parts = tuple(segment.commit.part for segment in fs.segments)
            if not fs.dataset.startswith(DATASETS) or not len(fs) or self._read.get(fs.path) == parts:
                continue
            firsts = np.flatnonzero(fs.start_seconds == 0.0).tolist()
            for key, first, end in zip(fs.clip_key.tolist(), firsts, [*firsts[1:], len(fs)], strict=True):
                self._places[key] = (fs, first, end)
            self._read[fs.path] = parts

    def _vector(self, key: str) -> NDArray[np.floating[Any]]:
        """Vector of a clip: the mean of its windows, weighted by their durations."""
        fs, first, end = self._places[key]
        windows = fs.utterance_rows.slice(first, end)
        return windows[0] if len(windows) == 1 else np.average(windows, axis=0, weights=fs.seconds[first:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pending:
    """An encoded clip that is not committed yet."""

    key: str
    row: int
    meta: str
    encoded: Encoded


def _commit(writer: SplitWriter, clips: Sequence[_Pending], *, split: str) -> None:
    """Commit clips as one part. Its shard is named by the split and the first row, by which shards are sorted."""
    digest = hashlib.sha256("\n".join(clip.key for clip in clips).encode()).hexdigest()
    name = f"{split}-{clips[0].row:07d}-{digest[:8]}.tar"
    with writer.begin_part(name) as part:
        for clip in clips:
            encoded = clip.encoded
            for nth, vector in enumerate(encoded.utterance):
                part.add(
                    EmbeddedWindow(
                        key=f"{clip.key}#{nth + 1}" if nth else clip.key,
                        meta=clip.meta,
                        start_seconds=encoded.starts[nth],
                        seconds=encoded.seconds[nth],
                        utterance=vector,
                        frames=None,
                    )
                )
        member = Member(
            shard=ShardIdentity(name=name, size=len(clips), sha256=digest),
            clips=len(clips),
            windows=part.windows,
            frames=0,
            audio_seconds=round(sum(sum(clip.encoded.seconds) for clip in clips), 6),
            skipped=(),
        )
        part.commit([member], frames_stored=False, versions=versions())


def versions() -> dict[str, str]:
    """Versions of the packages that affect embeddings."""
    return {**software_versions(), "mteb": metadata.version("mteb")}

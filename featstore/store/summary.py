"""Statistics of a feature set: its size, its provenance, and properties of its embeddings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.records import SkippedClip
from featstore.store.feature_set import FeatureSet
from featstore.store.format import Commit

__all__ = ["Details", "Quartiles", "ShardSummary", "Summary", "busy_seconds", "examine", "summarise"]

_READ_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Size of a feature set. ``frames`` is None if frames are not stored; ``bytes`` is the size of the current parts.

    ``left_out`` is the number of skipped clips.
    """

    path: str
    encoder: str
    fingerprint: str
    dataset: str
    split: str
    clips: int
    windows: int
    dim: int
    frames: int | None
    audio_seconds: float
    bytes: int
    left_out: int


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Minimum, lower quartile, median, upper quartile and maximum."""

    low: float
    q1: float
    median: float
    q3: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """One shard and its current part. ``seconds`` is the time to write the part, with all its shards.

    ``left_out`` is the number of skipped clips.
    """

    shard: str
    size: int
    sha256: str
    part: str
    clips: int
    windows: int
    audio_seconds: float
    left_out: int
    committed_at: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Detailed statistics of one feature set.

    Attributes
    ----------
    summary : Summary
    recipe : mapping
        JSON of the recipe.
    content_hash : str
    shards : tuple of ShardSummary
        In order of name.
    versions : mapping
        Software, with all versions that made a part.
    first_commit, last_commit : str or None
        ISO 8601.
    audio_seconds_per_second : float or None
        Throughput of the runs that made the parts; None if all parts were compacted, which discards the times.
    skipped : tuple of SkippedClip
    window_seconds, norms, frame_lengths : Quartiles or None
        Of window durations without padding, of Euclidean norms of finite utterance vectors, and of frames per window.
    windows_not_finite : int
        Windows whose utterance vector has a NaN or an infinity.
    repeated_keys : int
        Windows with the same key as an earlier window.
    repeated_vectors : int
        Windows with exactly the same utterance vector as an earlier window, usually a duplicate recording.
    """

    summary: Summary
    recipe: Mapping[str, Any]
    content_hash: str
    shards: tuple[ShardSummary, ...]
    versions: Mapping[str, tuple[str, ...]]
    first_commit: str | None
    last_commit: str | None
    audio_seconds_per_second: float | None
    skipped: tuple[SkippedClip, ...]
    window_seconds: Quartiles | None
    norms: Quartiles | None
    frame_lengths: Quartiles | None
    windows_not_finite: int
    repeated_keys: int
    repeated_vectors: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, with the fields of the summary at the same level."""
        raw = asdict(self)
        return {**raw.pop("summary"), **raw}


def summarise(fs: FeatureSet) -> Summary:
    """Summarise a feature set from its commit records, without reading arrays."""
    return _summary(fs, fs.commits())


def examine(fs: FeatureSet) -> Details:
    """Compute the details of a feature set from its commit records, keys and utterance vectors, in bounded memory."""
    commits = fs.commits()
    versions: dict[str, set[str]] = {}
    for commit in commits:
        for name, version in commit.versions.items():
            versions.setdefault(name, set()).add(version)
    committed = sorted(commit.committed_at for commit in commits)
    vectors = _vector_statistics(fs)
    return Details(
        summary=_summary(fs, commits),
        recipe=fs.recipe.as_json(),
        content_hash=fs.content_hash,
        shards=_shards(fs),
        versions={name: tuple(sorted(found)) for name, found in sorted(versions.items())},
        first_commit=committed[0] if committed else None,
        last_commit=committed[-1] if committed else None,
        audio_seconds_per_second=_throughput(commits),
        skipped=fs.skipped,
        window_seconds=_quartiles(fs.seconds),
        norms=_quartiles(vectors.norms),
        frame_lengths=_quartiles(fs.frames.lengths) if fs.has_frames else None,
        windows_not_finite=vectors.not_finite,
        repeated_keys=sum(count - 1 for count in Counter(fs.key.tolist()).values()),
        repeated_vectors=vectors.repeated,
    )


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Total length of the union of intervals, which may overlap.

    >>> busy_seconds([(0.0, 2.0), (1.0, 3.0), (10.0, 11.0)])
    4.0
    """
    total, until = 0.0, -np.inf
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return float(total)


def _summary(fs: FeatureSet, commits: Sequence[Commit]) -> Summary:
    return Summary(
        path=fs.path,
        encoder=fs.encoder,
        fingerprint=fs.fingerprint,
        dataset=fs.dataset,
        split=fs.split,
        clips=fs.n_clips,
        windows=len(fs),
        dim=fs.recipe.dim,
        frames=fs.n_frames if fs.has_frames else None,
        audio_seconds=fs.audio_seconds,
        bytes=sum(entry.size for commit in commits for entry in commit.objects.values()),
        left_out=len(fs.skipped),
    )


def _shards(fs: FeatureSet) -> tuple[ShardSummary, ...]:
    return tuple(
        ShardSummary(
            shard=segment.member.shard.name,
            size=segment.member.shard.size,
            sha256=segment.member.shard.sha256,
            part=segment.commit.part,
            clips=segment.member.clips,
            windows=segment.member.windows,
            audio_seconds=segment.member.audio_seconds,
            left_out=len(segment.member.skipped),
            committed_at=segment.commit.committed_at,
            seconds=segment.commit.seconds,
        )
        for segment in fs.segments
    )


def _throughput(commits: Iterable[Commit]) -> float | None:
    # A part with several members was compacted: its seconds are for copying, not for encoding.
    encoded = [commit for commit in commits if len(commit.members) == 1]
    ends = [datetime.fromisoformat(commit.committed_at).timestamp() for commit in encoded]
    busy = busy_seconds((end - commit.seconds, end) for end, commit in zip(ends, encoded, strict=True))
    return sum(commit.members[0].audio_seconds for commit in encoded) / busy if busy > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vectors:
    norms: NDArray[np.float64]
    not_finite: int
    repeated: int


def _vector_statistics(fs: FeatureSet) -> _Vectors:
    norms = np.empty(len(fs), np.float64)
    seen: set[bytes] = set()
    rows_per_read = max(1, _READ_BYTES // (4 * fs.recipe.dim))
    for start in range(0, len(fs), rows_per_read):
        rows = fs.utterance_rows.slice(start, min(start + rows_per_read, len(fs)))
        norms[start : start + len(rows)] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        seen.update(hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)
    finite = np.isfinite(norms)
    return _Vectors(norms=norms[finite], not_finite=int((~finite).sum()), repeated=len(fs) - len(seen))


def _quartiles(values: NDArray[Any]) -> Quartiles | None:
    return Quartiles(*np.percentile(values, [0, 25, 50, 75, 100]).tolist()) if len(values) else None

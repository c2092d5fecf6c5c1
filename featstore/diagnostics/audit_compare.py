"""Compares clips that were encoded again with one feature set of a store, and collects the findings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.diagnostics.certificate import AuditFinding, FindingKind
from featstore.extract.job import XARES_BATCH
from featstore.extract.reencode import ReadShard, ReencodedClip, UnreadClip, UnreadShard
from featstore.formatting import counted

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = ["SampledSet", "compare", "finding_of_clip", "padded_lengths", "read_set"]

_FRAME_FACTOR = 4.0
"""Errors of single frames do not average out, as those of a mean over frames do."""
_FLOAT16_ROUNDING = 2.0**-10


@dataclass(frozen=True, slots=True)
class _ShardRows:
    """Clips [first_clip, stop_clip) and rows [first_row, stop_row) of a shard in a feature set, and its stored size."""

    first_clip: int
    stop_clip: int
    first_row: int
    stop_row: int
    size: int


@dataclass(slots=True, kw_only=True)
class SampledSet:
    """A feature set, the rows of its clips and shards, its sample, and the largest changes found so far."""

    fs: FeatureSet
    firsts: NDArray[np.int64]
    """First row of each clip, and the number of rows: int64 (clips + 1,)."""
    shards: Mapping[str, _ShardRows]
    skipped_keys: Mapping[str, frozenset[str]]
    """Shard -> keys of its skipped clips."""
    n_sampled: int = 0
    unmet: dict[tuple[str, str], int] = field(default_factory=dict)
    """(shard, key) -> sampled clip that was not encoded again yet."""
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    """(shard, key) of sampled skipped clips -> reason."""
    metas: dict[int, str] = field(default_factory=dict)
    """Row of a sampled clip -> the JSON text of its clip in the store."""
    shards_read: int = 0
    change: float | None = None
    frame_change: float | None = None

    @property
    def n_clips(self) -> int:
        """Number of stored clips."""
        return len(self.firsts) - 1

    @property
    def tolerance(self) -> float:
        """Largest relative change of a vector that arithmetic explains."""
        from featstore.encoders.canary import TOLERANCES

        return TOLERANCES[self.fs.recipe.precision]

    @property
    def frame_tolerance(self) -> float:
        """Largest relative change of a frame that arithmetic explains."""
        rounding = _FLOAT16_ROUNDING if self.fs.recipe.frame_dtype == "float16" else 0.0
        return max(_FRAME_FACTOR * self.tolerance, rounding)

    def key_of(self, clip: int) -> str:
        """Key of a clip."""
        return str(self.fs.key[self.firsts[clip]])

    def keys_of(self, shard: str) -> set[str]:
        """Keys of the clips of a shard, skipped ones included."""
        rows = self.shards[shard]
        stored = self.fs.key[self.firsts[rows.first_clip : rows.stop_clip]].tolist()
        return {*map(str, stored), *self.skipped_keys.get(shard, ())}


def read_set(fs: FeatureSet, findings: list[AuditFinding]) -> SampledSet:
    """Rows and shards of the clips of a feature set."""
    starts = fs.start_seconds
    firsts = np.flatnonzero(starts == 0.0)
    if len(firsts) != fs.n_clips or (len(starts) and starts[0] != 0.0):
        problem = f"its windows begin {len(firsts):,} clips, and its commit records have {fs.n_clips:,}"
        findings.append(AuditFinding(kind="windows", where=fs.path, problem=problem))
    shards: dict[str, _ShardRows] = {}
    first_row = first_clip = 0
    for segment in fs.segments:
        stop_row = first_row + segment.member.windows
        stop_clip = int(np.searchsorted(firsts, stop_row))
        shard = segment.member.shard
        shards[shard.name] = _ShardRows(first_clip, stop_clip, first_row, stop_row, shard.size)
        first_row, first_clip = stop_row, stop_clip
    return SampledSet(
        fs=fs,
        firsts=np.append(firsts, len(starts)),
        shards=shards,
        skipped_keys={
            segment.member.shard.name: frozenset(clip.key for clip in segment.member.skipped) for segment in fs.segments
        },
    )


def padded_lengths(sets: Sequence[SampledSet]) -> Mapping[tuple[str, str], Sequence[int]]:
    """Padded lengths under ``xares``: of the longest window among sixteen in the order of the shard."""
    lengths: dict[tuple[str, str], Sequence[int]] = {}
    for each in sets:
        samples = np.rint(each.fs.seconds * each.fs.recipe.sample_rate_hz).astype(np.int64)
        for (shard, key), at in each.unmet.items():
            rows = each.shards[shard]
            padded = []
            for row in range(int(each.firsts[at]), int(each.firsts[at + 1])):
                first = row - (row - rows.first_row) % XARES_BATCH
                padded.append(int(samples[first : min(first + XARES_BATCH, rows.stop_row)].max()))
            lengths[shard, key] = padded
    return lengths


def compare(
    audited: SampledSet, output: int, found: ReencodedClip | UnreadClip | ReadShard | UnreadShard
) -> Iterator[AuditFinding]:
    """Compare one result with one feature set."""
    if isinstance(found, ReadShard | UnreadShard):
        if found.shard in audited.shards:
            yield from _compare_shard(audited, found)
        return
    place = (found.shard, found.key)
    reason = audited.skipped.pop(place, None)
    if reason is not None and isinstance(found, ReencodedClip):
        problem = f"it was skipped ({reason}), and can be decoded"
        yield finding_of_clip("skipped", audited, *place, problem)
    at = audited.unmet.pop(place, None)
    if at is None:
        return
    if isinstance(found, UnreadClip):
        yield finding_of_clip("clips", audited, *place, f"it is in the store and cannot be decoded: {found.reason}")
    else:
        yield from _compare_clip(audited, found, at, output)


def _compare_shard(audited: SampledSet, found: ReadShard | UnreadShard) -> Iterator[AuditFinding]:
    """Compare the size and the keys of a shard with those that the store has."""
    where = f"{audited.fs.path}, shard {found.shard}"
    if isinstance(found, UnreadShard):
        yield AuditFinding(kind="shard", where=where, problem=found.reason)
        return
    audited.shards_read += 1
    size = audited.shards[found.shard].size
    if found.size != size:
        yield AuditFinding(kind="shard", where=where, problem=f"it has {found.size:,} bytes instead of {size:,}")
    if missing := sorted(found.keys - audited.keys_of(found.shard)):
        problem = f"{counted(len(missing), 'clip')} of it not in the store, for example {missing[0]!r}"
        yield AuditFinding(kind="clips", where=where, problem=problem)


def _compare_clip(audited: SampledSet, found: ReencodedClip, at: int, output: int) -> Iterator[AuditFinding]:
    """Compare a clip's JSON, windows, vectors and frames with the stored ones."""
    fs, place = audited.fs, (found.shard, found.key)
    rows = range(int(audited.firsts[at]), int(audited.firsts[at + 1]))
    if any(audited.metas[row] != found.meta for row in rows):
        yield finding_of_clip("label", audited, *place, "its JSON in the store differs from its JSON in the shard")
    rate = fs.recipe.sample_rate_hz
    planned = np.array([(window.start / rate, (window.stop - window.start) / rate) for window in found.windows])
    stored = np.stack([fs.start_seconds[rows.start : rows.stop], fs.seconds[rows.start : rows.stop]], axis=1)
    if planned.shape != stored.shape or not np.allclose(planned, stored, rtol=0, atol=1e-6):
        problem = f"its {len(stored)} stored windows are not the {len(planned)} windows of its audio"
        yield finding_of_clip("windows", audited, *place, problem)
        return
    now = np.stack(found.utterance[output]).astype(np.float64)
    change = _relative(fs.utterance_rows.slice(rows.start, rows.stop).astype(np.float64), now)
    audited.change = max(audited.change or 0.0, change)
    if not change <= audited.tolerance:
        problem = f"its vector differs by {change:.2g} of the stored norm; the tolerance is {audited.tolerance:g}"
        yield finding_of_clip("vector", audited, *place, problem)
    frames = found.frames[output]
    if fs.has_frames and frames is not None:
        changes = [_frame_change(fs.frames[row], frames[nth]) for nth, row in enumerate(rows)]
        audited.frame_change = max(audited.frame_change or 0.0, *changes)
        if not max(changes) <= audited.frame_tolerance:
            problem = (
                f"a frame differs by {max(changes):.2g} of the stored norm; the tolerance is "
                f"{audited.frame_tolerance:.2g}"
            )
            yield finding_of_clip("frames", audited, *place, problem)


def finding_of_clip(kind: FindingKind, audited: SampledSet, shard: str, key: str, problem: str) -> AuditFinding:
    """Return a finding about a clip."""
    return AuditFinding(kind=kind, where=f"{audited.fs.path}, shard {shard}, clip {key}", problem=problem)


def _relative(stored: NDArray[np.float64], now: NDArray[np.float64]) -> float:
    """Largest change of a row, relative to its stored norm; infinity if it cannot be compared."""
    if stored.shape != now.shape:
        return math.inf
    norms, changes = np.linalg.norm(stored, axis=1), np.linalg.norm(now - stored, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(changes == 0, 0.0, changes / norms)
    return float(relative.max(initial=0.0)) if not np.isnan(relative).any() else math.inf


def _frame_change(stored: NDArray[Any], now: NDArray[Any]) -> float:
    """Largest change of a frame, relative to the root mean square of the stored norms."""
    if stored.shape != now.shape:
        return math.inf
    a, b = stored.astype(np.float64), now.astype(np.float64)
    norm = math.sqrt(float(np.square(a).sum(axis=1).mean()))
    change = float(np.linalg.norm(b - a, axis=1).max())
    if math.isnan(change) or math.isnan(norm):
        return math.inf
    return change / norm if norm else math.inf if change else 0.0

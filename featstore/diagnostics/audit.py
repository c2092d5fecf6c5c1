"""Audits a store: encodes a random sample of clips again, and compares vectors, windows and labels with the stored ones.

`audit_vectors` plans the sample (`audit_sample`), encodes it (`extract.reencode`) and collects findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from featstore.diagnostics.audit_sample import FRACTIONS, draw_sample, forged_at_most, miss_probability, sample_size
from featstore.diagnostics.certificate import AuditedRecipe, AuditedSet, AuditFinding, FindingKind
from featstore.errors import EncoderError, ShardError
from featstore.extract.job import XARES_BATCH, software_versions
from featstore.extract.reencode import ReadShard, ReencodedClip, UnreadClip, UnreadShard, reencode
from featstore.extract.shards import AnyShard, Shard, dataset_folder, existing_shards, find_shards
from featstore.extract.single_file import differences_from, plan_of
from featstore.formatting import counted
from featstore.records import Recipe
from featstore.remote import is_url
from featstore.store import read_encoder_group
from featstore.system import cores

if TYPE_CHECKING:
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Output
    from featstore.store import FeatureSet, Store

__all__ = ["AuditedVectors", "audit_vectors", "sets_of_encoder"]

_MAX_SECONDS = 3600.0
_FRAME_FACTOR = 4.0
"""Errors of single frames do not average out, as those of a mean over frames do."""
_FLOAT16_ROUNDING = 2.0**-10


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedVectors:
    """Result of comparing the sample."""

    recipes: tuple[AuditedRecipe, ...]
    feature_sets: tuple[AuditedSet, ...]
    findings: tuple[AuditFinding, ...]


def sets_of_encoder(store: Store, encoder: Encoder, *, dataset: str | None = None) -> tuple[FeatureSet, ...]:
    """Feature sets of a store that belong to an encoder: all of its layers, pools and options.

    Raises
    ------
    EncoderError
        The store has none; the message names the most similar recipe and the differences.
    """
    sets = [each for each in store.feature_sets(dataset=dataset) if each.recipe.imported_from is None]
    recipes = {each.recipe.group_name: each.recipe for each in sets}
    differences = {name: differences_from(encoder, recipe, _output(recipe)) for name, recipe in recipes.items()}
    found = tuple(each for each in sets if not differences[each.recipe.group_name])
    if not found:
        place = f"{store.url} has no vectors" + (f" of {dataset}" if dataset else "")
        nearest = min(differences, key=lambda name: (len(differences[name]), name), default=None)
        but = "" if nearest is None else f"; the most similar is {nearest}, which differs in {_listed(differences[nearest])}"
        raise EncoderError(f"{place} of this encoder ({encoder.shown_name}){but}")
    return found


def _listed(fields: Sequence[str]) -> str:
    names = {"state_sha256": "weights", "code_sha256": "code"}
    return ", ".join(names.get(each, each) for each in fields)


def _output(recipe: Recipe) -> Output:
    from featstore.encoders.pooling import Output, Pool

    return Output(layer=recipe.encoder_identity.get("layer"), pool=cast(Pool, recipe.pool))


@dataclass(frozen=True, slots=True)
class _ShardRows:
    """Clips [first_clip, stop_clip) and rows [first_row, stop_row) of a shard in a feature set, and its stored size."""

    first_clip: int
    stop_clip: int
    first_row: int
    stop_row: int
    size: int


@dataclass(slots=True, kw_only=True)
class _AuditedSet:
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
    shards_read: int = 0
    change: float | None = None
    frame_change: float | None = None

    @property
    def n_clips(self) -> int:
        return len(self.firsts) - 1

    @property
    def tolerance(self) -> float:
        from featstore.encoders.canary import TOLERANCES

        return TOLERANCES[self.fs.recipe.precision]

    @property
    def frame_tolerance(self) -> float:
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


def audit_vectors(
    store_url: str,
    encoder: Encoder,
    feature_sets: Sequence[FeatureSet],
    *,
    data_dir: Path | str,
    sample: str | int,
    seed: int,
    device: str,
    on_clip: Callable[[], object] = lambda: None,
) -> AuditedVectors:
    """Encode a sample of each recipe's clips again, and compare it with the store.

    Recipes with the same clips have the same sample, so that one forward pass serves all layers and pools. Every shard
    with a sampled clip is read, and its keys are compared with those of the store.

    Parameters
    ----------
    store_url : str
    encoder : Encoder
    feature_sets : sequence of FeatureSet
        From `sets_of_encoder`.
    data_dir : Path or str
        Folder or URL with one folder of shards per dataset.
    sample : str or int
        See `featstore.diagnostics.audit_sample.sample_size`.
    seed : int
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    on_clip : callable
        Called after each clip.

    Raises
    ------
    EncoderError
        The encoder fails on a clip.
    ShardError
        The data folder has none of the shards.
    UsageError
        `sample` is invalid.
    """
    findings: list[AuditFinding] = []
    audited = [_read_set(fs, findings) for fs in feature_sets]
    by_group: dict[str, list[_AuditedSet]] = {}
    for each in audited:
        by_group.setdefault(each.fs.recipe.group_name, []).append(each)
    for of_group in by_group.values():
        _draw(of_group, sample=sample, seed=seed)
    jobs: dict[tuple[str, str, float | None], list[_AuditedSet]] = {}
    for each in audited:
        address = each.fs.address
        jobs.setdefault((each.fs.recipe.encoder_key, address.dataset, address.crop_seconds), []).append(each)
    plans = [(of_job, _find(of_job, data_dir, findings)) for of_job in jobs.values()]
    if not any(shards for _, shards in plans):
        raise ShardError(
            f"{data_dir} has none of the sampled shards: --data must be a folder with one folder of shards per dataset"
        )
    for of_job, shards in plans:
        _audit_job(of_job, shards, encoder=encoder, device=device, findings=findings, on_clip=on_clip)
    canaries = _compare_canaries(store_url, encoder, audited, device=device, findings=findings)
    return AuditedVectors(
        recipes=tuple(_recipe_result(group, sets, canaries[group]) for group, sets in by_group.items()),
        feature_sets=tuple(
            AuditedSet(
                path=each.fs.path,
                content_hash=each.fs.content_hash,
                clips=each.n_clips,
                sampled=each.n_sampled,
                shards=len(each.shards),
                shards_read=each.shards_read,
            )
            for each in audited
        ),
        findings=tuple(findings),
    )


def _recipe_result(group: str, sets: Sequence[_AuditedSet], canary: str) -> AuditedRecipe:
    n_clips, n_sampled = sum(each.n_clips for each in sets), sum(each.n_sampled for each in sets)
    changes, frame_changes = [each.change for each in sets], [each.frame_change for each in sets]
    return AuditedRecipe(
        group=group,
        clips=n_clips,
        sampled=n_sampled,
        tolerance=sets[0].tolerance,
        frame_tolerance=sets[0].frame_tolerance,
        largest_change=_finite(max((each for each in changes if each is not None), default=None)),
        largest_frame_change=_finite(max((each for each in frame_changes if each is not None), default=None)),
        missed={f"{each:g}": miss_probability(n_clips, n_sampled, fraction=each) for each in FRACTIONS},
        forged_at_most=forged_at_most(n_clips, n_sampled),
        canary=canary,
    )


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is None or math.isfinite(value) else float(np.finfo(np.float32).max)


# --- the sample -------------------------------------------------------------------------------------------------------


def _read_set(fs: FeatureSet, findings: list[AuditFinding]) -> _AuditedSet:
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
    return _AuditedSet(
        fs=fs,
        firsts=np.append(firsts, len(starts)),
        shards=shards,
        skipped_keys={
            segment.member.shard.name: frozenset(clip.key for clip in segment.member.skipped) for segment in fs.segments
        },
    )


def _draw(sets: Sequence[_AuditedSet], *, sample: str | int, seed: int) -> None:
    """Draw the sample of one recipe, and a sample of the same share of its skipped clips."""
    n_clips = sum(each.n_clips for each in sets)
    drawn = draw_sample(n_clips, sample_size(sample, n_clips), seed=seed) if n_clips else np.zeros(0, np.int64)
    start = 0
    for each in sets:
        mine = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, start + each.n_clips)] - start
        start += each.n_clips
        each.n_sampled = len(mine)
        for name, rows in each.shards.items():
            for at in mine[np.searchsorted(mine, rows.first_clip) : np.searchsorted(mine, rows.stop_clip)].tolist():
                each.unmet[name, each.key_of(at)] = at
    # the limit by which a clip was too long is not stored
    skipped = [(each, clip) for each in sets for clip in each.fs.skipped if clip.seconds is None]
    if skipped:
        for at in draw_sample(len(skipped), sample_size(sample, len(skipped)), seed=seed).tolist():
            of_set, clip = skipped[at]
            of_set.skipped[clip.shard, clip.key] = clip.reason


def _find(sets: Sequence[_AuditedSet], data_dir: Path | str, findings: list[AuditFinding]) -> tuple[AnyShard, ...]:
    """Find the shards with sampled clips of one dataset; a missing one is a finding."""
    folder = dataset_folder(data_dir, sets[0].fs.address.dataset)
    wanted: dict[str, str] = {}
    for each in sets:
        wanted |= {shard: each.fs.path for shard, _ in (*each.unmet, *each.skipped) if shard not in wanted}
    there = existing_shards(folder, sorted(wanted))
    for name, path in wanted.items():
        if name not in there:
            findings.append(AuditFinding(kind="shard", where=path, problem=f"shard {name} is not in {folder}"))
    if isinstance(folder, str) and is_url(folder):
        return tuple(shard for name in sorted(there) for shard in find_shards(folder, name))
    return tuple(Shard(name=name, path=Path(folder) / name) for name in sorted(there))


# --- encoding and comparing -------------------------------------------------------------------------------------------


def _audit_job(
    sets: Sequence[_AuditedSet],
    shards: Sequence[AnyShard],
    *,
    encoder: Encoder,
    device: str,
    findings: list[AuditFinding],
    on_clip: Callable[[], object],
) -> None:
    """Encode the sampled clips of one dataset again, once for all layers and pools, and compare them."""
    if not shards:
        return
    from featstore.encoders.runner import EncoderRun

    outputs = tuple(dict.fromkeys(_output(each.fs.recipe) for each in sets))
    number = {output: at for at, output in enumerate(outputs)}
    recipe = sets[0].fs.recipe
    only: dict[str, set[str]] = {shard.name: set() for shard in shards}
    for each in sets:
        for shard, key in (*each.unmet, *each.skipped):
            if shard in only:
                only[shard].add(key)
    loaded = replace(encoder, outputs=outputs)
    found = reencode(
        shards,
        only,
        run=EncoderRun(loaded, recipe, device=device, keep_frames=any(each.fs.has_frames for each in sets)),
        plan=plan_of(encoder, recipe, crop_seconds=sets[0].fs.address.crop_seconds),
        sample_rate_hz=recipe.sample_rate_hz,
        max_clip_seconds=max(_MAX_SECONDS, *(1.0 + _longest_seconds(each.fs) for each in sets)),
        decode_threads=cores(),
        padded=_padded_lengths(sets) if recipe.padding == "xares" else None,
    )
    for result in found:
        for each in sets:
            findings += _compare(each, number[_output(each.fs.recipe)], result)
        if isinstance(result, ReencodedClip | UnreadClip):
            on_clip()
    for each in sets:
        for shard, key in each.unmet:
            if shard in only:
                findings.append(_of_clip("clips", each, shard, key, "it is in the store and not in the shard"))


def _longest_seconds(fs: FeatureSet) -> float:
    return float((fs.start_seconds + fs.seconds).max(initial=0.0))


def _padded_lengths(sets: Sequence[_AuditedSet]) -> Mapping[tuple[str, str], Sequence[int]]:
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


def _compare(
    audited: _AuditedSet, output: int, found: ReencodedClip | UnreadClip | ReadShard | UnreadShard
) -> Iterator[AuditFinding]:
    """Compare one result with one feature set."""
    fs = audited.fs
    if isinstance(found, ReadShard | UnreadShard):
        if found.shard in audited.shards:
            yield from _compare_shard(audited, found)
        return
    place = (found.shard, found.key)
    reason = audited.skipped.pop(place, None)
    if reason is not None and isinstance(found, ReencodedClip):
        problem = f"it was skipped ({reason}), and can be decoded"
        yield _of_clip("skipped", audited, *place, problem)
    at = audited.unmet.pop(place, None)
    if at is None:
        return
    if isinstance(found, UnreadClip):
        yield _of_clip("clips", audited, *place, f"it is in the store and cannot be decoded: {found.reason}")
    else:
        yield from _compare_clip(audited, found, at, output)


def _compare_shard(audited: _AuditedSet, found: ReadShard | UnreadShard) -> Iterator[AuditFinding]:
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


def _compare_clip(audited: _AuditedSet, found: ReencodedClip, at: int, output: int) -> Iterator[AuditFinding]:
    """Compare a clip's JSON, windows, vectors and frames with the stored ones."""
    fs, place = audited.fs, (found.shard, found.key)
    rows = range(int(audited.firsts[at]), int(audited.firsts[at + 1]))
    if any(meta != found.meta for meta in fs.metas_of(rows)):
        yield _of_clip("label", audited, *place, "its JSON in the store differs from its JSON in the shard")
    rate = fs.recipe.sample_rate_hz
    planned = np.array([(window.start / rate, (window.stop - window.start) / rate) for window in found.windows])
    stored = np.stack([fs.start_seconds[rows.start : rows.stop], fs.seconds[rows.start : rows.stop]], axis=1)
    if planned.shape != stored.shape or not np.allclose(planned, stored, rtol=0, atol=1e-6):
        problem = f"its {len(stored)} stored windows are not the {len(planned)} windows of its audio"
        yield _of_clip("windows", audited, *place, problem)
        return
    now = np.stack(found.utterance[output]).astype(np.float64)
    change = _relative(fs.utterance_rows.slice(rows.start, rows.stop).astype(np.float64), now)
    audited.change = max(audited.change or 0.0, change)
    if not change <= audited.tolerance:
        problem = f"its vector differs by {change:.2g} of the stored norm; the tolerance is {audited.tolerance:g}"
        yield _of_clip("vector", audited, *place, problem)
    frames = found.frames[output]
    if fs.has_frames and frames is not None:
        changes = [_frame_change(fs.frames[row], frames[nth]) for nth, row in enumerate(rows)]
        audited.frame_change = max(audited.frame_change or 0.0, *changes)
        if not max(changes) <= audited.frame_tolerance:
            problem = (
                f"a frame differs by {max(changes):.2g} of the stored norm; the tolerance is "
                f"{audited.frame_tolerance:.2g}"
            )
            yield _of_clip("frames", audited, *place, problem)


def _of_clip(kind: FindingKind, audited: _AuditedSet, shard: str, key: str, problem: str) -> AuditFinding:
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


def _compare_canaries(
    store_url: str,
    encoder: Encoder,
    sets: Sequence[_AuditedSet],
    *,
    device: str,
    findings: list[AuditFinding],
) -> dict[str, str]:
    """Compare the encoder's output for the reference signals with the stored one of each recipe."""
    from featstore.encoders.canary import furthest_drift, read_canary
    from featstore.extract.encoder_changes import SIGNALS_VERSION

    recipes = {each.fs.recipe.group_name: each.fs.recipe for each in sets}
    families: dict[str, list[Recipe]] = {}
    for recipe in recipes.values():
        families.setdefault(recipe.encoder_key, []).append(recipe)
    state: dict[str, str] = {}
    for family in families.values():
        canaries = [None if (group := read_encoder_group(store_url, each.group_name)) is None else group.canary for each in family]
        if not any(canaries):
            state |= {each.group_name: "not stored" for each in family}
            continue
        reading = read_canary(
            replace(encoder, outputs=tuple(map(_output, family))),
            family[0],
            device=device,
            plan=plan_of(encoder, family[0], crop_seconds=None),
            versions=software_versions(),
        )
        for recipe, canary, now in zip(family, canaries, reading.outputs, strict=True):
            if canary is None or canary["version"] != SIGNALS_VERSION:
                state[recipe.group_name] = "not stored"
                continue
            drift = reading.unsteady or furthest_drift(canary["signals"], now, precision=recipe.precision)
            state[recipe.group_name] = "same" if drift is None else "changed"
            if drift is not None:
                problem = (
                    f"the encoder's output for the reference signal {drift.signal} differs by {drift.relative:.2g} of "
                    "the stored norm: the encoder or its software changed, or another encoder made the store"
                )
                findings.append(AuditFinding(kind="canary", where=recipe.group_name, problem=problem))
    return state

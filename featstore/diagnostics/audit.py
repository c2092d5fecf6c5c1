"""Audits a store: encodes a random sample of clips again, and compares vectors, windows and labels.

`audit_vectors` plans the sample (`audit_sample`), encodes it (`extract.reencode`) and collects findings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from featstore.diagnostics.audit_compare import SampledSet, compare, finding_of_clip, padded_lengths, read_set
from featstore.diagnostics.audit_sample import FRACTIONS, draw_sample, forged_at_most, miss_probability, sample_size
from featstore.diagnostics.certificate import AuditedRecipe, AuditedSet, AuditFinding
from featstore.errors import EncoderError, ShardError
from featstore.extract.job import software_versions
from featstore.extract.reencode import ReencodedClip, UnreadClip, reencode
from featstore.extract.shards import AnyShard, Shard, dataset_folder, existing_shards, find_shards
from featstore.extract.single_file import differences_from
from featstore.extract.windows import plan_of
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


def _with_outputs(encoder: Encoder, outputs: tuple[Output, ...]) -> Encoder:
    """Return the encoder with other outputs, which it checks on noise."""
    return encoder if encoder.outputs == outputs else replace(encoder, outputs=outputs)


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
        but = (
            ""
            if nearest is None
            else f"; the most similar is {nearest}, which differs in {_listed(differences[nearest])}"
        )
        raise EncoderError(f"{place} of this encoder ({encoder.shown_name}){but}")
    return found


def _listed(fields: Sequence[str]) -> str:
    names = {"state_sha256": "weights", "code_sha256": "code"}
    return ", ".join(names.get(each, each) for each in fields)


def _output(recipe: Recipe) -> Output:
    from featstore.encoders.pooling import Output, Pool

    return Output(layer=recipe.encoder_identity.get("layer"), pool=cast(Pool, recipe.pool))


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
    audited = [read_set(fs, findings) for fs in feature_sets]
    by_group: dict[str, list[SampledSet]] = {}
    for each in audited:
        by_group.setdefault(each.fs.recipe.group_name, []).append(each)
    for of_group in by_group.values():
        _draw(of_group, sample=sample, seed=seed)
    jobs: dict[tuple[str, str, float | None], list[SampledSet]] = {}
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


def _recipe_result(group: str, sets: Sequence[SampledSet], canary: str) -> AuditedRecipe:
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


def _draw(sets: Sequence[SampledSet], *, sample: str | int, seed: int) -> None:
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
        # all at once: the texts of a part are one chunk
        wanted = [row for at in mine.tolist() for row in range(int(each.firsts[at]), int(each.firsts[at + 1]))]
        each.metas = dict(zip(wanted, each.fs.metas_of(wanted), strict=True))
    # the limit by which a clip was too long is not stored
    skipped = [(each, clip) for each in sets for clip in each.fs.skipped if clip.seconds is None]
    if skipped:
        for at in draw_sample(len(skipped), sample_size(sample, len(skipped)), seed=seed).tolist():
            of_set, clip = skipped[at]
            of_set.skipped[clip.shard, clip.key] = clip.reason


def _find(sets: Sequence[SampledSet], data_dir: Path | str, findings: list[AuditFinding]) -> tuple[AnyShard, ...]:
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
    sets: Sequence[SampledSet],
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
    loaded = _with_outputs(encoder, outputs)
    found = reencode(
        shards,
        only,
        run=EncoderRun(loaded, recipe, device=device, keep_frames=any(each.fs.has_frames for each in sets)),
        plan=plan_of(encoder, recipe, crop_seconds=sets[0].fs.address.crop_seconds),
        sample_rate_hz=recipe.sample_rate_hz,
        max_clip_seconds=max(_MAX_SECONDS, *(1.0 + _longest_seconds(each.fs) for each in sets)),
        decode_threads=cores(),
        padded=padded_lengths(sets) if recipe.padding == "xares" else None,
    )
    for result in found:
        for each in sets:
            findings += compare(each, number[_output(each.fs.recipe)], result)
        if isinstance(result, ReencodedClip | UnreadClip):
            on_clip()
    for each in sets:
        for shard, key in each.unmet:
            if shard in only:
                findings.append(finding_of_clip("clips", each, shard, key, "it is in the store and not in the shard"))


def _longest_seconds(fs: FeatureSet) -> float:
    return float((fs.start_seconds + fs.seconds).max(initial=0.0))


def _compare_canaries(
    store_url: str,
    encoder: Encoder,
    sets: Sequence[SampledSet],
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
        canaries = [
            None if (group := read_encoder_group(store_url, each.group_name)) is None else group.canary
            for each in family
        ]
        if not any(canaries):
            state |= {each.group_name: "not stored" for each in family}
            continue
        reading = read_canary(
            _with_outputs(encoder, tuple(map(_output, family))),
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

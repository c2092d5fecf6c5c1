"""Brings the feature sets of tasks up to date with their shards: `plan_tasks` for several, `extract_task` for one.

An invalid call or encoder, or a store that cannot be written, ends the run. If the shards of a task cannot be found,
only that task fails; if a shard cannot be read, only that shard fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import DataError, LabelError, ShardError, StoreError, UsageError
from featstore.extract.distributed import Share
from featstore.extract.encoder_changes import DriftCheck, describe_change, match_stored_names
from featstore.extract.engine import Engine
from featstore.extract.job import DeviceEncoder, EncodeJob, EncoderCard, StaleShard, StoredOutput, software_versions
from featstore.extract.options import ExtractOptions
from featstore.extract.results import EncodeResult, Progress, Silent, StageTimes, StoredShard
from featstore.extract.shards import (
    AnyShard,
    dataset_folder,
    existing_shards,
    find_shards,
    is_committed,
    sha256_of_shard,
)
from featstore.formatting import counted
from featstore.records import BrokenShard, ExtractFailure, ExtractRecord, Recipe, dataset_group
from featstore.store import (
    Segment,
    SplitWriter,
    has_texts,
    is_space_of_texts,
    note_in_encoder_group,
    open_store,
    read_encoder_group,
    read_encoder_groups,
    recipe_groups,
    write_texts,
)

if TYPE_CHECKING:
    from featstore.encoders.encoder import Encoder
    from featstore.store import EncoderGroup
    from featstore.tasks import Manifest

__all__ = ["TaskPlan", "extract_task", "plan_tasks", "stored_recipes"]


def extract_task(
    manifest: Manifest,
    encoder: Encoder | Engine,
    *,
    data_dir: Path | str,
    store_url: str,
    options: ExtractOptions,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
    share: Share | None = None,
) -> tuple[ExtractRecord, ...]:
    """Bring a task's feature sets up to date: encode shards that the store lacks or that have changed.

    Parameters
    ----------
    manifest : Manifest
    encoder : Encoder or Engine
        An encoder from `featstore.encoders.load_encoder` encodes in this process, on the device of `options`. For an
        engine and the other parameters, see `plan_tasks`.

    Returns
    -------
    tuple of ExtractRecord
        One per feature set: all outputs of the encoder for a split, then those for the next.

    Raises
    ------
    ShardError
        Shards are missing or broken; all others are committed.
    EncoderChanged
        The encoder's output for the reference signals differs from the stored one, or between two passes; no shard is
        encoded.
    EncoderContractError, StoreError, UsageError
        See `featstore.errors`.
    """
    from featstore.encoders.devices import pick_device
    from featstore.encoders.encoder import Encoder

    engine = DeviceEncoder(encoder, device=pick_device(options.device)) if isinstance(encoder, Encoder) else encoder
    [plan] = plan_tasks(
        [manifest], engine, data_dir=data_dir, store_url=store_url, options=options, splits=splits, share=share
    )
    if isinstance(plan, ExtractFailure):
        raise ShardError(plan.message)
    records = tuple(record for of_split in plan.extract(progress or Silent()) for record in of_split)
    broken = {(record.split, each.shard): each for record in records for each in record.broken}
    if broken:
        n_shards = sum(len(plan.share.of(found)) for found in plan.shards.values())
        reasons = "; ".join(each.reason for each in broken.values())
        raise ShardError(
            f"{len(broken)} of {n_shards} shards could not be read, all others are in the store: {reasons}"
        )
    return records


def plan_tasks(
    manifests: Sequence[Manifest],
    engine: Engine,
    *,
    data_dir: Path | str,
    store_url: str,
    options: ExtractOptions,
    splits: Sequence[str] = (),
    share: Share | None = None,
) -> tuple[TaskPlan | ExtractFailure, ...]:
    """Find the shards of every task before encoding.

    Parameters
    ----------
    manifests : sequence of Manifest
    engine : Engine
        From `featstore.extract.open_engine`; it encodes on its own devices, and the device of `options` is ignored.
    data_dir : Path or str
        Folder or URL with one folder of shards per dataset.
    store_url : str
        Folder or URL of the store; created if it does not exist.
    splits : sequence of str
        Splits or folds to extract; all if empty.
    share : Share, optional
        The share of the shards to process, if several processes extract together; all by default.

    Returns
    -------
    tuple of TaskPlan or ExtractFailure
        One per manifest: the plan, or the reason why the task's shards cannot be found.

    Raises
    ------
    EncoderError, EncoderContractError, StoreError, UsageError
        The call, the encoder or the store is invalid for every task, or a task lacks a requested split.
    """
    found: list[dict[str, tuple[AnyShard, ...]] | ExtractFailure] = []
    for manifest in manifests:
        try:
            folder = dataset_folder(data_dir, manifest.data.dataset)
            chosen = _chosen_feature_sets(manifest, splits)
            found.append({name: find_shards(folder, pattern) for name, pattern in chosen.items()})
        except DataError as error:
            found.append(ExtractFailure(task=manifest.name, error=type(error).__name__, message=str(error)))
    failures = tuple(each for each in found if isinstance(each, ExtractFailure))
    if len(failures) == len(found):
        return failures
    card = engine.describe(options)
    recipes, anew = stored_recipes(card, store_url)
    check = DriftCheck(engine, notes=anew)
    plans: list[TaskPlan | ExtractFailure] = []
    for manifest, shards in zip(manifests, found, strict=True):
        if isinstance(shards, ExtractFailure):
            plans.append(shards)
            continue
        frames_wanted = options.frames == "always" or (options.frames == "auto" and manifest.wants_frames)
        outputs = tuple(
            StoredOutput(recipe=recipe, spec=output.spec, frames_stored=frames_wanted and recipe.pool == "mean")
            for output, recipe in zip(card.outputs, recipes, strict=True)
        )
        if frames_wanted and not any(output.frames_stored for output in outputs):
            raise UsageError("frames are stored with the mean: add mean to --pool, or set --frames never")
        plans.append(
            TaskPlan(
                manifest=manifest,
                shards=shards,
                engine=engine,
                card=card,
                outputs=outputs,
                check=check,
                frames_wanted=frames_wanted,
                data_folder=dataset_folder(data_dir, manifest.data.dataset),
                store_url=store_url,
                options=options,
                share=share or Share(),
            )
        )
    return tuple(plans)


def stored_recipes(card: EncoderCard, store_url: str) -> tuple[tuple[Recipe, ...], tuple[str, ...]]:
    """Recipes of the encoder's outputs as the store names them, and a note about the first one that it lacks."""
    groups = recipe_groups(store_url)
    recipes = tuple(output.recipe for output in card.outputs)
    earlier = tuple(output.earlier for output in card.outputs)

    def noted(name: str) -> Mapping[str, Any] | None:
        group = read_encoder_group(store_url, name)
        return None if group is None else group.encoder_identity

    @cache
    def every_group() -> tuple[EncoderGroup, ...]:
        return tuple(read_encoder_groups(store_url, groups))

    matched = match_stored_names(
        recipes,
        name=card.name,
        groups=groups,
        earlier=earlier,
        noted=noted,
        stored=lambda: [group.recipe for group in every_group()],
    )
    for recipe, there in zip(recipes, matched, strict=True):
        # a group of an earlier featstore: record the identity fields that it did not hash
        if there.encoder_identity != recipe.encoder_identity and noted(there.group_name) is None:
            with suppress(StoreError):  # a read-only store stays usable
                note_in_encoder_group(store_url, there.group_name, encoder_identity=recipe.encoder_identity)
    for there, recipe, then in zip(matched, recipes, earlier, strict=True):
        if there.group_name not in groups:
            own_name = recipe.fingerprint_name or recipe.encoder
            similar = [
                (group.recipe, group.encoder_identity)
                for group in every_group()
                if there.encoder == group.recipe.encoder
                or own_name == (group.recipe.fingerprint_name or group.recipe.encoder)
            ]
            note = describe_change(recipe.renamed(there.encoder), then, similar)
            return matched, () if note is None else (note,)
    return matched, ()


_NOTHING_TO_DO = EncodeResult(stored={}, broken=(), times=StageTimes(), settings=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FeatureSet:
    """One output of one split: its feature set, the stored shards, and the stale ones."""

    output: StoredOutput
    writer: SplitWriter
    cached: Mapping[str, Segment]
    gone: tuple[str, ...]
    unnamed: tuple[str, ...]
    stale: frozenset[str]

    def generation_of(self, shard: str) -> int:
        """Generation of a new part of a shard, above that of the current part, independent of clocks."""
        there = self.cached.get(shard)
        return 0 if there is None else there.commit.generation + 1

    def is_changed(self, name: str) -> bool:
        """Whether the file of a stale shard has changed, as opposed to missing frames only."""
        cached = self.cached.get(name)
        return cached is not None and (cached.commit.frames_stored or not self.output.frames_stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPlan:
    """One task with the recipes of one encoder, and the shards of each of its feature sets."""

    manifest: Manifest
    shards: Mapping[str, tuple[AnyShard, ...]]
    engine: Engine
    card: EncoderCard
    outputs: tuple[StoredOutput, ...]
    check: DriftCheck
    frames_wanted: bool
    data_folder: Path | str
    store_url: str
    options: ExtractOptions
    share: Share

    def extract(self, progress: Progress) -> Iterator[tuple[ExtractRecord, ...]]:
        """Encode stale shards; yield the records of each split's feature sets.

        Shards that cannot be read are listed in ``broken`` of the records; all others are committed.

        Raises
        ------
        ShardError, DamagedPart
            This task cannot be extracted further; other tasks can.
        EncoderChanged
            No task can be extracted: the encoder's output differs from the stored one, or between two passes. Nothing
            is written for the split with the stale shard.
        EncoderError, EncoderContractError, StoreError, WorkerError
            No task can be extracted: the encoder violates its contract, the store cannot be written, or workers died
            repeatedly.
        """
        for number, (split, shards) in enumerate(self.shards.items(), start=1):
            records = self._bring_up_to_date(split, shards, progress)
            if number == len(self.shards):  # the texts of a task can be those of its clips
                notes = self._store_texts(split)
                records = (replace(records[0], notes=(*records[0].notes, *notes)), *records[1:])
            yield records

    def _store_texts(self, split: str) -> tuple[str, ...]:
        """Encode the texts of the task if the encoder has a text tower and the store lacks them. Returns notes."""
        from featstore.evaluation.texts import texts_of_task

        tower = self.card.text_sha256
        # texts are in the space of what `forward` returns, not of hidden states
        output = next((each for each in self.outputs if is_space_of_texts(each.recipe)), None)
        if tower is None or output is None:
            return ()
        what = "caption" if self.manifest.kind == "contrastive" else "prompt"
        try:
            texts = texts_of_task(self.manifest, open_store(self.store_url), output.recipe)
        except LabelError as error:
            return (f"no {what} was encoded: {error}",)
        place = (self.store_url, output.recipe, self.manifest.name)
        if not texts or has_texts(*place, texts=texts, tower_sha256=tower):
            return ()
        self.check.check_once(self._job(split))
        vectors = self.engine.encode_texts(texts, self.options)
        write_texts(
            *place, spec=output.spec, texts=texts, vectors=vectors, tower_sha256=tower, versions=software_versions()
        )
        return (f"{counted(len(texts), what)} of {self.manifest.name} encoded",)

    def _bring_up_to_date(
        self, split: str, every_shard: Sequence[AnyShard], progress: Progress
    ) -> tuple[ExtractRecord, ...]:
        """Encode the stale shards of one split's feature sets. Returns their records."""
        job = self._job(split)
        shards = self.share.of(every_shard)
        found = [job.find_writer(output) for output in self.outputs]
        if shards and None in found:
            self.check.check_once(job)  # before anything is written
        writers = [writer or job.open_writer(output) for writer, output in zip(found, self.outputs, strict=True)]
        hashed_once = cache(sha256_of_shard)  # every output asks for the hash of a touched shard
        sets = tuple(
            self._feature_set(output, writer, every_shard, hashed_once)
            for output, writer in zip(self.outputs, writers, strict=True)
        )
        stale = _stale(shards, sets)
        to_sweep = [writer for writer in writers if writer.has_leftovers]
        to_prune = self.options.prune and any(each.gone for each in sets)
        if stale or to_sweep or to_prune:
            self.check.check_once(job)  # before anything is deleted
        if stale:
            self.check.note_canaries(self.store_url)
        for writer in to_sweep:
            writer.sweep()
        if to_prune:
            sets = tuple(_pruned(each) for each in sets)
        others = f" and {len(sets) - 1} more" if len(sets) > 1 else ""
        progress.begin(
            label=f"{self.card.name}{others} {sets[0].writer.path.split('/', 1)[1]}",
            shards_total=len(shards),
            shards_reused=len(shards) - len(stale),
        )
        try:
            result = self.engine.encode(job, stale, progress=progress) if stale else _NOTHING_TO_DO
        finally:
            progress.end()
            for each in sets:
                if stale:
                    each.writer.sweep()
                if stale or not each.writer.is_catalogued:
                    each.writer.write_catalogue()
        records = tuple(
            self._record(
                split, shards, each, requested=requested.recipe, stored=result.stored.get(number, ()), result=result
            )
            for number, (each, requested) in enumerate(zip(sets, self.card.outputs, strict=True))
        )
        return (replace(records[0], notes=self.check.take_notes()), *records[1:]) if stale else records

    def _job(self, split: str) -> EncodeJob:
        data = self.manifest.data
        return EncodeJob(
            card=self.card,
            outputs=self.outputs,
            options=self.options,
            frames_wanted=self.frames_wanted,
            store_url=self.store_url,
            data_folder=self.data_folder,
            dataset=data.dataset,
            crop_seconds=data.crop_seconds,
            split=split,
        )

    def _feature_set(
        self,
        output: StoredOutput,
        writer: SplitWriter,
        shards: Sequence[AnyShard],
        sha256_of: Callable[[AnyShard], str],
    ) -> _FeatureSet:
        """Find the shards of this run's share that one output's feature set lacks."""
        cached = writer.begin_run()
        unmatched = cached.keys() - {shard.name for shard in shards}
        there = existing_shards(self.data_folder, sorted(unmatched))
        gone = unmatched - there

        def is_stale(shard: AnyShard) -> bool:
            try:
                return not is_committed(
                    shard,
                    cached.get(shard.name),
                    wants_frames=output.frames_stored,
                    max_clip_seconds=self.options.max_clip_seconds,
                    check_content=self.options.check_shards,
                    sha256_of=sha256_of,
                )
            except (DataError, OSError):
                return True  # it fails like a broken shard when it is encoded

        return _FeatureSet(
            output=output,
            writer=writer,
            cached=cached,
            gone=tuple(sorted(gone)),
            unnamed=tuple(sorted(there)),
            stale=frozenset(shard.name for shard in self.share.of(shards) if is_stale(shard)),
        )

    def _record(
        self,
        split: str,
        shards: Sequence[AnyShard],
        each: _FeatureSet,
        *,
        requested: Recipe,
        stored: Sequence[StoredShard],
        result: EncodeResult,
    ) -> ExtractRecord:
        settings = result.settings
        done = {shard.member.shard.name: shard.member for shard in stored}
        in_store = {name: segment.member for name, segment in each.cached.items()} | done
        current = [in_store[shard.name] for shard in shards if shard.name in in_store]
        broken = tuple(
            BrokenShard(shard=shard.name, reason=reason) for shard, reason in result.broken if shard.name in each.stale
        )
        kept_of_broken = sum(one.shard in in_store for one in broken)
        return ExtractRecord(
            task=self.manifest.name,
            dataset=dataset_group(self.manifest.data.dataset, self.manifest.data.crop_seconds),
            split=split,
            encoder=each.output.recipe.encoder,
            fingerprint=each.output.recipe.fingerprint,
            shards_total=len(shards),
            shards_done=len(done),
            shards_reused=len(current) - len(done) - kept_of_broken,
            clips=sum(member.clips for member in current),
            windows=sum(member.windows for member in current),
            frames=sum(member.frames for member in current),
            skipped=tuple(clip for member in current for clip in member.skipped),
            gone=each.gone,
            unnamed=each.unnamed,
            changed=tuple(name for name in sorted(done) if each.is_changed(name)),
            audio_seconds=round(sum(member.audio_seconds for member in current), 3),
            bytes_written=sum(shard.n_bytes for shard in stored),
            seconds=result.times.as_json(),
            bottleneck=result.times.bottleneck(decode_threads=settings.decode_threads) if done and settings else "",
            settings={
                "device": settings.device if settings else None,
                "precision": each.output.recipe.precision,
                "batch_seconds": round(settings.batch_seconds, 2) if settings else None,
                "workers": settings.decode_threads if settings else None,
                "batch_fill": self._batch_fill(result),
            },
            workers=result.workers,
            deaths=result.deaths,
            asked_as=requested.encoder if requested.encoder != each.output.recipe.encoder else "",
            broken=broken,
        )

    def _batch_fill(self, result: EncodeResult) -> float | None:
        """Mean fill of batches with a budget; batches of X-ARES have a fixed number of windows instead."""
        fill = result.times.batch_fill
        return None if fill is None or self.options.padding == "xares" else round(fill, 3)


def _stale(shards: Sequence[AnyShard], sets: Sequence[_FeatureSet]) -> tuple[StaleShard, ...]:
    """Shards that any of the feature sets lacks, in order."""
    lacking = (
        (shard, {at: each.generation_of(shard.name) for at, each in enumerate(sets) if shard.name in each.stale})
        for shard in shards
    )
    return tuple(StaleShard(shard=shard, generations=generations) for shard, generations in lacking if generations)


def _pruned(each: _FeatureSet) -> _FeatureSet:
    """The feature set without the embeddings of removed shards, except in parts that contain other shards too."""
    if not each.gone:
        return each
    commits = {segment.commit.part: segment.commit for segment in each.cached.values()}
    each.writer.delete(
        [part for part, commit in commits.items() if all(one.shard.name in each.gone for one in commit.members)]
    )
    return replace(each, gone=tuple(sorted(each.writer.committed().keys() & set(each.gone))))


def _chosen_feature_sets(manifest: Manifest, splits: Sequence[str]) -> dict[str, str]:
    """Feature set -> shard pattern; each pattern occurs once."""
    patterns, stored_as = manifest.patterns, manifest.feature_sets
    unknown = [name for name in splits if name not in patterns]
    if unknown:
        raise UsageError(f"task {manifest.name} has no split {unknown[0]!r}: it has {', '.join(patterns)}")
    return {stored_as[name]: patterns[name] for name in (splits or patterns)}

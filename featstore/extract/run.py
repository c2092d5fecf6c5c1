"""`extract_task`: brings a task's feature sets up to date with its shards."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.errors import ShardError, UsageError
from featstore.extract.audio import RESAMPLER
from featstore.extract.batches import Batcher, FileOrderBatcher, LengthBatcher
from featstore.extract.pipeline import EncodeResult, EncodeSettings, StageTimes, encode_shards
from featstore.extract.progress import Progress, Silent
from featstore.extract.ranks import Share
from featstore.extract.shards import AnyShard, dataset_folder, find_shards, is_committed
from featstore.extract.windows import Padding, plan_windows
from featstore.records import ExtractRecord, dataset_group
from featstore.store import FORMAT_VERSION, Commit, Segment, SplitWriter, open_split_writer

if TYPE_CHECKING:
    from featstore.encoders.running import Encoder, EncoderRun
    from featstore.manifest import Manifest
    from featstore.records import Recipe

__all__ = ["ExtractOptions", "extract_task"]

XARES_BATCH = 16
_PENDING_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How to extract. ``padding``, ``precision`` and ``frame_dtype`` are part of the recipe, the others are not.

    Attributes
    ----------
    device : str
        ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        ``auto`` (bfloat16 for an encoder with weights on a GPU, else float32), ``float32``, ``bfloat16``, ``float16``.
    frame_dtype : str
        What frames are stored as.
    frames : str
        ``auto`` stores them where the task scores frames.
    padding : str
        A quantum in seconds, ``exact`` or ``xares``.
    batch_seconds : float
        Audio in a batch, padding included; 0 picks for the device.
    workers : int
        Decoding threads; 0 is one for each core, at most 16.
    max_clip_seconds : float
        Clips that claim to be longer are left out.
    prune : bool
        Drop the embeddings of shards whose files are no longer there, or no longer match the manifest's pattern.
    """

    device: str = "auto"
    precision: str = "auto"
    frame_dtype: Literal["float16", "float32"] = "float16"
    frames: Literal["auto", "always", "never"] = "auto"
    padding: str = "0.25"
    batch_seconds: float = 0.0
    workers: int = 0
    max_clip_seconds: float = 3600.0
    prune: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, ("auto", "float32", "bfloat16", "float16")),
            ("frame_dtype", self.frame_dtype, ("float16", "float32")),
            ("frames", self.frames, ("auto", "always", "never")),
        ):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}: got {value!r}")
        if not 0 <= self.batch_seconds < math.inf:
            raise UsageError(f"batch_seconds must be a number of seconds, 0 or more: got {self.batch_seconds!r}")
        if self.workers < 0:
            raise UsageError(f"workers must be 0 or more: got {self.workers!r}")
        if not self.max_clip_seconds > 0:
            raise UsageError(f"max_clip_seconds must be above 0: got {self.max_clip_seconds!r}")
        Padding.parse(self.padding)


def extract_task(
    manifest: Manifest,
    encoder: Encoder,
    *,
    data_dir: Path | str,
    store_url: str,
    options: ExtractOptions,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
    share: Share | None = None,
    local_rank: int | None = None,
) -> tuple[ExtractRecord, ...]:
    """Bring a task's feature sets up to date: encode the shards that the store does not have, or not as they are now.

    Parameters
    ----------
    manifest : Manifest
    encoder : Encoder
        From `featstore.encoders.load_encoder`.
    data_dir : Path or str
        Folder or URL that holds a folder of shards for each dataset.
    store_url : str
        Folder or URL of the store; it is made where there is none.
    splits : sequence of str
        Splits or folds to extract; empty means all.
    share : Share, optional
        Which of the shards are this process's, of several that extract together; all of them without it.
    local_rank : int, optional
        Number of this process on its machine: ``device="auto"`` takes the GPU of that number where there are several.

    Returns
    -------
    tuple of ExtractRecord
        One for each feature set.

    Raises
    ------
    ShardError
        Shards are missing or broken; every other shard has been committed by then.
    EncoderContractError, StoreError, UsageError
        See `featstore.errors`.
    """
    from featstore.encoders.running import pick_device

    device = pick_device(options.device, local_rank=local_rank)
    recipe = encoder.recipe(
        padding=str(Padding.parse(options.padding)),
        precision=_precision(options.precision, device, encoder),
        frame_dtype=options.frame_dtype,
        resampler=RESAMPLER,
        format_version=FORMAT_VERSION,
    )
    frames_wanted = options.frames == "always" or (options.frames == "auto" and manifest.wants_frames)
    chosen = _chosen_feature_sets(manifest, splits)
    folder = dataset_folder(data_dir, manifest.data.dataset)
    # every pattern is looked up before the first shard is encoded: a typo is told now, not after hours
    shards = {name: find_shards(folder, pattern) for name, pattern in chosen.items()}
    job = _Job(
        manifest=manifest,
        encoder=encoder,
        recipe=recipe,
        run=encoder.start(recipe, device=device, keep_frames=frames_wanted),
        device=device,
        frames_stored=frames_wanted,
        options=options,
        progress=progress or Silent(),
        share=share or Share(),
    )
    outcomes = [job.bring_up_to_date(name, shards[name], store_url) for name in chosen]
    broken = [reason for _, reasons in outcomes for reason in reasons]
    if broken:
        n_shards = sum(len(job.share.of(found)) for found in shards.values())
        raise ShardError(
            f"{len(broken)} of {n_shards} shards could not be read, all others are in the store: " + "; ".join(broken)
        )
    return tuple(record for record, _ in outcomes)


_NOTHING_TO_DO = EncodeResult(commits=(), broken=(), times=StageTimes())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One task under one recipe on one device."""

    manifest: Manifest
    encoder: Encoder
    recipe: Recipe
    run: EncoderRun
    device: str
    frames_stored: bool
    options: ExtractOptions
    progress: Progress
    share: Share

    def bring_up_to_date(
        self, split: str, shards: Sequence[AnyShard], store_url: str
    ) -> tuple[ExtractRecord, tuple[str, ...]]:
        """Encode what is missing of one feature set. Returns its record, and what is wrong with shards that broke."""
        writer = open_split_writer(
            store_url,
            recipe=self.recipe,
            spec=self.encoder.spec,
            dataset=self.manifest.data.dataset,
            crop_seconds=self.manifest.data.crop_seconds,
            split=split,
        )
        cached = writer.begin_run()
        gone = sorted(cached.keys() - {shard.name for shard in shards})
        if gone and self.options.prune:
            writer.delete(_parts_of_nothing_but(gone, cached))
            gone = sorted(writer.committed().keys() - {shard.name for shard in shards})
        shards = self.share.of(shards)
        stale = [s for s in shards if not is_committed(s, cached.get(s.name), wants_frames=self.frames_stored)]
        self.progress.begin(
            label=f"{self.encoder.name} {writer.path.split('/', 1)[1]}",
            shards_total=len(shards),
            shards_reused=len(shards) - len(stale),
        )
        try:
            with self.run.threads():
                result = self._encode(stale, writer) if stale else _NOTHING_TO_DO
        finally:
            self.progress.end()
            if stale:
                writer.sweep()
            if stale or not writer.is_catalogued:
                writer.write_catalogue()
        done = {commit.members[0].shard.name: commit for commit in result.commits}
        record = self._record(split, shards, cached=cached, done=done, gone=gone, times=result.times)
        return record, tuple(reason for _, reason in result.broken)

    def _encode(self, shards: Sequence[AnyShard], writer: SplitWriter) -> EncodeResult:
        rate = self.recipe.sample_rate_hz
        padding = Padding.parse(self.options.padding)
        return encode_shards(
            shards,
            writer=writer,
            encoder=self.run,
            encoder_name=self.encoder.name,
            plan=partial(
                plan_windows,
                crop_seconds=self.manifest.data.crop_seconds,
                padding=padding,
                sample_rate_hz=rate,
            ),
            new_batcher=partial(_new_batcher, padding, budget_samples=round(self._batch_seconds() * rate)),
            settings=EncodeSettings(
                sample_rate_hz=rate,
                max_clip_seconds=self.options.max_clip_seconds,
                decode_threads=self._decode_threads(),
                frames_stored=self.frames_stored,
                versions=software_versions(),
            ),
            progress=self.progress,
        )

    def _batch_seconds(self) -> float:
        return self.options.batch_seconds or (640.0 if self.device.startswith("cuda") else 64.0)

    def _decode_threads(self) -> int:
        return self.options.workers or min(16, os.cpu_count() or 1)

    def _record(
        self,
        split: str,
        shards: Sequence[AnyShard],
        *,
        cached: Mapping[str, Segment],
        done: Mapping[str, Commit],
        gone: Sequence[str],
        times: StageTimes,
    ) -> ExtractRecord:
        held = {name: segment.member for name, segment in cached.items()}
        held |= {name: commit.members[0] for name, commit in done.items()}
        current = [held[shard.name] for shard in shards if shard.name in held]
        return ExtractRecord(
            task=self.manifest.name,
            dataset=dataset_group(self.manifest.data.dataset, self.manifest.data.crop_seconds),
            split=split,
            encoder=self.encoder.name,
            fingerprint=self.recipe.fingerprint,
            shards_total=len(shards),
            shards_done=len(done),
            shards_reused=len(current) - len(done),
            clips=sum(member.clips for member in current),
            windows=sum(member.windows for member in current),
            frames=sum(member.frames for member in current),
            skipped=tuple(clip for member in current for clip in member.skipped),
            gone=tuple(gone),
            audio_seconds=round(sum(member.audio_seconds for member in current), 3),
            bytes_written=sum(entry.size for commit in done.values() for entry in commit.objects.values()),
            seconds=times.as_json(),
            bottleneck=times.bottleneck(decode_threads=self._decode_threads()) if done else "",
        )


def software_versions() -> dict[str, str]:
    """Versions of what made the numbers."""
    names = ("featstore", "numpy", "soundfile", "soxr", "torch", "webdataset", "zarr")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout that was not installed
            versions[name] = "unknown"
    return versions


def _parts_of_nothing_but(gone: Sequence[str], cached: Mapping[str, Segment]) -> list[str]:
    """Parts that hold shards of `gone` alone; a compacted part that holds others too stays."""
    commits = {segment.commit.part: segment.commit for segment in cached.values()}
    return [part for part, commit in commits.items() if all(each.shard.name in gone for each in commit.members)]


def _chosen_feature_sets(manifest: Manifest, splits: Sequence[str]) -> dict[str, str]:
    """Feature set -> shard pattern, each pattern once."""
    patterns, stored_as = manifest.patterns, manifest.feature_sets
    unknown = [name for name in splits if name not in patterns]
    if unknown:
        raise UsageError(f"task {manifest.name} has no split {unknown[0]!r}: it has {', '.join(patterns)}")
    return {stored_as[name]: patterns[name] for name in (splits or patterns)}


def _new_batcher(padding: Padding, *, budget_samples: int) -> Batcher:
    if padding.kind == "xares":
        return FileOrderBatcher(size=XARES_BATCH)
    return LengthBatcher(budget_samples=budget_samples, pending_samples=_PENDING_BATCHES * budget_samples)


def _precision(asked: str, device: str, encoder: Encoder) -> str:
    if asked != "auto":
        return asked
    return "bfloat16" if device.startswith("cuda") and encoder.has_weights else "float32"

"""`extract_task`: brings a task's feature sets up to date with its shards."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.errors import ShardError, UsageError
from featstore.extract.audio import RESAMPLER
from featstore.extract.batches import PENDING_BATCHES, Batcher, FileOrderBatcher, LengthBatcher
from featstore.extract.pipeline import EncodeResult, EncodeSettings, PartTarget, StageTimes, encode_shards
from featstore.extract.progress import Progress, Silent
from featstore.extract.shards import Shard, find_shards, is_committed, sha256_of_file
from featstore.extract.windows import Padding, plan_windows
from featstore.records import ExtractRecord, dataset_group
from featstore.store import FORMAT_VERSION, Commit, Segment, SplitWriter, open_split_writer

if TYPE_CHECKING:
    from featstore.encoders.outputs import Output
    from featstore.encoders.running import Encoder, EncoderRun
    from featstore.manifest import Manifest
    from featstore.records import Recipe

__all__ = ["ExtractOptions", "extract_task", "new_batcher", "plan_recipe"]

XARES_BATCH = 16
CPU_BATCH_SECONDS, WEIGHTLESS_BATCH_SECONDS = 16.0, 64.0
USUAL_WINDOW_SECONDS, MOST_BATCH_SECONDS = 5.0, 1280.0
LEAST_WINDOW_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractOptions:
    """How to extract. ``padding``, ``precision``, ``frame_dtype`` and ``max_window_seconds`` are part of the recipe.

    Attributes
    ----------
    device : str
        ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:1``.
    precision : str
        ``auto`` (bfloat16 for an encoder with weights on a GPU, else float32), ``float32``, ``tf32`` (float32 whose
        products a GPU may round), ``bfloat16``, ``float16``.
    frame_dtype : str
        What frames are stored as.
    frames : str
        ``auto`` stores them where the task scores frames.
    padding : str
        A quantum in seconds, ``exact`` or ``xares``.
    batch_seconds : float
        Audio in a batch, padding included; 0 picks for the device: on a GPU by measuring.
    workers : int
        Decoding threads; 0 is one for each core, at most 16.
    max_clip_seconds : float
        Clips that claim to be longer are left out.
    max_window_seconds : float or None
        Longer clips are cut into windows of one length; None leaves that to the encoder.
    compiled : bool
        Compile the encoder with ``torch.compile``.
    profile_path : Path or None
        Where a trace of the first batches is written.
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
    max_window_seconds: float | None = None
    compiled: bool = False
    profile_path: Path | None = None
    prune: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, ("auto", "float32", "tf32", "bfloat16", "float16")),
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
        if self.max_window_seconds is not None and not LEAST_WINDOW_SECONDS <= self.max_window_seconds < math.inf:
            raise UsageError(
                f"max_window_seconds must be {LEAST_WINDOW_SECONDS:g} or more: got {self.max_window_seconds!r}"
            )
        Padding.parse(self.padding)


def extract_task(
    manifest: Manifest,
    encoder: Encoder,
    *,
    data_dir: Path,
    store_url: str,
    options: ExtractOptions,
    splits: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[ExtractRecord, ...]:
    """Bring a task's feature sets up to date: encode the shards that the store does not have, or not as they are now.

    Parameters
    ----------
    manifest : Manifest
    encoder : Encoder
        From `featstore.encoders.load_encoder`.
    data_dir : Path
        Holds a folder of shards for each dataset.
    store_url : str
        Folder or URL of the store; it is made where there is none.
    splits : sequence of str
        Splits or folds to extract; empty means all.

    Returns
    -------
    tuple of ExtractRecord
        One for each feature set: the encoder's outputs of a split, then those of the next.

    Raises
    ------
    ShardError
        Shards are missing or broken; every other shard has been committed by then.
    EncoderContractError, StoreError, UsageError
        See `featstore.errors`.
    """
    from featstore.encoders.profiling import traced
    from featstore.encoders.running import pick_device

    device = pick_device(options.device)
    frames_wanted = options.frames == "always" or (options.frames == "auto" and manifest.wants_frames)
    outputs = tuple(
        _Kept(
            output=output,
            recipe=plan_recipe(encoder, output, device=device, options=options),
            frames_stored=frames_wanted and output.pool == "mean",
        )
        for output in encoder.outputs
    )
    if frames_wanted and not any(kept.frames_stored for kept in outputs):
        raise UsageError("frames are stored beside the mean: add mean to --pool, or give --frames never")
    chosen = _chosen_feature_sets(manifest, splits)
    # every pattern is looked up before the first shard is encoded: a typo is told now, not after hours
    shards = {name: find_shards(data_dir / manifest.data.dataset, pattern) for name, pattern in chosen.items()}
    if options.compiled:
        encoder.compile()
    run = encoder.start(outputs[0].recipe, device=device, keep_frames=frames_wanted)
    job = _Job(
        manifest=manifest,
        encoder=encoder,
        outputs=outputs,
        run=run,
        device=device,
        options=options,
        batch_seconds=cache(partial(_batch_seconds, encoder, run, options, crop_seconds=manifest.data.crop_seconds)),
        progress=progress or Silent(),
    )
    with nullcontext() if options.profile_path is None else traced(run, options.profile_path):
        outcomes = [job.bring_up_to_date(name, shards[name], store_url) for name in chosen]
    broken = [reason for _, reasons in outcomes for reason in reasons]
    if broken:
        raise ShardError(
            f"{len(broken)} of {sum(map(len, shards.values()))} shards could not be read, all others are in the store: "
            + "; ".join(broken)
        )
    return tuple(record for records, _ in outcomes for record in records)


_NOTHING_TO_DO = EncodeResult(commits={}, broken=(), times=StageTimes())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """One output of the encoder and the recipe that it is stored under."""

    output: Output
    recipe: Recipe
    frames_stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _FeatureSet:
    """One output of one split: where it goes, what the store has of it, and which shards it lacks."""

    kept: _Kept
    writer: SplitWriter
    cached: Mapping[str, Segment]
    gone: tuple[str, ...]
    stale: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One task under the recipes of one encoder on one device."""

    manifest: Manifest
    encoder: Encoder
    outputs: tuple[_Kept, ...]
    run: EncoderRun
    device: str
    options: ExtractOptions
    batch_seconds: Callable[[], float]
    progress: Progress

    def bring_up_to_date(
        self, split: str, shards: Sequence[Shard], store_url: str
    ) -> tuple[tuple[ExtractRecord, ...], tuple[str, ...]]:
        """Encode what is missing of one split's feature sets. Returns their records, and why shards broke."""
        hashed_once = cache(sha256_of_file)  # a shard that was touched is asked about by every output
        sets = tuple(self._feature_set(kept, split, shards, store_url, hashed_once) for kept in self.outputs)
        stale = [shard for shard in shards if any(shard.name in each.stale for each in sets)]
        others = f" and {len(sets) - 1} more" if len(sets) > 1 else ""
        self.progress.begin(
            label=f"{self.encoder.name}{others} {sets[0].writer.path.split('/', 1)[1]}",
            shards_total=len(shards),
            shards_reused=len(shards) - len(stale),
        )
        try:
            with self.run.at_work():
                result = self._encode(stale, sets) if stale else _NOTHING_TO_DO
        finally:
            self.progress.end()
            for each in sets:
                if stale:
                    each.writer.sweep()
                each.writer.write_catalogue()
        records = tuple(
            self._record(split, shards, each, result.commits.get(number, ()), result.times)
            for number, each in enumerate(sets)
        )
        return records, tuple(reason for _, reason in result.broken)

    def _feature_set(
        self, kept: _Kept, split: str, shards: Sequence[Shard], store_url: str, sha256_of: Callable[[Path], str]
    ) -> _FeatureSet:
        """Open one output's feature set and see what it lacks."""
        writer = open_split_writer(
            store_url,
            recipe=kept.recipe,
            spec=self.encoder.spec_of(kept.output),
            dataset=self.manifest.data.dataset,
            crop_seconds=self.manifest.data.crop_seconds,
            split=split,
        )
        writer.sweep()
        cached = writer.committed()
        gone = sorted(cached.keys() - {shard.name for shard in shards})
        if gone and self.options.prune:
            writer.delete(_parts_of_nothing_but(gone, cached))
            gone = sorted(writer.committed().keys() - {shard.name for shard in shards})
        stale = [
            shard.name
            for shard in shards
            if not is_committed(shard, cached.get(shard.name), wants_frames=kept.frames_stored, sha256_of=sha256_of)
        ]
        return _FeatureSet(kept=kept, writer=writer, cached=cached, gone=tuple(gone), stale=frozenset(stale))

    def _encode(self, shards: Sequence[Shard], sets: Sequence[_FeatureSet]) -> EncodeResult:
        rate = self.encoder.facts.sample_rate_hz
        padding = Padding.parse(self.options.padding)

        def targets(shard: Shard) -> tuple[PartTarget, ...]:
            return tuple(
                PartTarget(output=number, writer=each.writer, frames_stored=each.kept.frames_stored)
                for number, each in enumerate(sets)
                if shard.name in each.stale
            )

        return encode_shards(
            shards,
            targets=targets,
            encoder=self.run,
            encoder_name=self.encoder.name,
            plan=partial(
                plan_windows,
                crop_seconds=self.manifest.data.crop_seconds,
                padding=padding,
                sample_rate_hz=rate,
                longest_seconds=self.encoder.longest_window_seconds(self.options.max_window_seconds),
                input_seconds=self.encoder.facts.input_seconds,
            ),
            new_batcher=partial(new_batcher, padding, budget_samples=round(self.batch_seconds() * rate)),
            settings=EncodeSettings(
                sample_rate_hz=rate,
                max_clip_seconds=self.options.max_clip_seconds,
                decode_threads=self._decode_threads(),
                versions=software_versions(),
            ),
            progress=self.progress,
        )

    def _decode_threads(self) -> int:
        return self.options.workers or min(16, os.cpu_count() or 1)

    def _record(
        self, split: str, shards: Sequence[Shard], each: _FeatureSet, commits: Sequence[Commit], times: StageTimes
    ) -> ExtractRecord:
        done = {commit.members[0].shard.name: commit for commit in commits}
        held = {name: segment.member for name, segment in each.cached.items()}
        held |= {name: commit.members[0] for name, commit in done.items()}
        current = [held[shard.name] for shard in shards if shard.name in held]
        return ExtractRecord(
            task=self.manifest.name,
            dataset=dataset_group(self.manifest.data.dataset, self.manifest.data.crop_seconds),
            split=split,
            encoder=each.kept.recipe.encoder,
            fingerprint=each.kept.recipe.fingerprint,
            shards_total=len(shards),
            shards_done=len(done),
            shards_reused=len(current) - len(done),
            clips=sum(member.clips for member in current),
            windows=sum(member.windows for member in current),
            frames=sum(member.frames for member in current),
            skipped=tuple(clip for member in current for clip in member.skipped),
            gone=each.gone,
            audio_seconds=round(sum(member.audio_seconds for member in current), 3),
            bytes_written=sum(entry.size for commit in done.values() for entry in commit.objects.values()),
            seconds=times.as_json(),
            bottleneck=times.bottleneck(decode_threads=self._decode_threads()) if done else "",
            settings={
                "device": self.device,
                "precision": each.kept.recipe.precision,
                "batch_seconds": round(self.batch_seconds(), 2) if done else None,
                "workers": self._decode_threads(),
            },
        )


def _batch_seconds(encoder: Encoder, run: EncoderRun, options: ExtractOptions, *, crop_seconds: float | None) -> float:
    """Audio in a batch: what is asked for, what a GPU is measured to be busy with, or what is good on any CPU.

    A CPU is as fast at any size (measured on a transformer), and what is batched with what decides the last bits: there
    it is not left to a measurement.
    """
    if options.batch_seconds:
        return options.batch_seconds
    if run.batches_ahead == 0:
        return CPU_BATCH_SECONDS if encoder.has_weights else WEIGHTLESS_BATCH_SECONDS
    from featstore.encoders.budget import find_batch_seconds

    longest = encoder.longest_window_seconds(options.max_window_seconds)
    window = min(each for each in (crop_seconds, longest, USUAL_WINDOW_SECONDS) if each is not None)
    if encoder.facts.input_seconds is not None:
        window = encoder.facts.input_seconds
    found = find_batch_seconds(
        run,
        sample_rate_hz=encoder.facts.sample_rate_hz,
        window_seconds=window,
        most_seconds=MOST_BATCH_SECONDS,
    )
    return found or window


def plan_recipe(encoder: Encoder, output: Output, *, device: str, options: ExtractOptions) -> Recipe:
    """The recipe that an extraction with these options on this device stores one output under."""
    return encoder.recipe(
        padding=str(Padding.parse(options.padding)),
        precision=_precision(options.precision, device, encoder),
        frame_dtype=options.frame_dtype,
        resampler=RESAMPLER,
        format_version=FORMAT_VERSION,
        max_window_seconds=options.max_window_seconds,
        output=output,
    )


def software_versions() -> dict[str, str]:
    """Versions of what made the numbers."""
    names = ["featstore", "numpy", "soundfile", "soxr", "torch", "webdataset", "zarr"]
    names += [name for name in ("dasheng", "transformers") if name in sys.modules]  # where an encoder came from them
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


def new_batcher(padding: Padding, *, budget_samples: int) -> Batcher:
    """What gathers the windows of one shard under a padding rule."""
    if padding.kind == "xares":
        return FileOrderBatcher(size=XARES_BATCH)
    return LengthBatcher(budget_samples=budget_samples, pending_samples=PENDING_BATCHES * budget_samples)


def _precision(asked: str, device: str, encoder: Encoder) -> str:
    if asked == "tf32" and not device.startswith("cuda"):
        raise UsageError(f"--precision tf32 is for GPUs, and this runs on {device}: use float32")
    if asked != "auto":
        return asked
    return "bfloat16" if device.startswith("cuda") and encoder.has_weights else "float32"

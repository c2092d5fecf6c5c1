"""Encoding jobs, and the encoder on its device that processes them.

A job can be pickled: the worker that encodes it may be this process, another process, or on another machine.
"""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore import __version__
from featstore.errors import EncoderError, ShardError, StoreError, UsageError
from featstore.extract.audio import RESAMPLER
from featstore.extract.batching import Batcher, FileOrderBatcher, LengthBatcher
from featstore.extract.pipeline import PartTarget, Pipeline
from featstore.extract.results import EncodeResult, EncodeSettings, PipelineEvent, Progress, collect
from featstore.extract.shard_reader import ShardFeed
from featstore.extract.shards import AnyShard
from featstore.extract.windows import Padding, plan_of
from featstore.formatting import redacted
from featstore.records import Recipe
from featstore.store import FORMAT_VERSION, SplitWriter, find_split_writer, is_split_begun, open_split_writer
from featstore.system import CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS, cores, free_memory_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.encoders.canary import CanaryReading
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Output
    from featstore.encoders.runner import EncoderRun
    from featstore.extract.options import ExtractOptions

__all__ = [
    "DeviceEncoder",
    "EncodeJob",
    "EncoderCard",
    "OutputCard",
    "StaleShard",
    "StoredOutput",
    "new_batcher",
    "plan_recipe",
    "software_versions",
]

XARES_BATCH = 16
USUAL_WINDOW_SECONDS, MOST_BATCH_SECONDS = 5.0, 1280.0
_MOST_DECODE_THREADS = 16
_GPU_SHARDS_AHEAD = 64
_LEAST_WAITING_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCard:
    """One output of an encoder: its recipe, and its spec on the command line.

    ``earlier`` is its recipe by the rules of an earlier featstore, if these differ.
    """

    recipe: Recipe
    earlier: Recipe | None
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCard:
    """Description of an encoder that may be loaded in another process: its name and the recipes of its outputs.

    ``featstore`` is the encoding version: two versions may compute different numbers for one recipe. ``text_sha256`` is
    None for an encoder without a text tower: see `featstore.encoders.encoder.Encoder`.
    """

    name: str
    outputs: tuple[OutputCard, ...]
    featstore: str
    text_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOutput:
    """An output as a task stores it."""

    recipe: Recipe
    spec: str
    frames_stored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeJob:
    """One split of one task to encode: what a worker needs in addition to its encoder and the shards."""

    card: EncoderCard
    outputs: tuple[StoredOutput, ...]
    options: ExtractOptions
    frames_wanted: bool
    store_url: str
    data_folder: Path | str
    dataset: str
    crop_seconds: float | None
    split: str

    def open_writer(self, output: StoredOutput) -> SplitWriter:
        """Open the feature set of an output; create it if the store lacks it."""
        return open_split_writer(self.store_url, recipe=output.recipe, spec=output.spec, **self._address)

    def find_writer(self, output: StoredOutput) -> SplitWriter | None:
        """Open the feature set of an output; None if the store lacks it."""
        return find_split_writer(self.store_url, recipe=output.recipe, spec=output.spec, **self._address)

    def is_created(self, output: StoredOutput) -> bool:
        """Whether the store has the feature set of an output. True once the run has opened it."""
        return is_split_begun(self.store_url, recipe=output.recipe, **self._address)

    @property
    def _address(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "crop_seconds": self.crop_seconds, "split": self.split}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleShard:
    """A shard that the store lacks.

    ``generations`` maps the numbers of the outputs whose feature sets lack it to the generations of its new parts, each
    greater than that of the part it replaces.
    """

    shard: AnyShard
    generations: Mapping[int, int]


class DeviceEncoder:
    """An encoder on its device, which is the engine that encodes in this process: see `featstore.extract.engine`.

    Parameters
    ----------
    encoder : Encoder
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    n_cores : int, optional
        Cores of this worker, by default all; the number of decoding threads, at most 16, unless a job's options set it.
    """

    def __init__(self, encoder: Encoder, *, device: str, n_cores: int | None = None) -> None:
        self._encoder = encoder
        self._device = device
        self._cores = n_cores or cores()
        self._started: tuple[tuple[str, bool], EncoderRun] | None = None
        self._batch_seconds: dict[tuple[str, float, float | None], float] = {}
        self._canaries: dict[str, CanaryReading] = {}
        self._traced = False

    def describe(self, options: ExtractOptions) -> EncoderCard:
        """Card of the encoder under these options."""
        encoder, earlier = self._encoder, self._encoder.earlier
        plan = partial(plan_recipe, encoder, device=self._device, options=options)
        return EncoderCard(
            name=encoder.shown_name,
            outputs=tuple(
                OutputCard(
                    recipe=plan(output),
                    earlier=None if earlier is None else plan(output, identity=earlier),
                    spec=encoder.spec_of(output),
                )
                for output in encoder.outputs
            ),
            featstore=__version__,
            text_sha256=encoder.text_sha256,
        )

    def check(self, job: EncodeJob) -> None:
        """Check that this worker has the encoder of the job, and can reach its shards and store.

        Raises
        ------
        EncoderError
            The encoder or the featstore version differs on this worker.
        ShardError, StoreError
            The shards or the store cannot be reached.
        """
        card = self.describe(job.options)
        here, there = ([output.recipe.group_name for output in each.outputs] for each in (card, job.card))
        if card != job.card:
            what = f"{here[0]} by featstore {card.featstore}", f"{there[0]} by featstore {job.card.featstore}"
            raise EncoderError(
                f"every worker must have the same encoder, files and featstore: {socket.gethostname()} has "
                f"{what[0]}, the run started with {what[1]}"
            )
        if isinstance(job.data_folder, Path) and not job.data_folder.is_dir():
            raise ShardError(
                f"{socket.gethostname()} has no folder {job.data_folder}: every worker must reach --data under one path"
            )
        if not all(map(job.is_created, job.outputs)):
            raise StoreError(
                f"{socket.gethostname()} does not find the store of the run at {redacted(job.store_url)}: "
                "every worker must reach --store under one path or URL"
            )

    def encode(self, job: EncodeJob, shards: Sequence[StaleShard], *, progress: Progress) -> EncodeResult:
        """Encode one shard after another."""
        stale = {each.shard.name: each for each in shards}
        with closing(self.events(job, [each.shard for each in shards], stale=stale)) as events:
            return collect(events, progress=progress)

    def events(
        self, job: EncodeJob, shards: Sequence[AnyShard] | ShardFeed, *, stale: Mapping[str, StaleShard]
    ) -> Generator[PipelineEvent, None, None]:
        """Encode shards into the feature sets that lack them: see `Pipeline.run`.

        ``stale`` maps names to shards; it may grow until `shards` yields the shard.
        """
        writers = [job.open_writer(output) for output in job.outputs]
        rate = self._encoder.facts.sample_rate_hz
        padding = Padding.parse(job.options.padding)

        def targets(shard: AnyShard) -> tuple[PartTarget, ...]:
            return tuple(
                PartTarget(
                    output=number,
                    writer=writers[number],
                    frames_stored=job.outputs[number].frames_stored,
                    generation=generation,
                )
                for number, generation in stale[shard.name].generations.items()
            )

        run = self.start(job)
        with run.at_work():
            batch_seconds = self.batch_seconds(run, job)
            pipeline = Pipeline(
                targets=targets,
                encoder=run,
                encoder_name=self._encoder.name,
                plan=plan_of(self._encoder, job.outputs[0].recipe, crop_seconds=job.crop_seconds),
                batcher=new_batcher(
                    padding,
                    budget_samples=round(batch_seconds * rate),
                    shards_ahead=_GPU_SHARDS_AHEAD if run.batches_ahead else 0,
                ),
                max_pending_bytes=_max_pending_bytes(self._cores) if run.batches_ahead else None,
                settings=EncodeSettings(
                    sample_rate_hz=rate,
                    max_clip_seconds=job.options.max_clip_seconds,
                    decode_threads=job.options.workers or min(_MOST_DECODE_THREADS, self._cores),
                    device=self._device,
                    batch_seconds=batch_seconds,
                    versions=software_versions(),
                ),
            )
            with self._profiled(run, job.options):
                yield from pipeline.run(shards)

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """The encoder's output for the reference signals under these options, cached between tasks."""
        from featstore.encoders.canary import read_canary

        recipe = self.describe(options).outputs[0].recipe
        if recipe.fingerprint not in self._canaries:
            self._canaries[recipe.fingerprint] = read_canary(
                self._encoder,
                recipe,
                device=self._device,
                plan=plan_of(self._encoder, recipe, crop_seconds=None),
                versions=software_versions(),
            )
        return self._canaries[recipe.fingerprint]

    def encode_texts(self, texts: Sequence[str], options: ExtractOptions) -> NDArray[np.float32]:
        """Encode texts by the text tower in the precision of the recipe, float32 (texts, dim)."""
        from featstore.encoders.runner import EncoderRun

        recipe = self.describe(options).outputs[0].recipe
        run = EncoderRun(self._encoder, recipe, device=self._device, keep_frames=False)
        with run.at_work():
            return run.encode_texts(texts)

    def start(self, job: EncodeJob) -> EncoderRun:
        """The encoder on its device, cached between jobs because it learns which batch sizes fit on the device."""
        from featstore.encoders.runner import EncoderRun

        recipe = job.outputs[0].recipe
        key = (recipe.fingerprint, job.frames_wanted)
        if job.options.compiled:
            self._encoder.compile()
        if self._started is None or self._started[0] != key:
            self._started = (
                key,
                EncoderRun(self._encoder, recipe, device=self._device, keep_frames=job.frames_wanted),
            )
        return self._started[1]

    def batch_seconds(self, run: EncoderRun, job: EncodeJob) -> float:
        """Seconds of audio per batch; auto-tuned once on a GPU."""
        key = (job.outputs[0].recipe.fingerprint, job.options.batch_seconds, job.crop_seconds)
        if key not in self._batch_seconds:
            self._batch_seconds[key] = _batch_seconds(self._encoder, run, job.options, crop_seconds=job.crop_seconds)
        return self._batch_seconds[key]

    @contextmanager
    def _profiled(self, run: EncoderRun, options: ExtractOptions) -> Iterator[None]:
        """Trace the first batches of this worker if a profile is requested."""
        if options.profile_path is None or self._traced:
            yield
            return
        from featstore.encoders.profiling import traced

        self._traced = True
        with traced(run, options.profile_path):
            yield


def _batch_seconds(encoder: Encoder, run: EncoderRun, options: ExtractOptions, *, crop_seconds: float | None) -> float:
    """Seconds of audio per batch: as requested, auto-tuned on a GPU, or a constant on a CPU.

    On a CPU the throughput does not depend on the batch size (measured for a transformer, and from 24 s for light
    encoders). The batch size affects the last bits, so it must not depend on a measurement there. Large batches
    fragment the heap: at 32 s with a light encoder memory is constant after 10,000 clips, at 64 s it kept growing.
    """
    if options.batch_seconds:
        return options.batch_seconds
    if run.batches_ahead == 0:
        return LIGHT_BATCH_SECONDS if encoder.is_light else CPU_BATCH_SECONDS
    from featstore.encoders.batch_size import find_batch_seconds

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


def plan_recipe(
    encoder: Encoder,
    output: Output,
    *,
    device: str,
    options: ExtractOptions,
    identity: Mapping[str, Any] | None = None,
) -> Recipe:
    """Build the recipe of one output of an encoder for these options on this device."""
    return encoder.recipe(
        padding=str(Padding.parse(options.padding)),
        precision=_precision(options.precision, device, encoder),
        frame_dtype=options.frame_dtype,
        resampler=RESAMPLER,
        format_version=FORMAT_VERSION,
        max_window_seconds=options.max_window_seconds,
        output=output,
        identity=identity,
    )


def software_versions() -> dict[str, str]:
    """Versions of the packages that affect embeddings."""
    names = ["featstore", "numpy", "soundfile", "soxr", "torch", "webdataset", "zarr"]
    used = ("dasheng", "onnxruntime", "sentence_transformers", "transformers")
    names += [name for name in used if name in sys.modules]  # if an encoder uses them
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


@cache
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def new_batcher(padding: Padding, *, budget_samples: int, shards_ahead: int) -> Batcher:
    """Build the batcher of a padding rule.

    On a CPU the throughput does not depend on the batch size, so batches do not span shards (``shards_ahead=0``): a
    part is bit-identical whatever was encoded before it. On a GPU batches span shards; its results vary in the last
    bits.
    """
    if padding.kind == "xares":
        return FileOrderBatcher(size=XARES_BATCH)
    return LengthBatcher(budget_samples=budget_samples, shards_ahead=shards_ahead)


def _max_pending_bytes(cores_here: int) -> int:
    """Limit of embeddings that wait in memory: half of this worker's share, by cores, of the free memory."""
    return max(_LEAST_WAITING_BYTES, (free_memory_bytes() or 0) * cores_here // (2 * cores()))


def _precision(requested: str, device: str, encoder: Encoder) -> str:
    if requested == "tf32" and not device.startswith("cuda"):
        raise UsageError(f"--precision tf32 requires a GPU, and the device is {device}: use float32")
    if requested != "auto":
        return requested
    if not device.startswith("cuda") or not encoder.has_weights:
        return "float32"
    from featstore.encoders.devices import gpu_multiplies_bfloat16

    return "bfloat16" if gpu_multiplies_bfloat16(device) else "float32"

"""Public functions that compute embeddings: `extract`, and around it `fetch` and `check`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

from featstore.api.arguments import StrPath, manifests_of, names_of, one_of, url_of
from featstore.errors import EncoderContractError, FeatstoreError, UsageError
from featstore.formatting import harmless, one_line

if TYPE_CHECKING:
    from featstore.api.arguments import AnyEncoder, Tasks
    from featstore.encoders.check import EncoderReport
    from featstore.encoders.pooling import Pool
    from featstore.extract import Engine, ExtractOptions, ExtractSettings, Progress, TaskExtraction
    from featstore.extract.distributed import Share
    from featstore.extract.pack import PackRecord
    from featstore.extract.sources import Source, SourceSettings
    from featstore.fetch import FetchRecord
    from featstore.fetch.task import Watcher
    from featstore.records import ExtractFailure, ExtractRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

    OpenProgress = Callable[[], AbstractContextManager[Progress]]

__all__ = ["Extracted", "check", "extract", "fetch"]

_log = logging.getLogger("featstore")


class Extracted(Sequence["ExtractRecord"]):
    """The result of `extract`: a record for each feature set that is up to date, and the tasks that failed.

    Attributes
    ----------
    failures : tuple of ExtractFailure
        Tasks that were not extracted, or not to their end, each with its reason. A shard that could not be read is not
        one of them: it is in ``broken`` of its record.
    packed : PackRecord or None
        The audio that was packed before: ``packed.manifest`` is its task.
    """

    def __init__(
        self,
        records: Iterable[ExtractRecord],
        *,
        failures: Iterable[ExtractFailure] = (),
        packed: PackRecord | None = None,
    ) -> None:
        self._records = tuple(records)
        self.failures = tuple(failures)
        self.packed = packed

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ExtractRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ExtractRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> ExtractRecord | tuple[ExtractRecord, ...]:
        return self._records[index]

    def raise_failures(self) -> None:
        """Raise one error for all failures and unreadable shards; return if there are none.

        Raises
        ------
        FeatstoreError
            Its ``exit_code`` is that of the failures, if they agree.
        """
        reasons = self._reasons()
        if not reasons:
            return
        error = FeatstoreError(f"not everything was extracted: {'; '.join(reasons)}")
        codes = {each.exit_code for each in self.failures} | {1 for each in self if each.broken}
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        raise error

    def log_failures(self) -> None:
        """Log a warning for each failure and unreadable shard."""
        for reason in self._reasons():
            _log.warning("not extracted: %s", reason)

    def _reasons(self) -> list[str]:
        unreadable = (f"{each.dataset}/{each.split}: {broken.reason}" for each in self for broken in each.broken)
        return [*dict.fromkeys(unreadable), *(f"{each.task}: {each.message}" for each in self.failures)]

    def __repr__(self) -> str:
        lines = [
            f"{each.encoder}@{each.fingerprint}/{each.dataset}/{each.split}: {each.clips:,} clips" for each in self
        ]
        lines += [f"failed: {each.task}: {each.message}" for each in self.failures]
        return "\n".join([f"featstore.Extracted: {len(self)} feature sets", *(f"  {harmless(line)}" for line in lines)])


if TYPE_CHECKING:

    class ExtractKeywords(ExtractSettings, SourceSettings, total=False):
        """Options of extraction, and the labelled audio to pack before."""


def extract(
    tasks: Tasks = (),
    *,
    encoder: AnyEncoder | Sequence[AnyEncoder],
    data: StrPath | None = None,
    store: Store | StrPath,
    split: str | Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    layers: str | Sequence[int | str | None] = (),
    pool: Pool | Sequence[Pool] = (),
    trust_remote_code: bool = False,
    name: str | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    cpus_per_worker: int | None = None,
    share: Share | None = None,
    local_rank: int | None = None,
    progress: Progress | OpenProgress | None = None,
    on_task: Callable[[TaskExtraction], object] | None = None,
    on_clip_packed: Callable[[], object] | None = None,
    on_packed: Callable[[PackRecord], object] | None = None,
    **options: Unpack[ExtractKeywords],
) -> Extracted:
    """Encode the shards of tasks into a store, each shard once; what the store has already is not encoded again.

    With ``audio=``, ``csv=`` or another keyword of `pack`, labelled audio is packed first, unless an earlier call did
    and nothing has changed: its shards and ``NAME.toml`` are in `data`, by default a folder beside the store.

    Parameters
    ----------
    tasks : str, os.PathLike, Manifest, or a sequence of these
    encoder : str, os.PathLike, nn.Module, callable, or a sequence of these
        A spec (see `featstore.load_encoder`), a module that keeps the encoder contract, or a class or function that
        returns one. A module is set to evaluation mode.
    data : str or os.PathLike
        Folder or URL that holds a folder of shards for each dataset; optional where all audio is packed.
    store : Store, str or os.PathLike
        Folder or URL; it is created where there is none.
    split : str or sequence of str, optional
        Only these splits or folds.
    arguments : mapping, optional
        Constructor arguments of the encoder.
    layers : str or sequence of int, str or None
        Hidden states to keep, each a feature set NAME.layerK: ``"all"``, ``"0-3,6,last"`` or ``[3, 6, None]``. ``last``
        and None are what the encoder returns, and the default; ``all`` is every hidden state, without ``last``.
    pool : str or sequence of str
        ``mean`` (the default), ``max``, ``std``: utterance vectors to keep of each layer.
    trust_remote_code : bool
        Run the code that comes with a transformers model.
    name : str, optional
        Name of the feature sets of the encoder, NAME@fingerprint; it is not part of the encoder's identity. If the
        store has the encoder under another name, that name is kept, and ``asked_as`` of the records has this one.
    engine : "local" or "ray"
        This machine, or a Ray cluster; see `featstore.extract.open_engine` for `ray_address` and `cpus_per_worker`.
    share : Share, optional
        Which of the shards are this process's, of several that extract together.
    local_rank : int, optional
        Rank of this process on its machine, set by a scheduler: selects the GPU.
    progress : Progress or callable, optional
        Is called as shards are encoded; or a function that opens a Progress for each task, as a context manager.
    on_task : callable, optional
        Takes the `featstore.extract.TaskExtraction` of each task as soon as it is known: first the tasks whose shards
        cannot be found, then each task that is extracted. Without it, failures are logged.
    on_clip_packed, on_packed : callable, optional
        Called for each clip that is packed, and with the PackRecord of all before the first task is extracted.
    **options
        Fields of `featstore.extract.ExtractOptions`: ``device``, ``precision``, ``padding``, ``frames``... And those
        of `featstore.extract.sources.Source`: ``audio``, ``csv``, ``hf``, ``label``, ``group``...

    Returns
    -------
    Extracted
        A sequence of ExtractRecord with ``failures``; ``packed`` is the record of the audio that was packed, or None.

    Raises
    ------
    featstore.errors.FeatstoreError
        The only encoder cannot be loaded, breaks its contract or has changed, or the store cannot be written. Of
        several encoders such an error is one of the failures, and the next encoder is tried.
    """
    from featstore.encoders.specs import parse_layers, parse_spec
    from featstore.extract import ExtractOptions
    from featstore.records import check_encoder_name

    encoders = list(encoder) if isinstance(encoder, list | tuple) else [cast("AnyEncoder", encoder)]
    if not encoders:
        raise UsageError("no encoder is given: name one or more, such as 'logmel'")
    source, options_given = _source_of(options)
    one_of("engine", engine, ("local", "ray"))
    if name is not None:
        check_encoder_name(name)
        if len(encoders) > 1:
            raise UsageError(f"name {name!r} is the name of one encoder: got {len(encoders)} encoders")
    settings = ExtractOptions(**options_given)
    loading = {
        "arguments": dict(arguments or {}),
        "layers": parse_layers(layers) if layers else (),
        "pools": names_of(pool),
        "trust_remote_code": trust_remote_code,
        "name": name,
    }
    packed = None
    if source is not None:
        if share is not None and not share.is_complete:
            raise UsageError("audio is packed by one process: run `featstore pack` first, then extract in shares")
        if len(encoders) == 1 and isinstance(encoders[0], str | os.PathLike):
            parse_spec(os.fspath(encoders[0]))  # a misspelt one is found before audio is packed
        tasks, data, packed = _packed(source, tasks, data, url_of(store), on_clip=on_clip_packed)
        if on_packed is not None:
            on_packed(packed)
    if data is None:
        raise UsageError("--data is missing: the folder of shards of the tasks; or name audio to pack")
    manifests = tuple(manifests_of(tasks).values())
    placing: dict[str, Any] = {
        "store_url": url_of(store),
        "engine": engine,
        "ray_address": ray_address,
        "cpus_per_worker": cpus_per_worker,
        "local_rank": local_rank,
    }
    planning = {
        "data_dir": os.fspath(data),
        "store_url": url_of(store),
        "options": settings,
        "splits": names_of(split),
        "share": share,
    }
    results: list[TaskExtraction] = []
    for each in encoders:
        run = _extractions(partial(_engine, each, loading, settings, **placing), manifests, planning, progress=progress)
        if len(encoders) > 1:
            run = _failing_alone(run, manifests, name=_shown(each))
        results += _in_order(run, on_task=on_task, raises=len(encoders) == 1)
    extracted = Extracted(
        (record for each in results for record in each.records),
        failures=(each.failure for each in results if each.failure is not None),
        packed=packed,
    )
    if on_task is None:
        extracted.log_failures()
    return extracted


def _source_of(options: Mapping[str, Any]) -> tuple[Source | None, dict[str, Any]]:
    """The labelled audio among the options of `extract`, or None, and the other options."""
    from featstore.extract.sources import SOURCE_FIELDS, Source

    of_source = {name: value for name, value in options.items() if name in SOURCE_FIELDS}
    others = {name: value for name, value in options.items() if name not in SOURCE_FIELDS}
    return (Source(**of_source) if of_source else None), others


def _packed(
    source: Source, tasks: Tasks, data: StrPath | None, store_url: str, *, on_clip: Callable[[], object] | None
) -> tuple[Tasks, Path, PackRecord]:
    """Pack the source; return the tasks with its own, the folder of shards, and the record."""
    from featstore.extract.pack import pack_for_store

    others = [tasks] if isinstance(tasks, str | os.PathLike) or not isinstance(tasks, Sequence) else list(tasks)
    if others and data is None:
        raise UsageError("--data is missing: the folder of shards of the named tasks")
    packed = pack_for_store(
        source,
        store_url=store_url,
        data_dir=None if data is None else os.fspath(data),
        on_clip=on_clip or (lambda: None),
    )
    return [*others, packed.manifest], Path(packed.folder).parent, packed


def _extractions(
    open_engine: Callable[[], AbstractContextManager[Engine]],
    manifests: Sequence[Manifest],
    planning: Mapping[str, Any],
    *,
    progress: Progress | OpenProgress | None,
) -> Generator[TaskExtraction]:
    """Plan and extract all tasks by one encoder."""
    from featstore.extract import Silent, extract_plans, plan_tasks

    if callable(progress):
        watch = progress
    else:
        opened = Silent() if progress is None else progress
        watch = lambda: nullcontext(opened)  # noqa: E731 - a constant as a context manager
    with open_engine() as engine:
        yield from extract_plans(plan_tasks(manifests, engine, **planning), watch=watch)


def _in_order(
    run: Generator[TaskExtraction], *, on_task: Callable[[TaskExtraction], object] | None, raises: bool
) -> list[TaskExtraction]:
    """Run the extractions; return their results in the order of the tasks, or raise the error that ended the run."""
    results: list[TaskExtraction] = []
    with closing(run):
        for result in run:
            results.append(result)
            if on_task is not None:
                on_task(result)
    results.sort(key=lambda result: result.number)
    for result in results:
        if result.fatal is not None and raises:
            raise result.fatal
    return results


def _failing_alone(
    run: Generator[TaskExtraction], manifests: Sequence[Manifest], *, name: str
) -> Generator[TaskExtraction]:
    """The extractions by one of several encoders; its error becomes the failure of every task."""
    from featstore.extract import TaskExtraction
    from featstore.records import ExtractFailure

    try:
        yield from run
    except (FeatstoreError, OSError, MemoryError) as error:
        message = f"{name}: {one_line(error) or type(error).__name__}"
        code = error.exit_code if isinstance(error, FeatstoreError) else 1
        for number, manifest in enumerate(manifests):
            failure = ExtractFailure(task=manifest.name, error=type(error).__name__, message=message, exit_code=code)
            yield TaskExtraction(number=number, failure=failure)


def _engine(
    encoder: AnyEncoder,
    loading: Mapping[str, Any],
    options: ExtractOptions,
    *,
    engine: Literal["local", "ray"],
    local_rank: int | None,
    store_url: str,
    **on_ray: Any,
) -> AbstractContextManager[Engine]:
    """The engine that encodes: a spec may be loaded by other processes, a module stays in this one."""
    from featstore.extract import EncoderRequest, open_engine
    from featstore.extract.import_embeddings import check_not_imported

    if isinstance(encoder, str | os.PathLike):
        check_not_imported(os.fspath(encoder), store_url)
        request = EncoderRequest(spec=os.fspath(encoder), **loading)
        return open_engine(request, device=options.device, engine=engine, local_rank=local_rank, **on_ray)
    from featstore.encoders.devices import pick_devices
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.load import load_object
    from featstore.extract.job import DeviceEncoder

    devices = pick_devices(options.device, local_rank=local_rank)
    if engine != "local" or len(devices) > 1:
        raise UsageError(
            "a module or callable is encoded by this process on one device: give a spec for several workers"
        )
    del (given := dict(loading))["trust_remote_code"]
    name = given.pop("name")
    loaded = encoder if isinstance(encoder, Encoder) else load_object(encoder, **given)
    return nullcontext(DeviceEncoder(loaded.named(name), device=devices[0]))


def _shown(encoder: AnyEncoder) -> str:
    return os.fspath(encoder) if isinstance(encoder, str | os.PathLike) else type(encoder).__name__


def check(
    encoder: StrPath,
    *,
    arguments: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    on_step: Callable[[str], None] | None = None,
    **options: Unpack[ExtractSettings],
) -> EncoderReport:
    """Test an encoder on synthesised audio, under the recipe and the padding rule of an extraction.

    Parameters
    ----------
    encoder : str or os.PathLike
        A spec, see `featstore.load_encoder`.
    arguments : mapping, optional
        Constructor arguments of the encoder.
    trust_remote_code : bool
        Run the code that comes with a transformers model.
    on_step : callable, optional
        Takes the name of each step before it starts.
    **options
        As of `extract`.

    Returns
    -------
    EncoderReport
        ``encoder``, its name; ``checks``, each with ``name``, ``verdict``, ``measured`` and ``advice``; ``failed``.

    Raises
    ------
    featstore.errors.EncoderError
        The encoder cannot be loaded, or cannot run on the device. A broken contract is a failed check.
    """
    from featstore.encoders import load_encoder
    from featstore.encoders.check import Budget, EncoderReport, broken_contract, check_encoder
    from featstore.encoders.devices import pick_device
    from featstore.extract import ExtractOptions, plan_recipe
    from featstore.extract.windows import plan_of

    spec, settings = os.fspath(encoder), ExtractOptions(**options)
    step = on_step or (lambda _: None)
    step(f"loading {spec}")
    try:
        loaded = load_encoder(spec, arguments=dict(arguments or {}), trust_remote_code=trust_remote_code)
    except EncoderContractError as error:
        return EncoderReport(encoder=spec, checks=(broken_contract(error),))
    device = pick_device(settings.device)
    recipe = plan_recipe(loaded, loaded.outputs[0], device=device, options=settings)
    plan = plan_of(loaded, recipe, crop_seconds=None)
    checks = check_encoder(loaded, recipe=recipe, device=device, plan=plan, budget=Budget(), on_step=step)
    return EncoderReport(encoder=loaded.name, checks=checks)


def fetch(
    tasks: Tasks,
    *,
    data: StrPath,
    jobs: int = 4,
    progress: Callable[[], AbstractContextManager[Watcher]] | None = None,
    on_task: Callable[[FetchRecord], object] | None = None,
    zenodo_url: str = "https://zenodo.org",
) -> tuple[FetchRecord, ...]:
    """Download the shards of tasks from their Zenodo records; interrupted downloads resume.

    Parameters
    ----------
    tasks : str, os.PathLike, Manifest, or a sequence of these
    data : str or os.PathLike
        Output folder, with a folder of shards for each dataset.
    jobs : int
        Parallel files.
    progress : callable, optional
        Opens the progress of one task, as a context manager.
    on_task : callable, optional
        Takes the record of each task as soon as it is downloaded.
    zenodo_url : str
        Base URL of the server.

    Returns
    -------
    tuple of FetchRecord

    Raises
    ------
    featstore.errors.UsageError
        The shards of a task are not published, or a task is not known.
    featstore.errors.FetchError
        A record cannot be read, the disk is too small, or a file does not match its checksum. Downloaded bytes are
        kept.
    """
    from featstore.fetch import Unwatched, fetch_task

    watch = progress or (lambda: nullcontext(Unwatched()))
    records: list[FetchRecord] = []
    for manifest in manifests_of(tasks).values():
        with watch() as watcher:
            record = fetch_task(manifest, Path(data), watcher=watcher, base_url=zenodo_url, jobs=jobs)
        records.append(record)
        if on_task is not None:
            on_task(record)
    return tuple(records)

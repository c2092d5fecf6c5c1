"""The public Python API: everything that the command line does, under the same names.

Import it as ``import featstore as fs``: each function here is an attribute of `featstore`, and nothing is imported
before it is used. A task is a name of `featstore tasks`, a path of a manifest or a `featstore.tasks.Manifest`; an
encoder is a name in the store where embeddings are read, and a spec, a ``torch.nn.Module`` or a callable that returns
one where they are computed. A path is a ``str`` or an ``os.PathLike``, and a store may be the path or an open `Store`.

One task or encoder that fails never stops the others: failures are logged by ``logging.getLogger("featstore")`` and are
part of the result. What is wrong with the call itself is raised, as `featstore.errors.UsageError`.

Examples
--------
Synthesise a little labelled audio, extract it with two encoders, score both on two tracks and compare them:

>>> import tempfile, featstore as fs
>>> from featstore.demo import Collection, make_shards
>>> folder = tempfile.mkdtemp()
>>> clips = {"train": 48, "valid": 12, "test": 24}
>>> notes = Collection(dataset="demo-instruments", clips=clips, shards=dict.fromkeys(clips, 1))
>>> _ = make_shards(f"{folder}/data", collections=[notes])
>>> data, store = f"{folder}/data", f"{folder}/s.zarr"
>>> made = fs.extract("demo-instruments", encoder=["logmel", "mfcc"], data=data, store=store)
>>> len(made), made.failures
(6, ())
>>> store = fs.open(store)
>>> len(store), "logmel/demo-instruments/train" in store
(6, True)
>>> X, y = store["logmel/demo-instruments/train"].xy("instrument")
>>> X.shape, y.shape
((48, 128), (48,))
>>> scores = fs.probe("demo-instruments", store=store)
>>> scores += fs.retrieve("demo-instruments", store=store, encoder="mfcc", k=3)
>>> [(score.track, score.encoder) for score in scores], scores.failures
([('A', 'logmel'), ('A', 'mfcc'), ('B', 'mfcc')], ())
>>> fs.compare(scores, "logmel", "mfcc").differences[0].task
'demo-instruments'
>>> fs.query("instruments-test-00003", store=store, encoder="mfcc", k=2).hits[0].dataset
'demo-instruments'
>>> [each.split for each in fs.health(store, encoder="logmel")]
['test', 'train', 'valid']
>>> fs.report(scores, f"{folder}/board.md").name
'board.md'
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, get_args, overload

from featstore.errors import FeatstoreError, UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import nn

    from featstore.diagnostics import Health
    from featstore.encoders import load_encoder
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.pooling import Pool
    from featstore.evaluation.runner import ScoreFailure, Scorer
    from featstore.explore.query import Found
    from featstore.extract import ExtractSettings, Progress
    from featstore.extract.distributed import Share
    from featstore.extract.pack import PackRecord
    from featstore.extract.sources import SourceSettings
    from featstore.probe.arrays import Labelled
    from featstore.records import ExtractFailure, ExtractRecord, Protocol, ScoreRecord
    from featstore.report import Comparison
    from featstore.report.scores import Scores
    from featstore.store import FeatureSet, FeatureSets, Store
    from featstore.tasks import Manifest

__all__ = [
    "Extracted",
    "Scores",
    "compare",
    "extract",
    "health",
    "load_encoder",
    "open",
    "pack",
    "probe",
    "probe_arrays",
    "query",
    "report",
    "retrieve",
]

StrPath = str | os.PathLike[str]

_log = logging.getLogger("featstore")
_ELSEWHERE = {"Scores": "featstore.report.scores", "load_encoder": "featstore.encoders"}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_ELSEWHERE[name]), name)


def open(url: StrPath, *, verify: bool = False) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    url : str or os.PathLike
        A folder, or ``s3://``, ``gs://``, ``az://``, ``hf://`` or ``https://``.
    verify : bool
        Read everything through its checksums first. Without it, numbers are read through a memory map, unchecked.

    Returns
    -------
    Store
        ``len``, iteration and ``in`` are over its feature sets; ``store["logmel/words/train"]`` is one of them.

    Raises
    ------
    featstore.errors.StoreNotFound
        There is no store at `url`.
    featstore.errors.StoreVersionError
        A newer featstore wrote it.
    featstore.errors.DamagedPart
        `verify` found damage.
    """
    url = os.fspath(url)
    if verify:
        from featstore.store.verify import require_sound

        require_sound(url)
    from featstore.store import open_store

    return open_store(url)


# --- audio ------------------------------------------------------------------------------------------------------------


def pack(
    out: StrPath,
    *,
    manifest: StrPath | None = None,
    shard_size: int = 1024,
    split: str | None = None,
    progress: Callable[[], object] | None = None,
    **source: Unpack[SourceSettings],
) -> PackRecord:
    """Pack labelled audio into shards, with a draft manifest. Nothing is overwritten.

    Parameters
    ----------
    out : str or os.PathLike
        Folder of the shards; its name is the name of the data set.
    manifest : str or os.PathLike, optional
        Output file of the manifest; ``OUT.toml`` by default.
    shard_size : int
        Clips per shard.
    split : str, optional
        Split of all clips: no column of splits is used.
    progress : callable, optional
        Is called for each clip that is packed.
    **source
        Fields of `featstore.extract.sources.Source`. Where the audio is: ``audio`` (a folder of a folder for each
        label), ``csv``, ``jsonl``, ``hf``, ``lhotse`` or ``kaldi``. And ``label``, ``key``, ``path``, ``kind``,
        ``separator``, ``split_column``, ``split_by``, ``folds``, ``group``.

    Returns
    -------
    PackRecord
        ``clips`` and ``shards`` by split, ``skipped`` files, ``manifest``, and what the label was found to be.

    Raises
    ------
    featstore.errors.UsageError
        The call is wrong, or the shards or the manifest exist.
    featstore.errors.DataError
        A table cannot be read, or no clip can be packed. Nothing is left.
    """
    from featstore.extract.pack import pack as pack_source
    from featstore.extract.sources import Source

    if shard_size < 1:
        raise UsageError(f"shard_size must be 1 or more, got {shard_size}")
    return pack_source(
        Path(out),
        Source(split=split, **source),
        manifest=None if manifest is None else Path(manifest),
        clips_per_shard=shard_size,
        on_clip=progress or _no_op,
    )


def _no_op() -> None:
    pass


# --- embeddings -------------------------------------------------------------------------------------------------------


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
        reasons = [*self._unreadable(), *(f"{each.task}: {each.message}" for each in self.failures)]
        if not reasons:
            return
        error = FeatstoreError(f"not everything was extracted: {'; '.join(reasons)}")
        codes = {each.exit_code for each in self.failures} | ({1} if self._unreadable() else set())
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        raise error

    def _unreadable(self) -> list[str]:
        reasons = (f"{each.dataset}/{each.split}: {broken.reason}" for each in self for broken in each.broken)
        return list(dict.fromkeys(reasons))

    def __repr__(self) -> str:
        done = [
            f"  {each.encoder}@{each.fingerprint}/{each.dataset}/{each.split}: {each.clips:,} clips" for each in self
        ]
        failed = [f"  failed: {each.task}: {each.message}" for each in self.failures]
        return "\n".join([f"featstore.Extracted: {len(self)} feature sets", *done, *failed])


if TYPE_CHECKING:

    class ExtractKeywords(ExtractSettings, SourceSettings, total=False):
        """Options of extraction, and the labelled audio to pack before."""


def extract(
    tasks: Tasks = (),
    *,
    encoder: AnyEncoder | Sequence[AnyEncoder],
    data: StrPath | None = None,
    store: StrPath,
    split: str | Sequence[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    layers: Sequence[int | None] = (),
    pool: Pool | Sequence[Pool] = (),
    trust_remote_code: bool = False,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    cpus_per_worker: int | None = None,
    share: Share | None = None,
    progress: Progress | None = None,
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
    store : str or os.PathLike
        Folder or URL; it is created where there is none.
    split : str or sequence of str, optional
        Only these splits or folds.
    arguments : mapping, optional
        Constructor arguments of the encoder.
    layers : sequence of int or None
        Hidden states to keep, each a feature set NAME.layerK; None is what the encoder returns, and the default.
    pool : str or sequence of str
        ``mean`` (the default), ``max``, ``std``: utterance vectors to keep of each layer.
    trust_remote_code : bool
        Run the code that comes with a transformers model.
    engine : "local" or "ray"
        This machine, or a Ray cluster; see `featstore.extract.open_engine` for `ray_address` and `cpus_per_worker`.
    share : Share, optional
        Which of the shards are this process's, of several that extract together.
    progress : Progress, optional
        Is called as shards are encoded.
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
    from featstore.extract import ExtractOptions, plan_tasks
    from featstore.extract.results import Silent
    from featstore.extract.run import extract_plans
    from featstore.records import ExtractFailure

    source, settings_given = _source_of(options)
    packed: PackRecord | None = None
    if source is not None:
        from featstore.extract.pack import pack_for_store

        packed = pack_for_store(source, store_url=os.fspath(store), data_dir=None if data is None else os.fspath(data))
        given = [tasks] if isinstance(tasks, str | os.PathLike) or not isinstance(tasks, Sequence) else list(tasks)
        if given and data is None:
            raise UsageError("data is needed: the folder of shards of the other tasks")
        tasks, data = [*given, packed.manifest], os.path.dirname(packed.folder)  # noqa: PTH120
    if data is None:
        raise UsageError("data is needed: the folder of shards of the tasks; or audio to pack")
    manifests = list(_manifests(tasks).values())
    encoders = list(encoder) if isinstance(encoder, list | tuple) else [cast("AnyEncoder", encoder)]
    if not encoders:
        raise UsageError("no encoder is given: name one or more, such as 'logmel'")
    _one_of("engine", engine, ("local", "ray"))
    settings = ExtractOptions(**settings_given)
    records: list[ExtractRecord] = []
    failures: list[ExtractFailure] = []
    for each in encoders:
        loading = {
            "arguments": dict(arguments or {}),
            "layers": tuple(layers),
            "pools": _several(pool),
            "trust_remote_code": trust_remote_code,
        }
        try:
            with _engine(
                each, loading, settings, engine=engine, ray_address=ray_address, cpus_per_worker=cpus_per_worker
            ) as opened:
                plans = plan_tasks(
                    manifests,
                    opened,
                    data_dir=os.fspath(data),
                    store_url=os.fspath(store),
                    options=settings,
                    splits=_several(split),
                    share=share,
                )
                for done in extract_plans(plans, watch=lambda: nullcontext(progress or Silent())):
                    if done.fatal is not None and len(encoders) == 1:
                        raise done.fatal
                    records += done.records
                    failures += [] if done.failure is None else [done.failure]
        except (FeatstoreError, OSError, MemoryError) as error:
            if len(encoders) == 1:
                raise
            message = f"{_shown(each)}: {' '.join(str(error).split()) or type(error).__name__}"
            code = error.exit_code if isinstance(error, FeatstoreError) else 1
            failures += [
                ExtractFailure(task=manifest.name, error=type(error).__name__, message=message, exit_code=code)
                for manifest in manifests
            ]
    extracted = Extracted(records, failures=failures, packed=packed)
    for reason in (*extracted._unreadable(), *(f"{each.task}: {each.message}" for each in failures)):
        _log.warning("not extracted: %s", reason)
    return extracted


def _source_of(options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The labelled audio among the options of `extract`, or None, and the other options."""
    from featstore.extract.sources.source import SOURCE_FIELDS, Source

    of_source = {name: value for name, value in options.items() if name in SOURCE_FIELDS}
    others = {name: value for name, value in options.items() if name not in SOURCE_FIELDS}
    return (Source(**of_source) if of_source else None), others


def _engine(
    encoder: AnyEncoder,
    loading: Mapping[str, Any],
    options: Any,
    *,
    engine: Literal["local", "ray"],
    ray_address: str | None,
    cpus_per_worker: int | None,
) -> Any:
    """A context manager of the engine that encodes: a spec may be loaded by other processes, a module stays here."""
    from featstore.extract import EncoderRequest, open_engine

    if isinstance(encoder, str | os.PathLike):
        request = EncoderRequest(spec=os.fspath(encoder), **loading)
        return open_engine(
            request,
            device=options.device,
            engine=engine,
            ray_address=ray_address,
            cpus_per_worker=cpus_per_worker,
        )
    from featstore.encoders.devices import pick_devices
    from featstore.encoders.encoder import Encoder
    from featstore.encoders.load import load_object
    from featstore.extract.engine import LocalEngine

    devices = pick_devices(options.device)
    if engine != "local" or len(devices) > 1:
        raise UsageError(
            "a module or callable is encoded by this process on one device: give a spec for several workers"
        )
    loaded = encoder
    if not isinstance(encoder, Encoder):
        del (given := dict(loading))["trust_remote_code"]
        loaded = load_object(encoder, **given)
    return nullcontext(LocalEngine(cast("Encoder", loaded), device=devices[0]))


def _shown(encoder: AnyEncoder) -> str:
    return os.fspath(encoder) if isinstance(encoder, str | os.PathLike) else type(encoder).__name__


# --- scores -----------------------------------------------------------------------------------------------------------

ScoreProgress = Callable[[int, int, str], object]
"""Takes how many scores are done, of how many, and the name of the last: the first call has none done."""


def probe(
    tasks: Tasks,
    *,
    store: Store | StrPath,
    encoder: str | Sequence[str] | None = None,
    protocol: Protocol = "strict",
    head: str | None = None,
    seeds: int | Sequence[int] | None = None,
    shots: Sequence[int] = (),
    jobs: int = 1,
    results: StrPath | None = None,
    progress: ScoreProgress | None = None,
) -> Scores:
    """Track A: train a linear model on the cached embeddings of each task and encoder, and score it.

    Parameters
    ----------
    tasks : str, os.PathLike, Manifest, or a sequence of these
    store : Store, str or os.PathLike
    encoder : str or sequence of str, optional
        Names in the store (``"logmel"``, or ``"logmel@3f9c2a71"``); by default every encoder that has the task.
    protocol : "strict" or "xares"
        Sound evaluation, or X-ARES's own rules.
    head : str, optional
        ``logistic``, ``ridge``, ``sweep`` or ``linear``; see `featstore.probe.probe_task`.
    seeds : int or sequence of int, optional
        Their number, from 0 on, or the seeds themselves; 3 under ``strict``, one under ``xares``.
    shots : sequence of int
        Few-shot curve: also score with N training clips of each class.
    jobs : int
        Processes that score pairs of task and encoder; they share the cores.
    results : str or os.PathLike, optional
        Folder to which each score is written as soon as it is known.
    progress : callable, optional
        Takes the number of scores done, their total and the name of the last.

    Returns
    -------
    Scores
        A sequence of ScoreRecord, in the order of tasks and encoders, with ``failures``.

    Raises
    ------
    featstore.errors.UsageError
        A task or the protocol is not known, or two different tasks have one name.
    featstore.errors.StoreError
        The store cannot be read.
    """
    from featstore.probe import probe_task
    from featstore.records import Protocol

    _one_of("protocol", protocol, get_args(Protocol))
    score = partial(_score, probe_task, protocol=protocol, head=head, seeds=_seeds(seeds), shots=tuple(shots))
    return _scores(
        _manifests(tasks), score, store=store, encoder=encoder, jobs=jobs, results=results, progress=progress
    )


def retrieve(
    tasks: Tasks,
    *,
    store: Store | StrPath,
    encoder: str | Sequence[str] | None = None,
    protocol: Protocol = "strict",
    k: int | Sequence[int] | None = None,
    index: str = "flat",
    shots: Sequence[int] = (),
    jobs: int = 1,
    results: StrPath | None = None,
    progress: ScoreProgress | None = None,
    notify: Callable[[str], object] = _log.info,
) -> Scores:
    """Track B: let the nearest cached neighbours of each test clip vote on its label; nothing is trained.

    Of several tasks, those without a nearest-neighbour track are skipped.

    Parameters
    ----------
    tasks, store, encoder, protocol, shots, jobs, results, progress
        As of `probe`.
    k : int or sequence of int, optional
        Neighbours that vote; one search answers several. The task's number by default.
    index : "flat", "hnsw", "ivf" or "ivfpq"
        FAISS index: ``flat`` is exact, of the others the recall is measured.
    notify : callable
        Takes a line about a task that is skipped and an index that is built; with several jobs a module-level function.

    Returns
    -------
    Scores

    Raises
    ------
    featstore.errors.UsageError
        No task has a nearest-neighbour track, a task or the protocol is not known, or two different tasks have one
        name.
    """
    from featstore.records import Protocol
    from featstore.retrieve import retrieve_task

    _one_of("protocol", protocol, get_args(Protocol))
    manifests = _manifests(tasks)
    without = [label for label, manifest in manifests.items() if not manifest.retrieve.enabled]
    if len(manifests) > 1:  # a task alone is scored, and reports its own lack of the track
        for label in without:
            notify(f"{label} has no nearest-neighbour track: skipped")
            del manifests[label]
        if not manifests:
            raise UsageError("no task has a nearest-neighbour track: `featstore probe` scores them")
    score = partial(_score, retrieve_task, protocol=protocol, k=k, index=index, shots=tuple(shots), tell=notify)
    return _scores(manifests, score, store=store, encoder=encoder, jobs=jobs, results=results, progress=progress)


def _score(
    score: Callable[..., ScoreRecord], store: Store, manifest: Manifest, encoder: str | None, **options: Any
) -> ScoreRecord:
    return score(store, manifest, encoder=encoder, **options)


def _scores(
    manifests: Mapping[str, Manifest],
    score: Scorer,
    *,
    store: Store | StrPath,
    encoder: str | Sequence[str] | None,
    jobs: int,
    results: StrPath | None,
    progress: ScoreProgress | None,
) -> Scores:
    """Score every pair, write each score as soon as it is known, and collect all in the order of the pairs."""
    import featstore.report as reports
    from featstore.evaluation.runner import ScoreFailure, plan_pairs, run_pairs
    from featstore.report.scores import Scores

    opened = _opened(store)
    pairs = plan_pairs(opened, manifests, _several(encoder))
    folder = None if results is None else Path(results)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # before any score is computed
    found: dict[int, ScoreRecord | ScoreFailure] = {}
    unwritten: list[str] = []
    if progress is not None:
        progress(0, len(pairs), "")
    with closing(run_pairs(opened, pairs, score, jobs=jobs)) as outcomes:
        for number, outcome in outcomes:
            found[number] = outcome
            if isinstance(outcome, ScoreFailure):
                _log.warning("%s", outcome)
            elif folder is not None:
                try:
                    reports.write_score(outcome, folder)
                except OSError as error:  # a full disk: the score is returned, and others are computed
                    unwritten.append(f"{pairs[number]} ({(error.strerror or str(error)).lower()})")
                    _log.warning("the score of %s could not be written", unwritten[-1])
            if progress is not None:
                progress(len(found), len(pairs), str(pairs[number]))
    in_order = [found[number] for number in sorted(found)]
    return Scores(
        [each for each in in_order if not isinstance(each, ScoreFailure)],
        failures=[each for each in in_order if isinstance(each, ScoreFailure)],
        unwritten=unwritten,
    )


def probe_arrays(
    X: ArrayLike,
    y: ArrayLike | Sequence[Any],
    *,
    test: Labelled,
    valid: Labelled | None = None,
    metric: str | None = None,
    head: str | None = None,
    seeds: int | Sequence[int] | None = None,
) -> ScoreRecord:
    """Train and score the probe of the protocol ``strict`` on arrays, without a store or a manifest.

    Parameters
    ----------
    X : array-like (n, dim)
        Embeddings of the training clips.
    y : array-like (n,) or (n, n_classes)
        Classes (text or whole numbers); label sets, as lists of text or as a multi-hot array; or numbers with a
        fraction, which are regressed.
    test : tuple
        Embeddings and labels that are scored.
    valid : tuple, optional
        Embeddings and labels that choose the regularisation; a tenth of the training clips by default.
    metric : str, optional
        By default ``accuracy`` for classes, ``mAP`` for label sets, ``pearson`` for numbers.
    head : str, optional
        ``logistic``, ``sweep`` or ``linear``; ``ridge`` or ``linear`` for numbers.
    seeds : int or sequence of int, optional
        Of heads that are trained by minibatches: their number, from 0 on, or the seeds themselves; 3 by default.

    Returns
    -------
    ScoreRecord
        ``metric``, ``value``, ``ci_low``, ``ci_high``, and ``details`` with the fit and the warnings.

    Raises
    ------
    featstore.errors.UsageError
        The shape or kind of the labels, the metric or the head is not one that the probe knows.
    featstore.errors.DataError, featstore.errors.LabelError
        The embeddings and labels do not fit together, or cannot be learned from.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 3, 300)
    >>> X = np.eye(8)[y] + 0.3 * rng.standard_normal((300, 8))
    >>> score = probe_arrays(X[:200], y[:200], test=(X[200:], y[200:]))
    >>> score.metric, score.value > 0.9, score.ci_low < score.value < score.ci_high
    ('accuracy', True, True)
    """
    from featstore.probe.arrays import probe_arrays as on_arrays

    return on_arrays(X, y, test=test, valid=valid, metric=metric, head=head, seeds=_seeds(seeds))


def compare(scores: Iterable[ScoreRecord] | StrPath, a: str, b: str) -> Comparison:
    """Compare two encoders on everything that both are scored on, with 95 % intervals and tests on the same clips.

    Parameters
    ----------
    scores : Scores, iterable of ScoreRecord, str or os.PathLike
        Scores, or the folder that they were written to.
    a, b : str
        ``"logmel"``, or ``"logmel@3f9c2a71"`` where there are several recipes of it.

    Returns
    -------
    Comparison
        ``differences`` by task and ``averages``; each has ``difference``, ``low``, ``high``, ``p`` and ``better``.

    Raises
    ------
    featstore.errors.UsageError
        An encoder has no score, a name is that of several, or the two have no score in common.
    """
    from featstore.report import compare as compared

    return compared(_records(scores), a, b)


def report(
    scores: Iterable[ScoreRecord] | StrPath,
    out: StrPath,
    *,
    format: Literal["html", "markdown", "csv", "json"] | None = None,
    title: str = "Audio encoders",
    published: bool = False,
    store: Store | StrPath | None = None,
) -> Path:
    """Write the leaderboard of scores to a file.

    Parameters
    ----------
    scores : Scores, iterable of ScoreRecord, str or os.PathLike
        Scores, or the folder that they were written to.
    out : str or os.PathLike
        The file; its suffix (``.html``, ``.md``, ``.csv``, ``.json``) names the format where `format` does not.
    title : str
        Of an HTML page.
    published : bool
        Add the published scores of X-ARES to Markdown and CSV tables of the protocol ``xares``; an HTML page always has
        them.
    store : Store, str or os.PathLike, optional
        Of an HTML page: also show the health of the embedding spaces.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    featstore.errors.UsageError
        The format is not known, or a library that it needs is not installed.
    """
    from featstore.files import write_whole
    from featstore.report.render import FORMAT_OF_SUFFIX, render

    path = Path(out)
    chosen = FORMAT_OF_SUFFIX.get(path.suffix.lower()) if format is None else format
    if chosen is None:
        raise UsageError(
            f"the suffix of {path.name!r} names no format: it is {', '.join(FORMAT_OF_SUFFIX)}, or give format"
        )
    opened = None if store is None else _opened(store)
    write_whole(path, render(_records(scores), chosen, title=title, published=published, store=opened))
    return path


def _records(scores: Iterable[ScoreRecord] | StrPath) -> tuple[ScoreRecord, ...]:
    """The newest score of everything that was scored."""
    from featstore.report import read_scores
    from featstore.report.scores import Scores

    if isinstance(scores, str | os.PathLike):
        return read_scores(Path(scores))
    return Scores(scores).newest()


# --- the embedding space ----------------------------------------------------------------------------------------------


def query(
    wanted: StrPath,
    *,
    store: Store | StrPath,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    k: int = 10,
    spec: str | None = None,
    device: str = "auto",
) -> Found:
    """Find the cached clips nearest to an audio file or to a cached clip.

    Parameters
    ----------
    wanted : str or os.PathLike
        An audio file, or the key of a cached clip; with ``split/`` or ``dataset/split/`` before it where several
        feature sets have the key.
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Search only these feature sets, which are of one encoder.
    k : int
        Number of clips.
    spec : str, optional
        How to load the encoder for a file, where it is not built in.
    device : str
        Where the file is encoded.

    Returns
    -------
    Found
        ``hits``, nearest first: ``key``, ``dataset``, ``split``, ``similarity``, ``distance``, ``labels``.

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        There is neither such a clip nor such a file, or no feature set matches.
    featstore.errors.AmbiguousSelection
        The feature sets are of several encoders, or several clips have the key.
    featstore.errors.UsageError
        `k` is less than 1.
    """
    from featstore.explore.query import nearest_to_file, nearest_to_key, sets_of_one_encoder

    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    sets = sets_of_one_encoder(_opened(store), encoder=encoder, dataset=dataset, split=split)
    name = os.fspath(wanted)
    if not os.path.isfile(name):  # noqa: PTH113 - a key may be longer than a file name, for which Path raises
        return nearest_to_key(sets, name, k=k)
    from featstore.extract.single_file import load_encoder_of

    def load(fs: FeatureSet) -> Encoder:
        return load_encoder_of(fs.recipe, stored_spec=fs.address.spec, spec=spec)

    return nearest_to_file(sets, Path(name), load=load, k=k, device=device)


def health(
    store: Store | StrPath,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    label: str | None = None,
    near_cosine: float | None = None,
) -> tuple[Health, ...]:
    """Measure embedding spaces: norms, effective rank, anisotropy, hubness, near-duplicates in other splits.

    Parameters
    ----------
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Measure only these feature sets.
    label : str, optional
        Field of the clips' JSON that holds the class: adds the separability of classes.
    near_cosine : float, optional
        From where on two whitened vectors are near-duplicates; 0.98 by default.

    Returns
    -------
    tuple of Health

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        No feature set matches.
    featstore.errors.LabelError
        A clip has no such field, or several values in it.
    featstore.errors.UsageError
        `near_cosine` is not above 0 and at most 1.
    """
    from featstore.diagnostics import NEAR_COSINE, examine_health
    from featstore.errors import UnknownFeatureSet

    opened = _opened(store)
    chosen: FeatureSets = opened.feature_sets(encoder=encoder, dataset=dataset, split=split)
    if not chosen:
        raise UnknownFeatureSet(
            f"{opened.url} holds nothing of {'/'.join(each or '*' for each in (encoder, dataset, split))}"
        )
    near = NEAR_COSINE if near_cosine is None else near_cosine
    if not 0 < near <= 1:
        raise UsageError(f"near_cosine must be above 0 and at most 1, got {near:g}")
    return examine_health(chosen, among=opened.feature_sets(), label=label, near_cosine=near)


# --- arguments --------------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    Task = str | os.PathLike[str] | Manifest
    Tasks = Task | Sequence[Task]
    AnyEncoder = str | os.PathLike[str] | nn.Module | Encoder | Callable[..., nn.Module]


def _manifests(tasks: Tasks) -> dict[str, Manifest]:
    """Manifests by the name or path that each was asked for by."""
    from featstore.tasks import Manifest, find_task

    several = [tasks] if isinstance(tasks, str | os.PathLike | Manifest) else list(tasks)
    found: dict[str, Manifest] = {}
    for task in several:
        if isinstance(task, Manifest):
            label = task.name
            while label in found and found[label] is not task:
                label += "'"  # two manifests of one name: equal ones are one task, others are refused later
            found[label] = task
        else:
            found[os.fspath(task)] = find_task(os.fspath(task))
    if not found:
        raise UsageError("no task is given: name one or more, see `featstore tasks`")
    return found


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")


def _seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    if seeds is None:
        return None
    return tuple(range(int(seeds))) if isinstance(seeds, Integral) else tuple(map(int, cast("Sequence[int]", seeds)))


def _several(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _opened(store: Store | StrPath) -> Store:
    return open(store) if isinstance(store, str | os.PathLike) else store

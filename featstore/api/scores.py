"""Public functions that score: `probe`, `retrieve`, the same of arrays, `compare` and `report`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from featstore.api.arguments import StrPath, manifests_of, names_of, one_of, opened, seeds_of
from featstore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from featstore.api.arguments import Tasks
    from featstore.evaluation.arrays import Labelled
    from featstore.evaluation.runner import ScoreFailure, Scorer
    from featstore.records import Protocol, ScoreRecord
    from featstore.report import Comparison
    from featstore.report.scores import Scores
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["ScoreProgress", "compare", "knn_arrays", "measure_arrays", "probe", "probe_arrays", "report", "retrieve"]

_log = logging.getLogger("featstore")

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
    split_by: str | None = None,
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
        ``logistic``, ``ridge``, ``sweep``, ``linear`` or ``layer-mix``; see `featstore.probe.probe_task`. ``layer-mix``
        gives one score for all layers of an encoder, which is named without a layer; by default every encoder of which
        the store has two or more layers of the task.
    seeds : int or sequence of int, optional
        Their number, from 0 on, or the seeds themselves; 3 under ``strict``, one under ``xares``.
    shots : sequence of int
        Few-shot curve: also score with N training clips of each class.
    split_by : str, optional
        Field of a clip's JSON, or ``"group"`` for the manifest's group: five folds of all clips that keep each group
        together, in place of the declared splits. ``details["random_folds"]`` has the score of random folds and the
        difference.
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
    from featstore.evaluation.layers import families_with
    from featstore.probe import probe_task

    one_of("protocol", protocol, ("strict", "xares"))
    score = partial(
        probe_task, protocol=protocol, head=head, seeds=seeds_of(seeds), shots=tuple(shots), split_by=split_by
    )
    return _scores(
        manifests_of(tasks),
        score,
        store=store,
        encoder=encoder,
        jobs=jobs,
        results=results,
        progress=progress,
        found_by=families_with if head == "layer-mix" else None,
    )


def retrieve(
    tasks: Tasks,
    *,
    store: Store | StrPath,
    encoder: str | Sequence[str] | None = None,
    protocol: Protocol = "strict",
    measure: str | Sequence[str] | None = None,
    k: int | Sequence[int] | None = None,
    index: str = "flat",
    shots: Sequence[int] = (),
    jobs: int = 1,
    results: StrPath | None = None,
    progress: ScoreProgress | None = None,
    notify: Callable[[str], object] = _log.info,
) -> Scores:
    """Track B: score the cached embeddings of each task and encoder without training, by one or more measures.

    By default the nearest neighbours of each test clip vote on its label. Tasks without any of the measures are skipped
    if there are several tasks, and so are measures that a task does not have if there are several measures.

    Parameters
    ----------
    tasks, store, encoder, shots, jobs, results, progress
        As of `probe`.
    protocol : "strict", "xares" or "maeb"
        As of `probe`; ``maeb`` computes the scores of mteb's evaluators.
    measure : str or sequence of str, optional
        ``knn``, the default: the vote of the nearest neighbours. ``retrieval``: test clips find others of their class.
        ``clustering``: k-means and HDBSCAN against the classes. ``pairs``: whether two clips have the same class.
        ``zero-shot``: texts of the classes classify the clips; ``text``: they find the clips, or captions and clips
        find each other (both for encoders with a text tower). Of ``maeb``: ``classification``, ``multilabel``,
        ``clustering``, ``pairs``, ``reranking``, ``retrieval``; by default all that the task has. Each is one record.
    k : int or sequence of int, optional
        For ``knn``: neighbours that vote; one search answers several. The task's number by default.
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
        No task has a measure, a task, measure or the protocol is not known, or two different tasks have one name.
    """
    from featstore.evaluation.captions import encoders_to_retrieve
    from featstore.records import Protocol
    from featstore.retrieve.measures import check_measures, default_measures, score_measures, why_not

    one_of("protocol", protocol, get_args(Protocol))
    measures = None if measure is None else names_of(measure)
    wanted = default_measures(protocol) if measures is None else measures
    check_measures(wanted, protocol, k=k, index=index, shots=shots)
    what = "nearest-neighbour track" if wanted == ("knn",) else f"measure {', '.join(wanted)}"
    manifests = manifests_of(tasks)
    if len(manifests) > 1:  # a task alone is scored, and reports its own lack of measures
        for label, manifest in list(manifests.items()):
            if all(why_not(each, manifest, protocol) for each in wanted):
                notify(f"{label} has no {what}: skipped")
                del manifests[label]
        if not manifests:
            raise UsageError(f"no task has a {what}: `featstore probe` scores them")
    score = partial(
        score_measures, protocol=protocol, measures=measures, k=k, index=index, shots=tuple(shots), notify=notify
    )
    return _scores(
        manifests,
        score,
        store=store,
        encoder=encoder,
        jobs=jobs,
        results=results,
        progress=progress,
        found_by=encoders_to_retrieve,
    )


def _scores(
    manifests: Mapping[str, Manifest],
    score: Scorer,
    *,
    store: Store | StrPath,
    encoder: str | Sequence[str] | None,
    jobs: int,
    results: StrPath | None,
    progress: ScoreProgress | None,
    found_by: Callable[[Store, Manifest], Sequence[str]] | None = None,
) -> Scores:
    """Score every pair, write each score as soon as it is known, and collect all in the order of the pairs."""
    import featstore.report as reports
    from featstore.evaluation.runner import ScoreFailure, plan_pairs, run_pairs
    from featstore.report.scores import Scores

    cached = opened(store)
    pairs = plan_pairs(cached, manifests, names_of(encoder), found_by=found_by)
    folder = None if results is None else Path(results)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)  # before any score is computed
    found: dict[int, tuple[ScoreRecord | ScoreFailure, ...]] = {}
    unwritten: list[str] = []
    if progress is not None:
        progress(0, len(pairs), "")
    with closing(run_pairs(cached, pairs, score, jobs=jobs)) as outcomes:
        for number, of_pair in outcomes:
            found[number] = of_pair
            for outcome in of_pair:
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
    in_order = [outcome for number in sorted(found) for outcome in found[number]]
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
    groups: Sequence[Any] | None = None,
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
        Embeddings and labels that are scored, and their groups if there are `groups`.
    valid : tuple, optional
        Embeddings and labels that choose the regularisation (and their groups); a tenth of the training clips by
        default.
    groups : sequence (n,), optional
        Group of each training clip, such as its speaker: intervals resample the groups of `test`, and the validation
        tenth consists of complete groups.
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
    from featstore.evaluation.arrays import array_task
    from featstore.probe import probe_task

    store, manifest = array_task(X, y, groups=groups, test=test, valid=valid, metric=metric)
    return probe_task(store, manifest, encoder="arrays", head=head, seeds=seeds_of(seeds))


def knn_arrays(
    X: ArrayLike,
    y: ArrayLike | Sequence[Any],
    *,
    test: Labelled | None = None,
    groups: Sequence[Any] | None = None,
    k: int | Sequence[int] | None = None,
    metric: str | None = None,
) -> ScoreRecord:
    """Score arrays by the vote of nearest neighbours of the protocol ``strict``, without a store or a manifest.

    Parameters
    ----------
    X : array-like (n, dim)
        Embeddings of the training clips, which are searched by cosine similarity.
    y : array-like (n,) or (n, n_classes)
        Classes (text or whole numbers), or label sets, as lists of text or as a multi-hot array.
    test : tuple, optional
        Embeddings and labels that are scored, and their groups if there are `groups`. By default each clip of `X` is
        scored by its neighbours among the others.
    groups : sequence (n,), optional
        Group of each clip of `X`, such as its speaker: intervals resample groups, and without `test` a clip's
        neighbours are of other groups.
    k : int or sequence of int, optional
        Neighbours that vote, 10 by default; of several, ``details["k_curve"]`` has all scores.
    metric : str, optional
        By default ``accuracy`` for classes, ``mAP`` for label sets.

    Returns
    -------
    ScoreRecord
        ``metric``, ``value``, ``ci_low``, ``ci_high``, and ``details`` with ranking metrics and the warnings.

    Raises
    ------
    featstore.errors.UsageError
        The labels are numbers, or their shape or kind, `k` or the metric is invalid.
    featstore.errors.DataError, featstore.errors.LabelError
        The embeddings and labels do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 3, 300)
    >>> X = np.eye(8)[y] + 0.3 * rng.standard_normal((300, 8))
    >>> score = knn_arrays(X[:200], y[:200], test=(X[200:], y[200:]), k=[1, 5])
    >>> score.metric, score.value > 0.9, sorted(score.details["k_curve"])
    ('accuracy', True, ['1', '5'])
    """
    from featstore.evaluation.arrays import array_task
    from featstore.retrieve import retrieve_task

    store, manifest = array_task(X, y, groups=groups, test=test, metric=metric)
    return retrieve_task(store, manifest, encoder="arrays", k=k)


def measure_arrays(
    X: ArrayLike,
    y: ArrayLike | Sequence[Any],
    *,
    groups: Sequence[Any] | None = None,
    measure: str | Sequence[str] = ("retrieval", "clustering", "pairs"),
) -> Scores:
    """Score arrays by measures that compare the clips with each other, without a store or a manifest.

    Parameters
    ----------
    X : array-like (n, dim)
        Embeddings, which are compared by cosine similarity.
    y : array-like (n,) or (n, n_classes)
        Classes (text or whole numbers), or label sets, as lists of text or as a multi-hot array.
    groups : sequence (n,), optional
        Group of each clip, such as its speaker: intervals resample groups, and clips of one group are not compared.
    measure : str or sequence of str
        ``retrieval``, ``clustering`` and ``pairs``, as of `featstore.api.retrieve`.

    Returns
    -------
    Scores
        One record for each measure; ``details["scores"]`` has all metrics of it with their intervals.

    Raises
    ------
    featstore.errors.UsageError
        The labels are numbers, or their shape or kind or the measure is invalid.
    featstore.errors.DataError, featstore.errors.LabelError
        The embeddings and labels do not fit together, or a measure is not defined for them.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 3, 120)
    >>> X = np.eye(8)[y] + 0.3 * rng.standard_normal((120, 8))
    >>> [(score.measure, score.metric) for score in measure_arrays(X, y, measure=["retrieval", "pairs"])]
    [('retrieval', 'mAP'), ('pairs', 'eer')]
    """
    from featstore.evaluation.arrays import array_task
    from featstore.evaluation.runner import ScoreFailure
    from featstore.report.scores import Scores
    from featstore.retrieve import score_measures

    store, manifest = array_task(X, y, groups=groups, test=None)
    found = score_measures(store, manifest, encoder="arrays", measures=names_of(measure))
    return Scores(
        [each for each in found if not isinstance(each, ScoreFailure)],
        failures=[each for each in found if isinstance(each, ScoreFailure)],
    )


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
    format: Literal["html", "markdown", "latex", "csv", "json", "leaderboard-json"] | None = None,
    title: str = "Audio encoders",
    published: bool = False,
    store: Store | StrPath | None = None,
) -> Path:
    """Write the leaderboard of scores to a file.

    Parameters
    ----------
    scores : Scores, iterable of ScoreRecord, str or os.PathLike
        Scores, or the folder that they were written to; scores that a certificate in the folder covers are marked.
    out : str or os.PathLike
        The file; its suffix (``.html``, ``.md``, ``.tex``, ``.csv``, ``.json``) names the format where `format` does
        not.
    format : str, optional
        ``json`` is the score records; ``leaderboard-json`` is the tables, with averages, ranks and resolution.
    title : str
        Of an HTML page.
    published : bool
        Add the published scores of X-ARES to tables of the protocol ``xares``; an HTML page always has them, and
        ``json`` never.
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
    from featstore.diagnostics.certificate import certified_scores
    from featstore.files import write_whole
    from featstore.report import read_certificates
    from featstore.report.render import FORMAT_OF_SUFFIX, render

    path = Path(out)
    chosen = FORMAT_OF_SUFFIX.get(path.suffix.lower()) if format is None else format
    if chosen is None:
        raise UsageError(
            f"the suffix of {path.name!r} names no format: it is {', '.join(FORMAT_OF_SUFFIX)}, or give format"
        )
    cached = None if store is None else opened(store)
    certified: frozenset[str] = frozenset()
    if isinstance(scores, str | os.PathLike):
        certified = certified_scores(read_certificates(scores)[0])
    text = render(_records(scores), chosen, title=title, published=published, store=cached, certified=certified)
    write_whole(path, text)
    return path


def _records(scores: Iterable[ScoreRecord] | StrPath) -> tuple[ScoreRecord, ...]:
    """The newest score of everything that was scored."""
    from featstore.report import read_scores
    from featstore.report.scores import Scores

    if isinstance(scores, str | os.PathLike):
        return read_scores(Path(scores))
    return Scores(scores).newest()

"""What `probe` and `retrieve` share: every task with every encoder of a store, scored and printed."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featstore.cli.options import emit_json, say
from featstore.errors import FeatstoreError, ResultsError, UsageError
from featstore.formatting import counted
from featstore.shard_patterns import ShardPattern
from featstore.system import cores, inheriting

if TYPE_CHECKING:
    from featstore.records import ScoreRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Scored", "Scorer", "encoders_with", "score_tasks", "tell_scores", "told_out_of_memory"]


_ADVICE = "fewer --jobs, a smaller probe.batch_size in the manifest or another machine or device"
_MOST = 200


def told_out_of_memory(error: BaseException) -> str | None:
    """What to print of an error that says that memory ran out; None of any other error."""
    if not isinstance(error, MemoryError):
        if not isinstance(error, RuntimeError):
            return None
        from featstore.encoders.memory import is_out_of_memory

        if not is_out_of_memory(error):
            return None
    said = " ".join(str(error).split())
    shortened = said if len(said) <= _MOST else f"{said[:_MOST]}..."
    return f"there is not enough memory; {_ADVICE} may do{f' ({shortened})' if said else ''}"


class Scorer(Protocol):
    """Scores one task by one encoder. It is sent to other processes, so it is picklable: a dataclass of options."""

    def __call__(self, store: Store, manifest: Manifest, encoder: str | None) -> ScoreRecord:
        """Score; a FeatstoreError says why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """What is scored at one go. ``task`` is as on the command line; ``name`` as its manifest says.

    ``work`` is how much there is to do, beside other pairs: rows of features, as often as they are learned from.
    """

    task: str
    name: str
    encoder: str | None
    store_url: str
    work: int

    def __str__(self) -> str:
        return f"{self.name} by {self.encoder}" if self.encoder else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a pair has no score; an error itself may not survive the way between processes."""

    pair: _Pair
    message: str
    exit_code: int
    trace: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What came of all pairs, in their order.

    ``written`` says whether scores are on disk as well, ``unwritten`` which of them are not, and why.
    """

    scores: tuple[ScoreRecord, ...]
    failures: tuple[_Failure, ...]
    written: bool
    unwritten: tuple[str, ...]

    def whole(self) -> tuple[ScoreRecord, ...]:
        """The scores; a FeatstoreError tells the failures, where there are any."""
        if self.failures:
            _raise(self.failures, n_scored=len(self.scores), written=self.written and not self.unwritten)
        if self.unwritten:
            raise ResultsError(
                f"{counted(len(self.unwritten), 'score')} could not be written, the first of {self.unwritten[0]}"
            )
        return self.scores


def score_tasks(
    tasks: Sequence[str],
    *,
    store_url: str,
    encoders: Sequence[str],
    score: Scorer,
    results_dir: Path | None,
    jobs: int = 1,
) -> Scored:
    """Score every task with every encoder asked for, in their order; each score is written as soon as it is known.

    Raises
    ------
    FeatstoreError
        Nothing can be scored. What one pair fails by is part of the outcome.
    """
    from featstore.cli.progress import scoring
    from featstore.report import write_score
    from featstore.store import open_store
    from featstore.tasks import find_task

    by_task = _distinct_tasks({task: find_task(task) for task in tasks})
    store = open_store(store_url)
    pairs = _pairs(store, by_task, encoders, store_url=store_url, jobs=jobs)
    if results_dir is not None:
        results_dir.mkdir(parents=True, exist_ok=True)  # or it is told now that it cannot be

    def here(pair: _Pair) -> ScoreRecord | _Failure:
        return _attempt(pair, lambda: score(store, by_task[pair.task], pair.encoder))

    found: dict[int, ScoreRecord | _Failure] = {}
    unwritten: list[str] = []
    with (
        scoring(len(pairs)) as tell,
        _outcomes(pairs, score=score, here=here, jobs=min(jobs, len(pairs))) as outcomes,
    ):
        for number, outcome in outcomes:
            found[number] = outcome
            tell(str(pairs[number]))
            if results_dir is not None and not isinstance(outcome, _Failure):
                try:
                    write_score(outcome, results_dir)
                except OSError as error:  # a full disk: the score is printed, and others are made
                    unwritten.append(f"{pairs[number]} ({(error.strerror or str(error)).lower()})")
    outcomes_in_order = [found[number] for number in sorted(found)]
    scores = tuple(each for each in outcomes_in_order if not isinstance(each, _Failure))
    return Scored(
        scores=scores,
        failures=tuple(each for each in outcomes_in_order if isinstance(each, _Failure)),
        written=results_dir is not None,
        unwritten=tuple(unwritten),
    )


def _pairs(
    store: Store, by_task: Mapping[str, Manifest], encoders: Sequence[str], *, store_url: str, jobs: int
) -> list[_Pair]:
    """Every task with every encoder that was asked for, or that has it; with none, so that scoring says why."""
    asked = _distinct_encoders(store, encoders)
    return [
        _Pair(
            task=task,
            name=manifest.name,
            encoder=encoder,
            store_url=store_url,
            work=_work(store, manifest) if jobs > 1 else 0,
        )
        for task, manifest in by_task.items()
        for encoder in asked or encoders_with(store, manifest) or [None]
    ]


def _distinct_tasks(by_task: Mapping[str, Manifest]) -> dict[str, Manifest]:
    """Tasks as they were asked for, each once; a score is known by the name of its task, so two of one name cannot be.

    Raises
    ------
    UsageError
        Two different tasks have one name.
    """
    found: dict[str, Manifest] = {}
    by_name: dict[str, str] = {}
    for task, manifest in by_task.items():
        other = by_name.setdefault(manifest.name, task)
        if other == task:
            found[task] = manifest
        elif by_task[other].sha256 != manifest.sha256:
            raise UsageError(f"{other} and {task} are different tasks, and both are called {manifest.name}: rename one")
    return found


def _distinct_encoders(store: Store, encoders: Sequence[str]) -> list[str]:
    """Encoders as they were asked for, each once, by whatever names: `logmel` may be `logmel@3f9c2a71`."""
    found: dict[str, str] = {}
    for name in encoders:
        try:
            place = store.resolve_encoder(name).group_name
        except FeatstoreError:  # told when it is scored
            place = name
        found.setdefault(place, name)
    return list(found.values())


def encoders_with(store: Store, manifest: Manifest) -> list[str | None]:
    """Group names of the encoders that have shards of every split of a task."""
    patterns = [ShardPattern(pattern) for pattern in manifest.patterns.values()]
    held: dict[str, set[str]] = {}
    for feature_set in store.feature_sets(dataset=manifest.feature_dataset):
        names = {segment.member.shard.name for segment in feature_set.segments}
        held.setdefault(feature_set.recipe.group_name, set()).update(names)
    return [
        encoder
        for encoder, names in sorted(held.items())
        if all(any(map(pattern.matches, names)) for pattern in patterns)
    ]


def _work(store: Store, manifest: Manifest) -> int:
    rows = {
        each.split: sum(of.member.frames for of in each.segments) if manifest.wants_frames else len(each)
        for each in store.feature_sets(dataset=manifest.feature_dataset)
    }
    return sum(rows.values()) * manifest.probe.epochs


# --- one pair after the other, or several at a time -------------------------------------------------------------------

_Outcomes = Iterator[tuple[int, "ScoreRecord | _Failure"]]


@contextmanager
def _outcomes(
    pairs: Sequence[_Pair], *, score: Scorer, here: Callable[[_Pair], ScoreRecord | _Failure], jobs: int
) -> Iterator[_Outcomes]:
    """Outcomes with the numbers of their pairs, as they come."""
    if jobs <= 1:
        yield ((number, here(pair)) for number, pair in enumerate(pairs))
        return
    # Started afresh, for a fork would inherit the threads of torch and of BLAS in whatever state they are.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    with inheriting(threads=max(1, cores() // jobs)):
        # the longest first: begun last, one would keep a single process busy when all others are done
        longest_first = sorted(enumerate(pairs), key=lambda numbered: -numbered[1].work)
        futures = {pool.submit(_score_there, pair, score): number for number, pair in longest_first}
    try:
        yield ((futures[future], _outcome_of(future, pairs[futures[future]])) for future in as_completed(futures))
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _outcome_of(future: Future[ScoreRecord | _Failure], pair: _Pair) -> ScoreRecord | _Failure:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "its process was ended from outside, perhaps for want of memory: fewer --jobs take less"
        return _Failure(pair=pair, message=message, exit_code=1, trace="")


def _score_there(pair: _Pair, score: Scorer) -> ScoreRecord | _Failure:
    """Score a pair in a process that knows nothing yet."""

    def attempt() -> ScoreRecord:
        from featstore.store import open_store
        from featstore.tasks import find_task

        return score(open_store(pair.store_url), find_task(pair.task), pair.encoder)

    return _attempt(pair, attempt)


def _attempt(pair: _Pair, score: Callable[[], ScoreRecord]) -> ScoreRecord | _Failure:
    try:
        return score()
    except (FeatstoreError, OSError, MemoryError, RuntimeError) as error:
        out_of_memory = told_out_of_memory(error)
        if isinstance(error, RuntimeError) and out_of_memory is None:
            raise
        message = out_of_memory or str(error) or type(error).__name__
        code = error.exit_code if isinstance(error, FeatstoreError) else 1
        return _Failure(pair=pair, message=message, exit_code=code, trace=traceback.format_exc())


def _raise(failures: Sequence[_Failure], *, n_scored: int, written: bool) -> None:
    """Raise one error for all failures, whose names and reasons are told before."""
    codes = {failure.exit_code for failure in failures}
    if len(failures) == 1 and not n_scored:
        message = failures[0].message
    else:
        for failure in failures:
            say(f"featstore: {failure.pair}: {' '.join(failure.message.split())}", err=True)
        done = "the other is done" if n_scored == 1 else f"the other {n_scored} are done"
        others = f"; {done}{' and written' if written else ''}" if n_scored else ""
        message = f"{len(failures)} of {len(failures) + n_scored} scores failed{others}"
    error = FeatstoreError(message)
    error.exit_code = codes.pop() if len(codes) == 1 else 1
    for failure in failures:
        error.add_note(f"{failure.pair}:\n{failure.trace}")
    raise error


# --- printing ---------------------------------------------------------------------------------------------------------


def tell_scores(scored: Scored, *, as_json: bool) -> None:
    """Print what was scored, and raise what failed.

    Raises
    ------
    FeatstoreError
        Some pair has no score: those of the others are printed before.
    """
    if scored.scores and as_json:
        emit_json(scored.scores)
    elif scored.scores:
        _tell(scored.scores)
    scored.whole()


def _tell(scores: Sequence[ScoreRecord]) -> None:
    """Print leaderboards, what was measured beside them, and where the time went."""
    from featstore.cli.tables import leaderboard_tables, show
    from featstore.report import build

    show(leaderboard_tables(build(scores)))
    for line in _beside(scores):
        say(f"  {line}")
    stages: dict[str, float] = {}
    for record in scores:
        for stage, seconds in record.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    say("  " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))


def _beside(scores: Sequence[ScoreRecord]) -> Iterator[str]:
    """What a score's details add to its value, a line each."""
    for record in scores:
        whose = f"{record.task} by {record.encoder}"
        measured = record.details.get("index_recall")
        if measured:
            index, recall, k = record.settings["index"], measured["recall"], measured["k"]
            of = f", measured on {measured['of']}" if "of" in measured else ""
            yield f"{whose}: index {index} has recall@{k} {recall:.3f} against exact search{of}"
        shared = record.details.get("n_shared_captions")
        n_shared = sum(shared.values()) if isinstance(shared, dict) else shared
        if n_shared:
            yield f"{whose}: {n_shared} test captions belong to several clips, of which at best one can be found first"
        curve = record.details.get("k_curve", {})
        if len(curve) > 1:
            yield f"{whose}: " + ", ".join(f"k={k} {value:.3f}" for k, value in curve.items())
        for shots, point in record.details.get("shots", {}).items():
            yield (
                f"{whose}: {shots} {'shot' if shots == '1' else 'shots'} {point['mean']:.3f} "
                f"({point['low']:.3f} to {point['high']:.3f} over {point['support_sets']} support sets)"
            )

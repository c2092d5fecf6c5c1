"""Runs tasks x encoders: selects the pairs to score, runs them in one or more processes, and records failures.

`plan_pairs` selects the pairs, `run_pairs` scores them. The scoring function is a value, so that the command line, the
demo and `featstore.api` run both tracks through this module. A pair that fails never stops the others.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from featstore.errors import FeatstoreError, UsageError
from featstore.shard_patterns import ShardPattern
from featstore.system import cores, inheriting

if TYPE_CHECKING:
    from featstore.records import ScoreRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = [
    "Pair",
    "ScoreFailure",
    "Scorer",
    "attempt",
    "encoders_with",
    "out_of_memory_message",
    "plan_pairs",
    "run_pairs",
]

Scorer = Callable[..., "ScoreRecord | Sequence[ScoreRecord | ScoreFailure]"]
"""Scores one task with one encoder, from a store, a manifest and ``encoder=``; several scores may each have failed.
With several processes it is pickled: use a module-level function, or a `functools.partial` of one."""


_Scored = TypeVar("_Scored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A task and an encoder; the encoder is None if the store has none with the task's shards."""

    manifest: Manifest
    encoder: str | None

    def __str__(self) -> str:
        return f"{self.manifest.name} by {self.encoder}" if self.encoder else self.manifest.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFailure:
    """The reason why a pair has no score, or lacks one of its measures.

    Attributes
    ----------
    task, encoder : str
        Name of the task, and the encoder as requested; empty if no encoder has the task's shards.
    error : str
        Class name of the error.
    message : str
        One line.
    exit_code : int
        Exit code of a command in which nothing else fails.
    trace : str
        The traceback as text, since the error itself may not be picklable.
    measure : str
        The measure of Track B that failed, as in the settings of a score; empty for ``knn`` and for the complete pair.
    """

    task: str
    encoder: str
    error: str
    message: str
    exit_code: int = 1
    trace: str = ""
    measure: str = ""

    def __str__(self) -> str:
        name = f"{self.task} by {self.encoder}" if self.encoder else self.task
        name += f" ({self.measure})" if self.measure else ""
        return f"{name}: {' '.join(self.message.split())}"

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)


def plan_pairs(
    store: Store,
    tasks: Mapping[str, Manifest],
    encoders: Sequence[str],
    *,
    found_by: Callable[[Store, Manifest], Sequence[str]] | None = None,
) -> tuple[Pair, ...]:
    """Pair every task with each of `encoders`; by default, with each encoder that has all of the task's shards.

    If no encoder has a task's shards, the task is one pair without an encoder: scoring it reports what to extract.

    Parameters
    ----------
    store : Store
    tasks : mapping
        Name or path, for messages, to manifest. A task that is listed twice is scored once.
    encoders : sequence of str
        ``"logmel"`` or ``"logmel@3f9c2a71"``. An encoder that is listed under two names is scored once.
    found_by : callable, optional
        Finds the encoders of a task by default; `encoders_with` if it is not given.

    Raises
    ------
    UsageError
        Two different tasks have the same name; scores are identified by the name of their task.
    """
    distinct: dict[str, tuple[str, Manifest]] = {}
    for label, manifest in tasks.items():
        other, known = distinct.setdefault(manifest.name, (label, manifest))
        if known.sha256 != manifest.sha256:
            raise UsageError(
                f"{other} and {label} are different tasks, and both are called {manifest.name}: rename one"
            )
    chosen = _distinct_encoders(store, encoders)
    nothing: list[str | None] = [None]
    return tuple(
        Pair(manifest=manifest, encoder=encoder)
        for _, manifest in distinct.values()
        for encoder in chosen or (found_by or encoders_with)(store, manifest) or nothing
    )


def _distinct_encoders(store: Store, encoders: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for name in encoders:
        try:
            group = store.resolve_encoder(name).group_name
        except FeatstoreError:  # reported when the pair is scored
            group = name
        found.setdefault(group, name)
    return list(found.values())


def encoders_with(store: Store, manifest: Manifest) -> list[str]:
    """Return the group names of the encoders that have shards of every split of a task."""
    patterns = [ShardPattern(pattern) for pattern in manifest.patterns.values()]
    shards: dict[str, set[str]] = {}
    for feature_set in store.feature_sets(dataset=manifest.feature_dataset):
        names = {segment.member.shard.name for segment in feature_set.segments}
        shards.setdefault(feature_set.recipe.group_name, set()).update(names)
    return [
        encoder
        for encoder, names in sorted(shards.items())
        if all(any(map(pattern.matches, names)) for pattern in patterns)
    ]


def run_pairs(
    store: Store, pairs: Sequence[Pair], score: Scorer, *, jobs: int = 1
) -> Generator[tuple[int, tuple[ScoreRecord | ScoreFailure, ...]], None, None]:
    """Score pairs sequentially or in `jobs` processes; yield the index and outcomes of each as it completes.

    Close the iterator (`contextlib.closing`) to terminate the processes early. Processes are spawned: a script that
    uses several must have its code under ``if __name__ == "__main__"``.
    """
    jobs = min(jobs, len(pairs))
    if jobs <= 1:
        for number, pair in enumerate(pairs):
            yield number, _attempt(store, pair, score)
        return
    # Spawned, not forked: a fork inherits the threads of torch and BLAS in an undefined state.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        with inheriting(threads=max(1, cores() // jobs)):
            # Longest first: a long pair that starts last would run alone when all others are done.
            longest_first = sorted(range(len(pairs)), key=lambda number: -_work(store, pairs[number].manifest))
            futures = {pool.submit(_attempt, store, pairs[number], score): number for number in longest_first}
        for future in as_completed(futures):
            yield futures[future], _outcome_of(future, pairs[futures[future]])
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _work(store: Store, manifest: Manifest) -> int:
    """Estimate the relative run time of a pair: rows of features times the epochs of the probe."""
    rows = {
        each.split: sum(of.member.frames for of in each.segments) if manifest.wants_frames else len(each)
        for each in store.feature_sets(dataset=manifest.feature_dataset)
    }
    return sum(rows.values()) * manifest.probe.epochs


def _outcome_of(
    future: Future[tuple[ScoreRecord | ScoreFailure, ...]], pair: Pair
) -> tuple[ScoreRecord | ScoreFailure, ...]:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "its process was killed, perhaps because memory ran out: fewer --jobs need less"
        return (
            ScoreFailure(
                task=pair.manifest.name, encoder=pair.encoder or "", error="BrokenProcessPool", message=message
            ),
        )


def _attempt(store: Store, pair: Pair, score: Scorer) -> tuple[ScoreRecord | ScoreFailure, ...]:
    outcome = attempt(
        lambda: score(store, pair.manifest, encoder=pair.encoder), task=pair.manifest.name, encoder=pair.encoder
    )
    return tuple(outcome) if isinstance(outcome, Sequence) else (outcome,)


def attempt(
    score: Callable[[], _Scored], *, task: str, encoder: str | None, measure: str = ""
) -> _Scored | ScoreFailure:
    """Return the score, or the failure that an error is recorded as; an unknown error is raised."""
    try:
        return score()
    except (FeatstoreError, OSError, MemoryError, RuntimeError) as error:
        out_of_memory = out_of_memory_message(error)
        if isinstance(error, RuntimeError) and out_of_memory is None:
            raise
        return ScoreFailure(
            task=task,
            encoder=encoder or "",
            error=type(error).__name__,
            message=out_of_memory or str(error) or type(error).__name__,
            exit_code=error.exit_code if isinstance(error, FeatstoreError) else 1,
            trace=traceback.format_exc(),
            measure=measure,
        )


_LESS_MEMORY = "fewer --jobs, a smaller probe.batch_size in the manifest or another machine or device"
_MOST_LETTERS = 200


def out_of_memory_message(error: BaseException) -> str | None:
    """Return one line about an error that reports exhausted memory, or None for any other error."""
    if not isinstance(error, MemoryError):
        if not isinstance(error, RuntimeError):
            return None
        from featstore.encoders.memory import is_out_of_memory

        if not is_out_of_memory(error):
            return None
    text = " ".join(str(error).split())
    shortened = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
    return f"there is not enough memory; {_LESS_MEMORY} may do{f' ({shortened})' if text else ''}"

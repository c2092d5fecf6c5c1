"""The runner of tasks x encoders: which pairs are scored, in how many processes, and what becomes of those that fail.

`plan_pairs` decides what is scored, `run_pairs` scores it. The scoring function is a value, so that the command line,
the demo and `featstore.api` run both tracks through this one module. A pair that fails never stops the others.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from featstore.errors import FeatstoreError, UsageError
from featstore.shard_patterns import ShardPattern
from featstore.system import cores, inheriting

if TYPE_CHECKING:
    from featstore.records import ScoreRecord
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Pair", "ScoreFailure", "Scorer", "encoders_with", "out_of_memory_message", "plan_pairs", "run_pairs"]

Scorer = Callable[["Store", "Manifest", str | None], "ScoreRecord"]
"""Scores one task by one encoder of a store. With several processes it is pickled: a function or a `functools.partial`
of a module-level function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A task and the encoder that scores it; no encoder where the store has none that fits."""

    manifest: Manifest
    encoder: str | None

    def __str__(self) -> str:
        return f"{self.manifest.name} by {self.encoder}" if self.encoder else self.manifest.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFailure:
    """Why a pair has no score.

    Attributes
    ----------
    task, encoder : str
        Name of the task, and the encoder as it was asked for; empty where no encoder fits the task.
    error : str
        Class of the error.
    message : str
        One line.
    exit_code : int
        Of a command in which nothing else fails.
    trace : str
        The traceback; the error itself may not survive its way between processes.
    """

    task: str
    encoder: str
    error: str
    message: str
    exit_code: int = 1
    trace: str = ""

    def __str__(self) -> str:
        who = f"{self.task} by {self.encoder}" if self.encoder else self.task
        return f"{who}: {' '.join(self.message.split())}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def plan_pairs(store: Store, tasks: Mapping[str, Manifest], encoders: Sequence[str]) -> tuple[Pair, ...]:
    """Pair every task with every encoder: those of `encoders`, or else those that have all of the task's shards.

    A task that no encoder of the store has is one pair without an encoder: scoring it reports what to extract.

    Parameters
    ----------
    store : Store
    tasks : mapping
        Name or path, for messages -> manifest. One task that is listed twice is scored once.
    encoders : sequence of str
        ``"logmel"`` or ``"logmel@3f9c2a71"``. One encoder under two names is scored once.

    Raises
    ------
    UsageError
        Two different tasks have one name: a score is known by the name of its task.
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
        for encoder in chosen or encoders_with(store, manifest) or nothing
    )


def _distinct_encoders(store: Store, encoders: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for name in encoders:
        try:
            group = store.resolve_encoder(name).group_name
        except FeatstoreError:  # reported when it is scored
            group = name
        found.setdefault(group, name)
    return list(found.values())


def encoders_with(store: Store, manifest: Manifest) -> list[str]:
    """Group names of the encoders that have shards of every split of a task."""
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
) -> Generator[tuple[int, ScoreRecord | ScoreFailure], None, None]:
    """Score pairs, one after the other or in `jobs` processes; yield each one's number and outcome as it is known.

    Close the iterator (`contextlib.closing`) to end its processes early. Processes are spawned: a script that asks for
    several has its code under ``if __name__ == "__main__"``.
    """
    jobs = min(jobs, len(pairs))
    if jobs <= 1:
        for number, pair in enumerate(pairs):
            yield number, _attempt(store, pair, score)
        return
    # Spawned, not forked: a fork inherits the threads of torch and of BLAS in whatever state they are.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        with inheriting(threads=max(1, cores() // jobs)):
            # The longest first: started last, one would keep a single process busy when all others are done.
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
    """Rows of features of a task times how often they are learned from: the time of a pair in proportion to others."""
    rows = {
        each.split: sum(of.member.frames for of in each.segments) if manifest.wants_frames else len(each)
        for each in store.feature_sets(dataset=manifest.feature_dataset)
    }
    return sum(rows.values()) * manifest.probe.epochs


def _outcome_of(future: Future[ScoreRecord | ScoreFailure], pair: Pair) -> ScoreRecord | ScoreFailure:
    try:
        return future.result()
    except BrokenProcessPool:
        message = "its process was ended from outside, perhaps for want of memory: fewer --jobs take less"
        return ScoreFailure(
            task=pair.manifest.name, encoder=pair.encoder or "", error="BrokenProcessPool", message=message
        )


def _attempt(store: Store, pair: Pair, score: Scorer) -> ScoreRecord | ScoreFailure:
    try:
        return score(store, pair.manifest, pair.encoder)
    except (FeatstoreError, OSError, MemoryError, RuntimeError) as error:
        out_of_memory = out_of_memory_message(error)
        if isinstance(error, RuntimeError) and out_of_memory is None:
            raise
        return ScoreFailure(
            task=pair.manifest.name,
            encoder=pair.encoder or "",
            error=type(error).__name__,
            message=out_of_memory or str(error) or type(error).__name__,
            exit_code=error.exit_code if isinstance(error, FeatstoreError) else 1,
            trace=traceback.format_exc(),
        )


_LESS_MEMORY = "fewer --jobs, a smaller probe.batch_size in the manifest or another machine or device"
_MOST_LETTERS = 200


def out_of_memory_message(error: BaseException) -> str | None:
    """One line about an error that reports exhausted memory; None of any other error."""
    if not isinstance(error, MemoryError):
        if not isinstance(error, RuntimeError):
            return None
        from featstore.encoders.memory import is_out_of_memory

        if not is_out_of_memory(error):
            return None
    text = " ".join(str(error).split())
    shortened = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."
    return f"there is not enough memory; {_LESS_MEMORY} may do{f' ({shortened})' if text else ''}"

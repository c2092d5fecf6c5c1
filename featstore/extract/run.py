"""Extracts several planned tasks one after the other: one that fails does not stop those after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from featstore.errors import DamagedPart, DataError, FeatstoreError
from featstore.extract.results import Progress
from featstore.extract.task import TaskPlan
from featstore.records import ExtractFailure, ExtractRecord

__all__ = ["TaskExtraction", "extract_plans"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExtraction:
    """The result of one task.

    Attributes
    ----------
    records : tuple of ExtractRecord
        Of the feature sets that are up to date now.
    failure : ExtractFailure or None
        Why there are no more.
    fatal : exception or None
        The error, where it is one of the encoder or the store and no further task was tried.
    """

    records: tuple[ExtractRecord, ...] = ()
    failure: ExtractFailure | None = None
    fatal: FeatstoreError | OSError | MemoryError | None = None


def extract_plans(
    plans: Sequence[TaskPlan | ExtractFailure], *, watch: Callable[[], AbstractContextManager[Progress]]
) -> Iterator[TaskExtraction]:
    """Extract the plans of `featstore.extract.plan_tasks`, and yield the result of each task as it is known.

    A task whose data are missing or damaged fails alone. An encoder that breaks its contract, or a store that cannot be
    written, fails every task after it as well: these are not run.

    Parameters
    ----------
    watch : callable
        Opens the progress of one task.
    """
    fatal = False
    for plan in plans:
        if isinstance(plan, ExtractFailure):
            yield TaskExtraction(failure=plan)
        elif fatal:
            not_run = ExtractFailure(task=plan.manifest.name, error="", message="not run: the run ended before it")
            yield TaskExtraction(failure=not_run)
        else:
            found = _extract(plan, watch)
            fatal = found.fatal is not None
            yield found


def _extract(plan: TaskPlan, watch: Callable[[], AbstractContextManager[Progress]]) -> TaskExtraction:
    records: list[ExtractRecord] = []
    try:
        with watch() as progress:
            for of_split in plan.extract(progress):
                records += of_split
    except (FeatstoreError, OSError, MemoryError) as error:
        failure = ExtractFailure(
            task=plan.manifest.name,
            error=type(error).__name__,
            message=" ".join(str(error).split()) or type(error).__name__,
            exit_code=error.exit_code if isinstance(error, FeatstoreError) else 1,
        )
        fatal = None if isinstance(error, DataError | DamagedPart) else error
        return TaskExtraction(records=tuple(records), failure=failure, fatal=fatal)
    return TaskExtraction(records=tuple(records))

"""Extracts several planned tasks in sequence; the failure of one task does not stop the others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from featstore.errors import DamagedPart, DataError, FeatstoreError
from featstore.extract.results import Progress
from featstore.extract.task import TaskPlan
from featstore.formatting import one_line
from featstore.records import ExtractFailure, ExtractRecord

__all__ = ["TaskExtraction", "extract_plans"]

MAX_MESSAGE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskExtraction:
    """Result of one task.

    Attributes
    ----------
    number : int
        Index of the task in the call.
    records : tuple of ExtractRecord
        One per up-to-date feature set.
    failure : ExtractFailure or None
        The reason why records are missing.
    fatal : exception or None
        The error, if it concerns the encoder or the store and stopped the run.
    """

    number: int
    records: tuple[ExtractRecord, ...] = ()
    failure: ExtractFailure | None = None
    fatal: FeatstoreError | OSError | MemoryError | None = None


def extract_plans(
    plans: Sequence[TaskPlan | ExtractFailure], *, watch: Callable[[], AbstractContextManager[Progress]]
) -> Generator[TaskExtraction]:
    """Extract the plans of `featstore.extract.plan_tasks`, and yield the result of each task when it is known.

    Tasks whose shards cannot be found come first, then the others in order. A task with missing or damaged data fails
    alone. If the encoder violates its contract or the store cannot be written, later tasks are not run.

    Parameters
    ----------
    watch : callable
        Opens the progress of one task.
    """
    ready = [(number, plan) for number, plan in enumerate(plans) if not isinstance(plan, ExtractFailure)]
    for number, plan in enumerate(plans):
        if isinstance(plan, ExtractFailure):
            yield TaskExtraction(number=number, failure=plan)
    fatal = False
    for number, plan in ready:
        if fatal:
            not_run = ExtractFailure(task=plan.manifest.name, error="", message="not run: the run ended before it")
            yield TaskExtraction(number=number, failure=not_run)
        else:
            found = _extract(number, plan, watch)
            fatal = found.fatal is not None
            yield found


def _extract(number: int, plan: TaskPlan, watch: Callable[[], AbstractContextManager[Progress]]) -> TaskExtraction:
    records: list[ExtractRecord] = []
    try:
        with watch() as progress:
            for of_split in plan.extract(progress):
                records += of_split
    except (FeatstoreError, OSError, MemoryError) as error:
        failure = ExtractFailure(
            task=plan.manifest.name,
            error=type(error).__name__,
            message=one_line(error, most=MAX_MESSAGE),
            exit_code=error.exit_code if isinstance(error, FeatstoreError) else 1,
        )
        fatal = None if isinstance(error, DataError | DamagedPart) else error
        return TaskExtraction(number=number, records=tuple(records), failure=failure, fatal=fatal)
    return TaskExtraction(number=number, records=tuple(records))

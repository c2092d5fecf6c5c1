"""Arguments that the public functions share: tasks, encoders, stores and lists of names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, cast

from featstore.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from featstore.encoders.encoder import Encoder
    from featstore.store import Store
    from featstore.tasks import Manifest

    Task = str | os.PathLike[str] | Manifest
    Tasks = Task | Sequence[Task]
    AnyEncoder = str | os.PathLike[str] | nn.Module | Encoder | Callable[..., nn.Module]

__all__ = ["StrPath", "manifests_of", "names_of", "one_of", "opened", "seeds_of", "url_of"]

StrPath = str | os.PathLike[str]


def manifests_of(tasks: Tasks) -> dict[str, Manifest]:
    """Manifests by the name or path that the caller gave for each."""
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


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise UsageError if an argument is not one of its values."""
    if value not in allowed:
        raise UsageError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")


def seeds_of(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Seeds, which may be given as their number."""
    if seeds is None:
        return None
    return tuple(range(int(seeds))) if isinstance(seeds, Integral) else tuple(map(int, cast("Sequence[int]", seeds)))


def names_of(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name, several or none, as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names or ())


def opened(store: Store | StrPath) -> Store:
    """The store, opened if it is a path."""
    from featstore.store import open_store

    return open_store(os.fspath(store)) if isinstance(store, str | os.PathLike) else store


def url_of(store: Store | StrPath) -> str:
    """Folder or URL of a store."""
    return os.fspath(store) if isinstance(store, str | os.PathLike) else store.url

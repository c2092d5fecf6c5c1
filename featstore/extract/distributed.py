"""The share of shards and the GPU of this process, from the variables of torchrun or SLURM. Pure.

Shards are assigned by their position in the complete list, independent of the content of the store, so all ranks agree.
If a rank fails, run it again with the same number, or run all shards without a rank: committed shards are not encoded
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featstore.errors import UsageError

__all__ = ["Share", "local_rank", "parse_share", "share_from_environment"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Share ``rank`` (from 0) of ``world_size``; ``source`` describes where the numbers come from."""

    rank: int = 0
    world_size: int = 1
    source: str = ""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"a rank must be from 0 to world size - 1: got rank {self.rank} of {self.world_size}"
                f"{f' from {self.source}' if self.source else ''}"
            )

    @property
    def is_complete(self) -> bool:
        """Whether the share is the complete list."""
        return self.world_size == 1

    def of(self, things: Sequence[_T]) -> tuple[_T, ...]:
        """Return this share of a list that is the same for every rank.

        >>> Share(rank=1, world_size=3).of("abcdefg")
        ('b', 'e')
        """
        return tuple(things[self.rank :: self.world_size])

    def __str__(self) -> str:
        return f"share {self.rank + 1} of {self.world_size}" + (f" ({self.source})" if self.source else "")


def share_from_environment(environment: Mapping[str, str]) -> Share:
    """The share that the environment defines.

    ``RANK`` and ``WORLD_SIZE`` (torchrun) take precedence over ``SLURM_PROCID`` and ``SLURM_NTASKS``. Elements of a
    SLURM array are divided first: element k of n with m ranks each has shares ``k * m`` to ``k * m + m - 1`` of ``n *
    m``. An array of one element, such as one that is run again, takes all shards.

    Raises
    ------
    UsageError
        One variable of a pair is missing, or the values are not consistent numbers.
    """
    within = _pair(environment, "RANK", "WORLD_SIZE") or _pair(environment, "SLURM_PROCID", "SLURM_NTASKS") or Share()
    array = _array(environment)
    if array.is_complete:
        return within if not within.is_complete else Share()
    source = f"{array.source}, {within.source}" if not within.is_complete else array.source
    size = within.world_size
    return Share(rank=array.rank * size + within.rank, world_size=array.world_size * size, source=source)


def parse_share(text: str) -> Share:
    """Parse ``--share``, which counts from 1.

    >>> parse_share("2/8")
    Share(rank=1, world_size=8, source='--share 2/8')
    """
    first, slash, second = text.partition("/")
    numbers = [part.isascii() and part.isdigit() and int(part) for part in (first, second)]
    if not slash or not all(numbers) or numbers[0] > numbers[1]:
        raise UsageError(f"--share must be K/N with K from 1 to N, such as 2/8: got {text!r}")
    return Share(rank=numbers[0] - 1, world_size=numbers[1], source=f"--share {text}")


def local_rank(environment: Mapping[str, str]) -> int | None:
    """Rank of this process on its machine: ``LOCAL_RANK``, else ``SLURM_LOCALID``; None if neither is set."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if environment.get(name):
            return _integer(environment, name)
    return None


def _pair(environment: Mapping[str, str], rank: str, size: str) -> Share | None:
    given = [name for name in (rank, size) if environment.get(name)]
    if len(given) == 1 and rank == "RANK":
        missing = size if given == [rank] else rank
        raise UsageError(f"{given[0]} is set and {missing} is not: set both, or neither")
    if len(given) < 2:
        return None  # SLURM sets one of the pair in a plain batch script too
    source = f"{rank} {environment[rank]} of {size} {environment[size]}"
    return Share(rank=_integer(environment, rank), world_size=_integer(environment, size), source=source)


def _array(environment: Mapping[str, str]) -> Share:
    if not environment.get("SLURM_ARRAY_TASK_ID") or not environment.get("SLURM_ARRAY_TASK_COUNT"):
        return Share()
    number, count = (_integer(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    if count == 1:
        return Share()
    first = _integer(environment, "SLURM_ARRAY_TASK_MIN") if environment.get("SLURM_ARRAY_TASK_MIN") else 0
    step = _integer(environment, "SLURM_ARRAY_TASK_STEP") if environment.get("SLURM_ARRAY_TASK_STEP") else 1
    source = f"SLURM_ARRAY_TASK_ID {number}"
    position, left = divmod(number - first, max(1, step))
    if left or not 0 <= position < count:
        raise UsageError(
            f"the elements of a SLURM array must be consecutive: element {number} is not among the {count} from "
            f"{first}; write --array=0-{count - 1}"
        )
    return Share(rank=position, world_size=count, source=f"{source}, {count} elements")


def _integer(environment: Mapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} must be an integer: got {text!r}")
    return int(text)

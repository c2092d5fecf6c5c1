"""Which share of the shards is this process's, and which GPU, as torchrun or SLURM say. Pure.

Shards are dealt by their position in the full list, whatever is in the store by then: every rank deals alike, no matter
what others have done meanwhile. A rank that died is run again with the same number, or all of its shards by a run
without one: what is committed is not encoded again.
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
    """Share ``rank`` (from 0) of ``world_size``; ``said_by`` names what said so."""

    rank: int = 0
    world_size: int = 1
    said_by: str = ""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"a rank is from 0 to one less than the world size: got rank {self.rank} of {self.world_size}"
                f"{f' by {self.said_by}' if self.said_by else ''}"
            )

    @property
    def is_whole(self) -> bool:
        """Whether there is nobody to share with."""
        return self.world_size == 1

    def of(self, things: Sequence[_T]) -> tuple[_T, ...]:
        """Take this share of a list that every rank has alike.

        >>> Share(rank=1, world_size=3).of("abcdefg")
        ('b', 'e')
        """
        return tuple(things[self.rank :: self.world_size])

    def __str__(self) -> str:
        return f"share {self.rank + 1} of {self.world_size}" + (f" ({self.said_by})" if self.said_by else "")


def share_from_environment(environment: Mapping[str, str]) -> Share:
    """The share that the environment asks for.

    ``RANK`` and ``WORLD_SIZE`` (torchrun) come first, else ``SLURM_PROCID`` and ``SLURM_NTASKS``. The elements of a
    SLURM array are dealt among first: element k of n with m ranks each holds shares ``k * m`` to ``k * m + m - 1`` of
    ``n * m``. An array of one element, such as one that is run again alone, shares with nobody.

    Raises
    ------
    UsageError
        One of a pair is missing, or they are no numbers that go together.
    """
    within = _pair(environment, "RANK", "WORLD_SIZE") or _pair(environment, "SLURM_PROCID", "SLURM_NTASKS") or Share()
    array = _array(environment)
    if array.is_whole:
        return within if not within.is_whole else Share()
    said = f"{array.said_by}, {within.said_by}" if not within.is_whole else array.said_by
    size = within.world_size
    return Share(rank=array.rank * size + within.rank, world_size=array.world_size * size, said_by=said)


def parse_share(text: str) -> Share:
    """Read what ``--share`` says, counted from 1.

    >>> parse_share("2/8")
    Share(rank=1, world_size=8, said_by='--share 2/8')
    """
    first, slash, second = text.partition("/")
    numbers = [part.isascii() and part.isdigit() and int(part) for part in (first, second)]
    if not slash or not all(numbers) or numbers[0] > numbers[1]:
        raise UsageError(f"--share is K/N with K from 1 to N, such as 2/8: got {text!r}")
    return Share(rank=numbers[0] - 1, world_size=numbers[1], said_by=f"--share {text}")


def local_rank(environment: Mapping[str, str]) -> int | None:
    """Number of this process among those of its machine: ``LOCAL_RANK``, else ``SLURM_LOCALID``; None without one."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if environment.get(name):
            return _whole(environment, name)
    return None


def _pair(environment: Mapping[str, str], rank: str, size: str) -> Share | None:
    given = [name for name in (rank, size) if environment.get(name)]
    if len(given) == 1 and rank == "RANK":
        missing = size if given == [rank] else rank
        raise UsageError(f"{given[0]} is set and {missing} is not: set both, or neither")
    if len(given) < 2:
        return None  # SLURM sets one of its pair in a plain batch script too
    said = f"{rank} {environment[rank]} of {size} {environment[size]}"
    return Share(rank=_whole(environment, rank), world_size=_whole(environment, size), said_by=said)


def _array(environment: Mapping[str, str]) -> Share:
    if not environment.get("SLURM_ARRAY_TASK_ID") or not environment.get("SLURM_ARRAY_TASK_COUNT"):
        return Share()
    number, count = (_whole(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "COUNT"))
    if count == 1:
        return Share()
    first = _whole(environment, "SLURM_ARRAY_TASK_MIN") if environment.get("SLURM_ARRAY_TASK_MIN") else 0
    step = _whole(environment, "SLURM_ARRAY_TASK_STEP") if environment.get("SLURM_ARRAY_TASK_STEP") else 1
    said = f"SLURM_ARRAY_TASK_ID {number}"
    position, left = divmod(number - first, max(1, step))
    if left or not 0 <= position < count:
        raise UsageError(
            f"elements of a SLURM array are dealt by their place in an unbroken range: element {number} is none of "
            f"{count} from {first} on; write --array=0-{count - 1}"
        )
    return Share(rank=position, world_size=count, said_by=f"{said}, {count} elements")


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name].strip()
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} must be a whole number: got {text!r}")
    return int(text)

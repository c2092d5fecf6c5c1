"""What a fleet's chief tells its workers, and what they say of it. Everything here is pickled on its way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featstore.extract.job import EncodeJob, EncoderCard, StaleShard
from featstore.extract.results import EncodeSettings, StageTimes, StoredShard

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading
    from featstore.extract.options import ExtractOptions

__all__ = [
    "Advanced",
    "Begin",
    "Describe",
    "Described",
    "Ended",
    "Event",
    "Failed",
    "Gathered",
    "Gone",
    "Message",
    "NoMore",
    "Quit",
    "Settled",
    "Take",
    "Wants",
]


# --- to a worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Describe:
    """Load the encoder, and say what it is under these options; with `canary`, what it returns too."""

    options: ExtractOptions
    canary: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """Encode shards of this job. ``number`` tells one job from another."""

    number: int
    job: EncodeJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Encode this shard: the answer to `Wants`."""

    shard: StaleShard


@dataclass(frozen=True, slots=True)
class NoMore:
    """The job has no more shards: the other answer to `Wants`."""


@dataclass(frozen=True, slots=True)
class Quit:
    """Give up what is not committed, and end."""


Message = Describe | Begin | Take | NoMore | Quit


# --- from a worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The answer to `Describe`."""

    card: EncoderCard
    canary: CanaryReading | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """The worker would have its next shard, of which ``nth`` is the number, from 0 on.

    ``at_once``: it has read the one before to the end. Else it is reading that, and could fetch the next meanwhile from
    where it lies; it says so again when it waits for it.
    """

    number: int
    nth: int
    at_once: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Advanced:
    """So many more clips have been encoded or left out."""

    clips: int
    audio_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """All of a shard was read: it waits for its batches or for its commit, and the worker may read another."""

    number: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A shard has been committed, a part for each output; or it broke, and `broken` says why."""

    number: int
    name: str
    stored: Mapping[int, StoredShard]
    broken: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """All shards of the job that this worker took are settled."""

    number: int
    times: StageTimes
    settings: EncodeSettings | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """What was asked for cannot be done, here or anywhere."""

    error: BaseException


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The worker has died; its fleet says so, and nothing comes from that worker any more."""

    why: str
    advice: str


Event = Described | Wants | Advanced | Gathered | Settled | Ended | Failed | Gone

"""Whether an encoder still returns what it did: its canary is compared before the first shard is encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featstore.errors import EncoderChanged
from featstore.extract.work import EncodeJob
from featstore.records import canonical_json
from featstore.store import note_in_encoder_group, read_encoder_group, read_encoder_groups, recipe_groups

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading, Drift
    from featstore.extract.engines.engine import Engine
    from featstore.store import EncoderGroup

__all__ = ["DriftCheck"]

SIGNALS_VERSION = 1


class DriftCheck:
    """Reads the canary of a run's encoder, once, and holds it against those that the store has.

    It is done before the first shard of any of the run's tasks is encoded, and writes nothing before `note_canaries`.

    Parameters
    ----------
    engine : Engine
        Where the encoder is.
    notes : sequence of str
        Lines about the encoder that go with those about its canary.
    """

    def __init__(self, engine: Engine, *, notes: Sequence[str] = ()) -> None:
        self._engine = engine
        self._notes = tuple(notes)
        self._new: dict[str, Mapping[str, Any]] = {}  # group -> its canary, which is not in the store yet
        self._is_done = False

    def pass_once(self, job: EncodeJob) -> None:
        """Do the check, unless it was done for an earlier job.

        Raises
        ------
        EncoderChanged
            Two runs of the encoder differ, or what it returns differs from what is stored by more than its precision
            explains, and ``allow_drift`` is off.
        """
        if self._is_done:
            return
        reading = self._engine.canary(job.options)
        if reading.unsteady is not None:
            told = _unsteady(job.card.name, reading.unsteady, job.outputs[0].recipe.precision)
            if not job.options.allow_drift:
                raise EncoderChanged(f"{told}; --allow-drift stores them as they come", reading.unsteady.cosine)
            self._notes += (told,)
        else:
            self._compare(job, reading)
        self._is_done = True

    def _compare(self, job: EncodeJob, reading: CanaryReading) -> None:
        stored = [_canary_of(read_encoder_group(job.store_url, output.recipe.group_name)) for output in job.outputs]
        drifted = tuple(_drifted(job, reading, stored))
        if drifted and not job.options.allow_drift:
            told, drift = max(drifted, key=lambda each: each[1].relative)
            raise EncoderChanged(
                f"{told}: nothing was encoded; undo what changed, extract into another store, or let both stand in one "
                "feature set with --allow-drift",
                drift.cosine,
            )
        new = [at for at, canary in enumerate(stored) if canary is None and any(reading.outputs[at].values())]
        self._notes += (*(told for told, _ in drifted), *_twins(job, reading, new))
        self._new = {
            job.outputs[at].recipe.group_name: {
                "version": SIGNALS_VERSION,
                "signals": reading.outputs[at],
                "made_by": dict(reading.made_by),
            }
            for at in new
        }

    def note_canaries(self, store_url: str) -> None:
        """Note the canaries that the store lacks beside the recipes, whose documents are there by now."""
        for group, canary in self._new.items():
            note_in_encoder_group(store_url, group, canary=canary)
        self._new = {}

    def take_notes(self) -> tuple[str, ...]:
        """What is worth telling, for the first record: a drift that was allowed; another encoder that returns the same.

        Later records have none of it.
        """
        notes, self._notes = self._notes, ()
        return notes


def _canary_of(group: EncoderGroup | None) -> Mapping[str, Any] | None:
    """A group's canary, if it is of the signals that this featstore makes."""
    canary = None if group is None else group.canary
    return canary if canary is not None and canary["version"] == SIGNALS_VERSION else None


def _unsteady(name: str, drift: Drift, precision: str) -> str:
    return (
        f"{name} is non-deterministic: a reference signal ({drift.signal}), encoded twice in {precision}, came out "
        f"{drift.relative:.2g} of its length apart (cosine {drift.cosine:.6f}); dropout may be on, or forward draws "
        "random numbers or keeps state"
    )


def _drifted(
    job: EncodeJob, reading: CanaryReading, stored: Sequence[Mapping[str, Any] | None]
) -> Iterator[tuple[str, Drift]]:
    from featstore.encoders.canary import TOLERANCES, furthest_drift

    for output, canary, now in zip(job.outputs, stored, reading.outputs, strict=True):
        precision = output.recipe.precision
        drift = None if canary is None else furthest_drift(canary["signals"], now, precision=precision)
        if canary is not None and drift is not None:
            yield (
                f"{output.recipe.group_name} returns other numbers than when it was stored: for a reference signal "
                f"({drift.signal}) {drift.relative:.2g} of the length of its vector apart, cosine {drift.cosine:.6f}, "
                f"where {precision} explains {TOLERANCES[precision]:g}{_since(canary['made_by'], reading.made_by)}",
                drift,
            )


def _since(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What device and versions are others now, in brackets."""
    one, other = ({"device": made_by.get("device"), **made_by.get("versions", {})} for made_by in (then, now))
    changed = [f"{name} {one[name]} then, {other[name]} now" for name in one if other.get(name, one[name]) != one[name]]
    return f" ({'; '.join(changed)})" if changed else ""


def _twins(job: EncodeJob, reading: CanaryReading, new: Sequence[int]) -> Iterator[str]:
    """Of the outputs that are new to the store, those that another group has bit for bit."""
    if not new:
        return
    own = {output.recipe.group_name for output in job.outputs}
    wanted = {canonical_json(reading.outputs[at]): job.outputs[at].recipe.group_name for at in reversed(new)}
    others = [name for name in recipe_groups(job.store_url) if name not in own]
    for group in read_encoder_groups(job.store_url, others):
        canary = _canary_of(group)
        mine = None if canary is None else wanted.get(canonical_json(canary["signals"]))
        if mine is not None:
            yield f"{mine} returns the same as {group.name} on the reference signals, bit for bit"

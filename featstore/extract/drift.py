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
    from featstore.extract.engines import Engine
    from featstore.store import EncoderGroup

__all__ = ["check_drift"]

SIGNALS_VERSION = 1


def check_drift(engine: Engine, job: EncodeJob) -> tuple[str, ...]:
    """Read the canary of a job's encoder, hold it against those that the store has, and note it where it has none.

    Returns
    -------
    tuple of str
        What is worth telling: a drift that ``allow_drift`` lets pass; another encoder that returns the very same.

    Raises
    ------
    EncoderChanged
        Two runs of the encoder differ, or what it returns differs from what is stored by more than its precision
        explains, and ``allow_drift`` is off.
    """
    reading = engine.canary(job.options)
    if reading.unsteady is not None:
        told = _unsteady(job.card.name, reading.unsteady, job.outputs[0].recipe.precision)
        if not job.options.allow_drift:
            raise EncoderChanged(f"{told}; --allow-drift stores them as they come", reading.unsteady.cosine)
        return (told,)
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
    twins = tuple(_twins(job, reading, new))
    for at in new:
        canary = {"version": SIGNALS_VERSION, "signals": reading.outputs[at], "made_by": dict(reading.made_by)}
        note_in_encoder_group(job.store_url, job.outputs[at].recipe.group_name, canary=canary)
    return (*(told for told, _ in drifted), *twins)


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

"""Whether an encoder still returns what it did: its canary is compared before the first shard is encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featstore.errors import EncoderChanged
from featstore.extract.work import EncodeJob, software_versions
from featstore.records import canonical_json
from featstore.store import note_in_encoder_group, read_encoder_group, read_encoder_groups, recipe_groups

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading, Drift
    from featstore.extract.engines import Engine

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
    groups = [read_encoder_group(job.store_url, output.recipe.group_name) for output in job.outputs]
    stored = [group and _signals(group.canary) for group in groups]
    drifted = tuple(_drifted(job, reading, stored, [group and group.canary for group in groups]))
    if drifted and not job.options.allow_drift:
        told, drift = max(drifted, key=lambda each: each[1].relative)
        raise EncoderChanged(
            f"{told}: nothing was encoded; undo what changed, extract into another store, or let both stand in one "
            "feature set with --allow-drift",
            drift.cosine,
        )
    made_by = {"versions": software_versions()}
    new = [at for at, canary in enumerate(stored) if canary is None and any(reading.outputs[at].values())]
    twins = tuple(_twins(job, reading, new))
    for at in new:
        canary = {"version": SIGNALS_VERSION, "signals": reading.outputs[at], "made_by": made_by}
        note_in_encoder_group(job.store_url, job.outputs[at].recipe.group_name, canary=canary)
    return (*(told for told, _ in drifted), *twins)


def _signals(canary: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Stored readings, if they are of signals that this featstore makes."""
    if canary is None or canary.get("version") != SIGNALS_VERSION:
        return None
    signals = canary.get("signals")
    return signals if isinstance(signals, Mapping) else None


def _unsteady(name: str, drift: Drift, precision: str) -> str:
    return (
        f"{name} is non-deterministic: one reference signal ({drift.signal}), encoded twice, came out {drift.relative:.2g} "
        f"of its length apart (cosine {drift.cosine:.6f}) in {precision}; dropout may be on, or forward draws random "
        "numbers or keeps state"
    )


def _drifted(
    job: EncodeJob,
    reading: CanaryReading,
    stored: Sequence[Mapping[str, Any] | None],
    canaries: Sequence[Mapping[str, Any] | None],
) -> Iterator[tuple[str, Drift]]:
    from featstore.encoders.canary import TOLERANCES, furthest_drift

    for output, then, canary, now in zip(job.outputs, stored, canaries, reading.outputs, strict=True):
        drift = then and furthest_drift(then, now, precision=output.recipe.precision)
        if drift:
            yield (
                f"{output.recipe.group_name} returns other numbers than when it was stored: {drift.relative:.2g} of the "
                f"length of its vector of a reference signal ({drift.signal}), cosine {drift.cosine:.6f}, where "
                f"{output.recipe.precision} explains {TOLERANCES[output.recipe.precision]:g}"
                f"{_versions_since(canary)}",
                drift,
            )


def _versions_since(canary: Mapping[str, Any] | None) -> str:
    """Versions that are others now, in brackets."""
    then, now = (canary or {}).get("made_by", {}).get("versions", {}), software_versions()
    changed = [f"{name} {then[name]} then, {now[name]} now" for name in then if now.get(name, then[name]) != then[name]]
    return f" ({'; '.join(changed)})" if changed else ""


def _twins(job: EncodeJob, reading: CanaryReading, new: Sequence[int]) -> Iterator[str]:
    """Of the outputs that are new to the store, those that another group has bit for bit."""
    if not new:
        return
    own = {output.recipe.group_name for output in job.outputs}
    wanted = {canonical_json(reading.outputs[at]): job.outputs[at].recipe.group_name for at in reversed(new)}
    others = [name for name in recipe_groups(job.store_url) if name not in own]
    for group in read_encoder_groups(job.store_url, others):
        signals = _signals(group.canary)
        mine = None if signals is None else wanted.get(canonical_json(signals))
        if mine is not None:
            yield f"{mine} returns the same as {group.name} on the reference signals, bit for bit"

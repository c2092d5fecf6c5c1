"""The group of a store that an encoder belongs to, and whether its output has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featstore.errors import EncoderChanged
from featstore.extract.job import EncodeJob
from featstore.records import Recipe, canonical_json
from featstore.store import note_in_encoder_group, read_encoder_group, read_encoder_groups, recipe_groups

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading, Drift
    from featstore.extract.engine import Engine
    from featstore.store import EncoderGroup

__all__ = ["DriftCheck", "differing_fields", "named_as_held", "what_changed"]


_IN_WORDS = {
    "code_sha256": "code",
    "source_sha256": "code",
    "model_code_sha256": "code of the model",
    "model_source_sha256": "code of the model",
    "distribution": "version of its package",
    "state_sha256": "weights",
    "config_sha256": "configuration",
    "feature_extractor_sha256": "feature extractor",
}

Noted = Callable[[str], Mapping[str, Any] | None]


def named_as_held(
    recipes: Sequence[Recipe],
    *,
    name: str,
    groups: Iterable[str],
    earlier: Sequence[Recipe | None] = (),
    noted: Noted = lambda _: None,
) -> tuple[Recipe, ...]:
    """Recipes of one encoder's outputs, each as the store has it, or is to have it.

    What the store lacks is named after what it has of the same encoder, so that the layers of a model stay together.

    Parameters
    ----------
    recipes : sequence of Recipe
        As the encoder is called now: `name`, and what tells one output from another (``.layer6``).
    groups : iterable of str
        Names of the groups of recipes that the store has.
    earlier : sequence of Recipe or None
        Recipes of the same outputs by the rules of an earlier featstore, where these were others.
    noted : callable
        Name of a group -> the identity that is noted in its document, or None.
    """
    known = sorted(groups)
    before = earlier or (None,) * len(recipes)
    held = [
        _held(recipe, known) or _held_before(recipe, then, known, noted)
        for recipe, then in zip(recipes, before, strict=True)
    ]
    endings = [recipe.encoder.removeprefix(name) for recipe in recipes]
    called = next(
        (there.encoder.removesuffix(ending) for there, ending in zip(held, endings, strict=True) if there), name
    )
    return tuple(
        there or replace(recipe, encoder=f"{called}{ending}")
        for there, recipe, ending in zip(held, recipes, endings, strict=True)
    )


def _held(recipe: Recipe, groups: Iterable[str]) -> Recipe | None:
    """Where a store has it under several names, the one that it is called by now comes first."""
    found = [there for group in groups if (there := recipe.named_as(group)) is not None]
    return min(found, key=lambda there: there.encoder != recipe.encoder, default=None)


def _held_before(recipe: Recipe, then: Recipe | None, groups: Iterable[str], noted: Noted) -> Recipe | None:
    """The recipe of an earlier featstore, unless the group was seen to be of an encoder that is another by now."""
    if then is None or (there := _held(then, groups)) is None:
        return None
    identity = noted(there.group_name)
    same = identity is None or replace(recipe, encoder_identity=identity).fingerprint == recipe.fingerprint
    return there if same else None


def what_changed(
    recipe: Recipe, then: Recipe | None, stored: Iterable[tuple[Recipe, Mapping[str, Any] | None]]
) -> str | None:
    """One line about a recipe that the store lacks: in what it differs from the nearest that it has.

    `stored` are recipes of the same name, each with the identity that is noted beside it.
    """
    found = []
    for other, identity in stored:
        known = other if identity is None else replace(other, encoder_identity=identity)
        fields = tuple(differing_fields(known, _of_its_kind(recipe, then, known)))
        if fields and other.fingerprint != recipe.fingerprint:
            found.append((len(fields), other, known, fields))
    if not found:
        return None
    _, other, known, fields = min(found, key=lambda each: (each[0], each[1].group_name))
    now = _of_its_kind(recipe, then, known)
    said = dict.fromkeys(_said(field, known, now) for field in fields)
    return f"{recipe.group_name} is encoded anew: not as {other.group_name} has it: {', '.join(said)}"


def _of_its_kind(recipe: Recipe, then: Recipe | None, stored: Recipe) -> Recipe:
    """Of two recipes of one output the one whose identity has the fields that a stored one has."""
    if then is None:
        return recipe
    keys = stored.encoder_identity.keys()
    return then if keys == then.encoder_identity.keys() != recipe.encoder_identity.keys() else recipe


def differing_fields(stored: Recipe, made: Recipe) -> Iterator[str]:
    """Fields of a recipe, or of the identity in it, that decide the fingerprint and differ."""
    one, other = stored.as_decided(), made.as_decided()
    for name in dict.fromkeys([*one, *other]):
        if name == "named_by" or one.get(name) == other.get(name):
            continue
        if name != "encoder_identity":
            if not (name == "encoder" and "place" in (stored.named_by, made.named_by)):
                yield name
            continue
        keys = dict.fromkeys([*one[name], *other[name]])
        yield from (key for key in keys if one[name].get(key) != other[name].get(key))


def _said(field: str, stored: Recipe, now: Recipe) -> str:
    if field in _IN_WORDS:
        return _IN_WORDS[field]
    one, other = ({**each.encoder_identity, **each.as_json()}.get(field) for each in (stored, now))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        changed = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
        return f"{field} ({', '.join(changed)})"
    return f"{field} {other} (was {one})"


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

"""Finds the group of a store that belongs to an encoder, and detects changes of the encoder's output (drift)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from featstore.errors import EncoderChanged
from featstore.extract.job import EncodeJob
from featstore.records import Recipe, canonical_json
from featstore.store import note_in_encoder_group, read_encoder_group, read_encoder_groups, recipe_groups

if TYPE_CHECKING:
    from featstore.encoders.canary import CanaryReading, Drift
    from featstore.extract.options import ExtractOptions
    from featstore.store import EncoderGroup

__all__ = ["CanarySource", "DriftCheck", "describe_change", "differing_fields", "match_stored_names"]


_FIELD_NAMES = {
    "code_sha256": "code",
    "source_sha256": "code",
    "model_code_sha256": "code of the model",
    "model_source_sha256": "code of the model",
    "distribution": "version of its package",
    "state_sha256": "weights",
    "attributes_sha256": "attributes",
    "config_sha256": "configuration",
    "feature_extractor_sha256": "feature extractor",
    "model_sha256": "content of the model file",
}

Noted = Callable[[str], Mapping[str, Any] | None]


def match_stored_names(
    recipes: Sequence[Recipe],
    *,
    name: str,
    groups: Iterable[str],
    earlier: Sequence[Recipe | None] = (),
    noted: Noted = lambda _: None,
    stored: Callable[[], Iterable[Recipe]] = tuple,
) -> tuple[Recipe, ...]:
    """Recipes of one encoder's outputs, with the names under which the store has them or will have them.

    Outputs that the store lacks are named after stored outputs of the same encoder, so that layers share a name.

    Parameters
    ----------
    recipes : sequence of Recipe
        With the current name of the encoder: `name` plus a suffix for each output (``.layer6``).
    groups : iterable of str
        Names of the recipe groups in the store.
    earlier : sequence of Recipe or None
        Recipes of the same outputs by the rules of an earlier featstore, if these differ.
    noted : callable
        Maps the name of a group to the identity in its document, or None.
    stored : callable
        Returns the recipes of the store's groups; called if the store has none of the outputs.
    """
    known = sorted(groups)
    before = earlier or (None,) * len(recipes)
    matched = [
        _stored(recipe, known) or _stored_earlier(recipe, then, known, noted)
        for recipe, then in zip(recipes, before, strict=True)
    ]
    suffixes = [recipe.encoder.removeprefix(name) for recipe in recipes]
    stored_name = next(
        (there.encoder.removesuffix(suffix) for there, suffix in zip(matched, suffixes, strict=True) if there), None
    ) or _name_of_other_outputs(recipes[0], before[0], name, stored)
    return tuple(
        there or recipe.renamed(f"{stored_name}{suffix}")
        for there, recipe, suffix in zip(matched, recipes, suffixes, strict=True)
    )


def _name_of_other_outputs(
    recipe: Recipe, then: Recipe | None, name: str, stored: Callable[[], Iterable[Recipe]]
) -> str:
    """Name under which the store has other outputs of the encoder, if it has any; `name` is preferred."""
    keys = {each.encoder_key for each in (recipe, then) if each is not None}
    names = sorted(other.encoder_name for other in stored() if other.encoder_key in keys)
    return name if name in names or not names else names[0]


def _stored(recipe: Recipe, groups: Iterable[str]) -> Recipe | None:
    """The stored recipe; if the store has it under several names, the current name is preferred."""
    found = [there for group in groups if (there := recipe.named_as(group)) is not None]
    return min(found, key=lambda there: there.encoder != recipe.encoder, default=None)


def _stored_earlier(recipe: Recipe, then: Recipe | None, groups: Iterable[str], noted: Noted) -> Recipe | None:
    """The recipe of an earlier featstore, unless its group is known to belong to a different encoder."""
    if then is None or (there := _stored(then, groups)) is None:
        return None
    identity = noted(there.group_name)
    same = identity is None or replace(recipe, encoder_identity=identity).fingerprint == recipe.fingerprint
    return there if same else None


def describe_change(
    recipe: Recipe, then: Recipe | None, stored: Iterable[tuple[Recipe, Mapping[str, Any] | None]]
) -> str | None:
    """One line about a recipe that the store lacks: its differences from the most similar stored recipe.

    `stored` are recipes of the same name, each with the identity in its document.
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
    differences = dict.fromkeys(_difference(field, known, now) for field in fields)
    return f"{recipe.group_name} is a new encoding; it differs from {other.group_name} in: {', '.join(differences)}"


def _of_its_kind(recipe: Recipe, then: Recipe | None, stored: Recipe) -> Recipe:
    """Whichever of two recipes of an output has the identity fields of a stored recipe."""
    if then is None:
        return recipe
    keys = stored.encoder_identity.keys()
    return then if keys == then.encoder_identity.keys() != recipe.encoder_identity.keys() else recipe


def differing_fields(stored: Recipe, current: Recipe) -> Iterator[str]:
    """Fields of a recipe and its identity that affect the fingerprint and differ."""
    one, other = stored.as_decided(), current.as_decided()
    for name in dict.fromkeys([*one, *other]):
        if name == "named_by" or one.get(name) == other.get(name):
            continue
        if name != "encoder_identity":
            if not (name == "encoder" and "place" in (stored.named_by, current.named_by)):
                yield name
            continue
        keys = dict.fromkeys([*one[name], *other[name]])
        yield from (key for key in keys if one[name].get(key) != other[name].get(key))


def _difference(field: str, stored: Recipe, now: Recipe) -> str:
    if field in _FIELD_NAMES:
        return _FIELD_NAMES[field]
    one, other = ({**each.encoder_identity, **each.as_json()}.get(field) for each in (stored, now))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        changed = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
        return f"{field} ({', '.join(changed)})"
    return f"{field} {other} (was {one})"


SIGNALS_VERSION = 1


class CanarySource(Protocol):
    """An encoder whose output for the reference signals can be read: see `featstore.extract.engine.Engine`."""

    def canary(self, options: ExtractOptions) -> CanaryReading:
        """Return the encoder's output for the reference signals."""


class DriftCheck:
    """Reads the canary of the encoder once per run, and compares it with the canaries in the store.

    The comparison precedes the first shard of the run. Nothing is written before `note_canaries`.

    Parameters
    ----------
    engine : CanarySource
        Engine of the run.
    notes : sequence of str
        Lines about the encoder, reported with those about its canary.
    """

    def __init__(self, engine: CanarySource, *, notes: Sequence[str] = ()) -> None:
        self._engine = engine
        self._notes = tuple(notes)
        self._new: dict[str, Mapping[str, Any]] = {}  # group -> canary that the store lacks
        self._is_done = False

    def check_once(self, job: EncodeJob) -> None:
        """Compare the canaries, unless an earlier job did.

        Raises
        ------
        EncoderChanged
            Two passes of the encoder differ, or its output differs from the stored one by more than the tolerance of
            its precision, and ``allow_drift`` is off.
        """
        if self._is_done:
            return
        reading = self._engine.canary(job.options)
        if reading.unsteady is not None:
            message = _unsteady(job.card.name, reading.unsteady, job.outputs[0].recipe.precision)
            if not job.options.allow_drift:
                raise EncoderChanged(f"{message}; --allow-drift stores them nevertheless", reading.unsteady.cosine)
            self._notes += (message,)
        else:
            self._compare(job, reading)
        self._is_done = True

    def _compare(self, job: EncodeJob, reading: CanaryReading) -> None:
        stored = [_canary_of(read_encoder_group(job.store_url, output.recipe.group_name)) for output in job.outputs]
        drifted = tuple(_drifted(job, reading, stored))
        if drifted and not job.options.allow_drift:
            message, drift = max(drifted, key=lambda each: each[1].relative)
            raise EncoderChanged(
                f"{message}: nothing was encoded; undo the change, extract into another store, or store both in one "
                "feature set with --allow-drift",
                drift.cosine,
            )
        new = [at for at, canary in enumerate(stored) if canary is None and any(reading.outputs[at].values())]
        self._notes += (*(message for message, _ in drifted), *_twins(job, reading, new))
        self._new = {
            job.outputs[at].recipe.group_name: {
                "version": SIGNALS_VERSION,
                "signals": reading.outputs[at],
                "made_by": dict(reading.made_by),
            }
            for at in new
        }

    def note_canaries(self, store_url: str) -> None:
        """Store the new canaries in the documents of their recipe groups, which exist by now."""
        for group, canary in self._new.items():
            note_in_encoder_group(store_url, group, canary=canary)
        self._new = {}

    def take_notes(self) -> tuple[str, ...]:
        """Notes for the first record: accepted drift, and other encoders with identical output.

        Later calls return nothing.
        """
        notes, self._notes = self._notes, ()
        return notes


def _canary_of(group: EncoderGroup | None) -> Mapping[str, Any] | None:
    """The canary of a group, if it was computed with the current reference signals."""
    canary = None if group is None else group.canary
    return canary if canary is not None and canary["version"] == SIGNALS_VERSION else None


def _unsteady(name: str, drift: Drift, precision: str) -> str:
    return (
        f"{name} is non-deterministic: two passes over a reference signal ({drift.signal}) in {precision} differ by "
        f"{drift.relative:.2g} of the vector's norm (cosine {drift.cosine:.6f}); dropout may be on, or forward may "
        "draw random numbers or keep state"
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
                f"{output.recipe.group_name} returns other numbers than when it was stored: for the reference "
                f"signal {drift.signal} they differ by {drift.relative:.2g} of the vector's norm (cosine "
                f"{drift.cosine:.6f}); the tolerance of {precision} is {TOLERANCES[precision]:g}"
                f"{_environment_changes(canary['made_by'], reading.made_by)}",
                drift,
            )


def _environment_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Changes of device and versions, in parentheses."""
    one, other = ({"device": made_by.get("device"), **made_by.get("versions", {})} for made_by in (then, now))
    changed = [f"{name} {one[name]} then, {other[name]} now" for name in one if other.get(name, one[name]) != one[name]]
    return f" ({'; '.join(changed)})" if changed else ""


def _twins(job: EncodeJob, reading: CanaryReading, new: Sequence[int]) -> Iterator[str]:
    """Lines about new outputs that are bit-identical to another group on the reference signals."""
    if not new:
        return
    own = {output.recipe.group_name for output in job.outputs}
    wanted = {canonical_json(reading.outputs[at]): job.outputs[at].recipe.group_name for at in reversed(new)}
    others = [name for name in recipe_groups(job.store_url) if name not in own]
    for group in read_encoder_groups(job.store_url, others):
        canary = _canary_of(group)
        name_of_new = None if canary is None else wanted.get(canonical_json(canary["signals"]))
        if name_of_new is not None:
            yield f"{name_of_new} is bit-identical to {group.name} on the reference signals"

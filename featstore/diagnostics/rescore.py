"""Computes scores again from a store, by the settings of their records, and compares them with the stated ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featstore.diagnostics.certificate import AuditedScore, AuditFinding, hash_of_score
from featstore.errors import FeatstoreError, UnknownTask
from featstore.evaluation.runner import ScoreFailure
from featstore.formatting import one_line
from featstore.records import PROTOCOL_VERSION, ScoreRecord

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["SCORE_TOLERANCE", "differences_of", "rescore"]

SCORE_TOLERANCE = 1e-3
"""Difference of a score that is accepted, times the score if it is above 1.

The same machine computes the same score. Other processors and numbers of threads change the last bits of products, and
with them the class of a clip that lies between two classes.
"""

_EQUAL = (
    *("task", "title", "track", "protocol", "encoder", "fingerprint", "metric", "seeds", "n_train", "n_valid"),
    *("n_test", "n_skipped", "eval_weight", "private", "manifest_sha256", "settings", "features", "protocol_version"),
)
_CLOSE = ("value", "std", "ci_low", "ci_high")
_DETAILS = ("by_round", "by_seed", "interval", "spread", "classes", "by_class", "support", "confusion", "confused")
"""Entries of ``details`` from which reports draw numbers and marks."""


def rescore(
    store: Store,
    records: Sequence[ScoreRecord],
    manifests: Mapping[str, Manifest],
    *,
    tolerance: float = SCORE_TOLERANCE,
    on_score: Callable[[str], object] = lambda _: None,
) -> Iterator[tuple[AuditedScore, AuditFinding | None]]:
    """Compute scores again, one after another.

    Parameters
    ----------
    store : Store
    records : sequence of ScoreRecord
        Scores of encoders that the store has, by fingerprint; an encoder may have another name in the store.
    manifests : mapping
        ``sha256`` of a manifest -> manifest.
    tolerance : float
    on_score : callable
        Takes the name of each score before it is computed.

    Yields
    ------
    AuditedScore, and a finding if the score does not follow from the store.
    """
    groups = {each.fingerprint: each.group_name for each in store.encoders()}
    for record in records:
        name = f"{record.task} by {record.encoder}@{record.fingerprint} (track {record.track}, {record.protocol})"
        on_score(name)
        recomputed: float | None = None
        try:
            again = _score(store, record, _manifest_of(record, manifests), encoder=groups[record.fingerprint])
        except (FeatstoreError, TypeError, ValueError) as error:  # the settings of an edited record may be anything
            problem = f"it cannot be computed again: {one_line(error)}"
        else:
            recomputed = again.value
            differences = list(differences_of(record, again, tolerance=tolerance))
            problem = "; ".join(differences[:3]) + (f"; {len(differences) - 3} more" if len(differences) > 3 else "")
        yield (
            AuditedScore(
                task=record.task,
                track=record.track,
                protocol=record.protocol,
                encoder=record.encoder,
                fingerprint=record.fingerprint,
                metric=record.metric,
                key=record.key,
                score_sha256=hash_of_score(record),
                value=record.value,
                recomputed=recomputed,
                agrees=not problem,
            ),
            AuditFinding(kind="score", where=name, problem=problem) if problem else None,
        )


def _manifest_of(record: ScoreRecord, manifests: Mapping[str, Manifest]) -> Manifest:
    if record.manifest_sha256 not in manifests:
        raise UnknownTask(f"the manifest of task {record.task!r} is not known: name its file with --task")
    return manifests[record.manifest_sha256]


def _score(store: Store, record: ScoreRecord, manifest: Manifest, *, encoder: str) -> ScoreRecord:
    """Compute a score by the settings of its record, under the name that the record has for the encoder."""
    settings, details = record.settings, record.details
    shots = tuple(settings.get("shots", ()))
    if record.track == "A":
        from featstore.probe import probe_task

        found: ScoreRecord | ScoreFailure = probe_task(
            store,
            manifest,
            encoder=encoder,
            protocol=record.protocol,
            seeds=tuple(record.seeds) or None,
            head=settings.get("head"),
            shots=shots,
            split_by=settings.get("split_by"),
        )
    else:
        from featstore.retrieve import score_measures

        [found] = score_measures(
            store,
            manifest,
            encoder=encoder,
            protocol=record.protocol,
            measures=(settings.get("measure", "knn"),),
            k=settings.get("ks") or details.get("k_asked"),
            index=settings.get("index", "flat"),
            shots=shots,
        )
    if isinstance(found, ScoreFailure):  # one measure alone raises its error
        raise FeatstoreError(found.message)
    return replace(found, encoder=record.encoder)


def differences_of(stated: ScoreRecord, again: ScoreRecord, *, tolerance: float) -> Iterator[str]:
    """Yield what differs between a stated score and the same score computed again, a line for each field.

    Times and versions are ignored; of the details, entries that reports read are compared.
    """
    if stated.protocol_version != again.protocol_version:
        yield f"it has protocol version {stated.protocol_version}, and this featstore computes {PROTOCOL_VERSION}"
        return
    one, other = (json.loads(json.dumps(each.as_json())) for each in (stated, again))
    for name in _CLOSE:
        if not _agree(one[name], other[name], tolerance, scale=1.0):
            yield f"{name} is {_shown(one[name])}, and {_shown(other[name])} follows from the store"
    for name in _EQUAL:
        if one[name] != other[name]:
            yield f"{name} is not that of the store ({_shown(one[name])}, not {_shown(other[name])})"
    for name in _DETAILS:
        if name in one["details"] and not _agree(one["details"][name], other["details"].get(name), tolerance):
            yield f"details.{name} does not follow from the store"


def _agree(one: Any, other: Any, tolerance: float, *, scale: float = 0.0) -> bool:
    """Whether two JSON values are equal up to the tolerance of their numbers with a fraction.

    The tolerance is relative to the number, to the largest number of its list, or to `scale`, whichever is largest.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        scale = max((abs(each) for each in other if isinstance(each, float)), default=0.0)
        return len(one) == len(other) and all(
            _agree(a, b, tolerance, scale=scale) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= tolerance * max(scale, abs(other)) + 1e-12
    return bool(one == other) and type(one) is type(other)


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Health of the embedding spaces of scores, for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from featstore.errors import LabelError, ManifestError, UnknownTask

if TYPE_CHECKING:
    from featstore.diagnostics import Health
    from featstore.records import ScoreRecord
    from featstore.store import Store

__all__ = ["spaces_of"]

MAX_ROWS = 4_000
"""Windows that are sampled from each feature set: a report may have hundreds of sets."""


def spaces_of(store: Store, records: Iterable[ScoreRecord]) -> tuple[Health, ...]:
    """Health of the feature sets that some score used, matched by content hash.

    Separability is measured for built-in tasks with one class per clip whose name is in the clip JSON unchanged. Of
    larger sets, 4,000 windows are sampled.
    """
    from featstore.diagnostics import examine_health

    scores = tuple(records)
    read = {content for record in scores for content in record.features.values()}
    chosen = [each for each in store.feature_sets() if each.content_hash in read]
    labels = _label_fields(scores)
    found: list[Health] = []
    for dataset in dict.fromkeys(each.dataset for each in chosen):
        sets = [each for each in chosen if each.dataset == dataset]
        try:
            found += examine_health(sets, label=labels.get(dataset), max_rows=MAX_ROWS)
        except LabelError:  # a split that no task uses may lack the label
            found += examine_health(sets, max_rows=MAX_ROWS)
    return tuple(sorted(found, key=lambda each: (each.dataset, each.encoder, each.fingerprint, each.split)))


def _label_fields(records: Iterable[ScoreRecord]) -> Mapping[str, str]:
    """Dataset -> field of the clip JSON with the class."""
    from featstore.tasks import find_task

    fields: dict[str, str] = {}
    for task, sha256 in {record.task: record.manifest_sha256 for record in records}.items():
        try:
            manifest = find_task(task)
        except (UnknownTask, ManifestError):  # a custom task, whose manifest is not known here
            continue
        label = manifest.label
        plain = manifest.kind == "clip" and label.separator is None and label.mapping is None
        if plain and manifest.sha256 == sha256 and isinstance(label.field, str):
            fields.setdefault(manifest.feature_dataset, label.field)
    return fields

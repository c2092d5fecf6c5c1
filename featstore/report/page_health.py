"""Health of embedding spaces as the page shows it: datasets by encoder, with their splits folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from featstore.diagnostics import Health

__all__ = ["DatasetHealth", "EncoderHealth", "health_by_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetHealth:
    """The feature sets of one dataset: sums over splits of counts, and medians of measures.

    Attributes
    ----------
    duplicates : int or None
        Clips with a near-duplicate in another split; None if there is no other split.
    dead, repeated : int
        The most of any split.
    """

    dataset: str
    n_splits: int
    windows: int
    not_finite: int
    duplicates: int | None
    dim: int
    norm: float | None
    effective_rank: float | None
    anisotropy: float | None
    dead: int
    repeated: int
    hubness: float | None
    separable: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderHealth:
    """One encoder: a row for each dataset, and its feature sets."""

    label: str
    datasets: tuple[DatasetHealth, ...]
    splits: tuple[Health, ...]


def health_by_encoder(health: Sequence[Health]) -> tuple[EncoderHealth, ...]:
    """Group feature sets by encoder. A fingerprint is in the label of an encoder only if it has several."""
    places = list(dict.fromkeys((each.encoder, each.fingerprint) for each in health))
    names = [encoder for encoder, _ in places]
    found = []
    for encoder, fingerprint in sorted(places):
        sets = tuple(each for each in health if (each.encoder, each.fingerprint) == (encoder, fingerprint))
        datasets = dict.fromkeys(each.dataset for each in sets)
        found.append(
            EncoderHealth(
                label=encoder if names.count(encoder) == 1 else f"{encoder}@{fingerprint}",
                datasets=tuple(_dataset([each for each in sets if each.dataset == dataset]) for dataset in datasets),
                splits=sets,
            )
        )
    return tuple(found)


def _dataset(sets: Sequence[Health]) -> DatasetHealth:
    overlaps = [each.overlap.clips for each in sets if each.overlap is not None]

    def median(of: Callable[[Health], float | None]) -> float | None:
        known = [value for value in map(of, sets) if value is not None]
        return float(np.median(known)) if known else None

    return DatasetHealth(
        dataset=sets[0].dataset,
        n_splits=len(sets),
        windows=sum(each.windows for each in sets),
        not_finite=sum(each.space.not_finite for each in sets),
        duplicates=sum(overlaps) if overlaps else None,
        dim=sets[0].space.dim,
        norm=median(lambda each: each.space.norm_median),
        effective_rank=median(lambda each: each.space.effective_rank),
        anisotropy=median(lambda each: each.space.anisotropy),
        dead=max(len(each.space.dead_dimensions) for each in sets),
        repeated=max(each.space.n_duplicate_dimensions for each in sets),
        hubness=median(lambda each: None if each.space.hubness is None else each.space.hubness.skewness),
        separable=median(
            lambda each: None if each.space.separability is None else each.space.separability.centroid_accuracy
        ),
    )

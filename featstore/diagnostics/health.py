"""Health of the feature sets of a store: of each set, and near-duplicates across the splits of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.diagnostics.measures import SpaceHealth, sampled_rows, space_health
from featstore.errors import LabelError
from featstore.evaluation.leakage import NEAR_COSINE, Overlap, find_overlap

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = ["MAX_ROWS", "Health", "examine_health", "health_notes"]

MAX_ROWS = 20_000
"""Number of windows of a feature set that are measured; larger sets are subsampled with a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Health of one feature set.

    Attributes
    ----------
    windows : int
        Number of windows; ``space.rows`` of them were measured.
    overlap : Overlap or None
        Near-duplicates in the other splits of its dataset, for the same encoder; None if there is no other split.
    """

    path: str
    encoder: str
    fingerprint: str
    dataset: str
    split: str
    windows: int
    space: SpaceHealth
    overlap: Overlap | None

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Measured windows of a feature set."""

    X: NDArray[np.float32]
    rows: NDArray[np.int64]


def examine_health(
    feature_sets: Iterable[FeatureSet],
    *,
    among: Iterable[FeatureSet] | None = None,
    label: str | None = None,
    near_cosine: float = NEAR_COSINE,
    max_rows: int = MAX_ROWS,
) -> tuple[Health, ...]:
    """Measure feature sets, and compare each with the other splits of its dataset and encoder.

    Time and memory are bounded: sets of more than `max_rows` windows are subsampled with a fixed seed, and the ten
    nearest neighbours are searched among 5,000 of them.

    Parameters
    ----------
    feature_sets : iterable of FeatureSet
        ``store.feature_sets()``, or some of them.
    among : iterable of FeatureSet, optional
        Feature sets that are searched for near-duplicates; default: `feature_sets`.
    label : str, optional
        Dotted path of the class in the clips' JSON, to measure the separability of classes.
    near_cosine : float
        Minimum cosine of near-duplicates.
    max_rows : int
        At least 2.

    Raises
    ------
    LabelError
        A clip's JSON has no such field, or several values in it.
    """
    chosen = tuple(feature_sets)
    siblings = chosen if among is None else tuple(among)
    found: list[Health] = []
    for place in dict.fromkeys(map(_place, chosen)):
        mine = [each for each in chosen if _place(each) == place]
        group = {each.split: each for each in (*siblings, *mine) if _place(each) == place}
        measured = {split: _measured(each, max_rows) for split, each in group.items()}
        codes = _codes(mine, label) if label is not None else {}
        for each in mine:
            rows = measured[each.split]
            found.append(
                Health(
                    path=each.path,
                    encoder=each.encoder,
                    fingerprint=each.fingerprint,
                    dataset=each.dataset,
                    split=each.split,
                    windows=len(each),
                    space=space_health(rows.X, classes=codes[each.split][rows.rows] if codes else None),
                    overlap=_overlap(each, group, measured, near_cosine=near_cosine),
                )
            )
    return tuple(found)


def _place(fs: FeatureSet) -> tuple[str, str]:
    return fs.recipe.group_name, fs.dataset


def health_notes(found: Iterable[Health], *, with_label: bool) -> tuple[str, ...]:
    """Return the lines under a table of health that explain its columns."""
    everything = tuple(found)
    notes = [
        "norm: the median; rank: directions that the vectors vary in (effective rank, Roy and Vetterli 2007)",
        "anisotropy: mean cosine of two vectors, 0 is even (Ethayarajh 2019); dead and repeated: dimensions",
        "hubness: skewness of how often a vector is among the ten nearest of another, 0 is even (Radovanovic 2010); "
        "orphans never are",
    ]
    if with_label:
        notes.append("separable: vectors whose nearest class mean, computed without the vector, is that of their class")
    cosines = sorted({each.overlap.cosine for each in everything if each.overlap is not None})
    if cosines:
        shown = ", ".join(f"{cosine:g}" for cosine in cosines)
        notes.append(
            f"near-duplicates: clips with one at a cosine of {shown} or more in another split, vectors whitened"
        )
    drawn = [each.space.rows for each in everything if each.space.rows < each.windows]
    if drawn:
        notes.append(f"sets of more than {max(drawn):,} windows are subsampled with a fixed seed")
    return tuple(notes)


def _measured(fs: FeatureSet, max_rows: int) -> _Rows:
    """Read the measured vectors in blocks."""
    n = len(fs)
    rows = sampled_rows(n, max_rows)
    X = np.empty((len(rows), fs.recipe.dim), np.float32)
    for start in range(0, n, max_rows):
        stop = min(start + max_rows, n)
        inside = slice(*np.searchsorted(rows, (start, stop)).tolist())
        X[inside] = fs.utterance_rows.slice(start, stop)[rows[inside] - start]
    return _Rows(X=X, rows=rows)


def _codes(group: Sequence[FeatureSet], label: str) -> Mapping[str, NDArray[np.int64]]:
    """Class index of each window by split; the indices are the same in all splits."""
    values = {each.split: each.xy(label)[1] for each in group}
    for each in group:
        if values[each.split].ndim != 1:
            raise LabelError(f"{label!r} of {each.path} holds several values a clip: separability takes one class each")
    known = np.unique(np.concatenate([np.asarray(of, dtype=np.str_) for of in values.values()]))
    return {split: np.searchsorted(known, np.asarray(of, dtype=np.str_)) for split, of in values.items()}


def _overlap(
    fs: FeatureSet, group: Mapping[str, FeatureSet], measured: Mapping[str, _Rows], *, near_cosine: float
) -> Overlap | None:
    others = [each for split, each in group.items() if split != fs.split]
    if not others:
        return None
    mine, keys = _finite(fs, measured)
    rest = [_finite(each, measured) for each in others]
    return find_overlap(
        mine,
        np.concatenate([X for X, _ in rest]),
        keys=keys,
        other_keys=[f"{each.split}/{key}" for each, (_, of) in zip(others, rest, strict=True) for key in of],
        cosine=near_cosine,
    )


def _finite(fs: FeatureSet, measured: Mapping[str, _Rows]) -> tuple[NDArray[np.float32], list[str]]:
    """Return the finite vectors and the clip of each."""
    of = measured[fs.split]
    finite = np.isfinite(of.X).all(axis=1)
    clips = fs.clip_key[fs.clip[of.rows[finite]]]
    return of.X[finite], [str(key) for key in clips]

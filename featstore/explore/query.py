"""The cached clips nearest to a cached clip, to an audio file, or to a text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, UnknownFeatureSet
from featstore.report.tables import natural
from featstore.retrieve.scan import best_cosines
from featstore.store.clip_fields import stored_clip_json

if TYPE_CHECKING:
    from featstore.encoders.encoder import Encoder
    from featstore.store import FeatureSet, Store

__all__ = [
    "ClipHit",
    "Found",
    "QueryRecord",
    "closest_names",
    "nearest_to_file",
    "nearest_to_key",
    "nearest_to_vector",
    "sets_of_one_encoder",
]


def closest_names(wanted: str, names: Iterable[str], *, most: int) -> list[str]:
    """Up to `most` names that differ by one edit; else those with the same numbers; else those that contain the wanted.

    An edit is a letter more, less or other, or two letters exchanged. Names with the same numbers (007 equals 07) are
    first, then names with a longer common prefix.

    >>> closest_names("yes_07", ["yes_007", "yes_070", "yes_700", "no_07", "up"], most=2)
    ['yes_007', 'yes_070']
    >>> closest_names("00012", ["scenes-fold1-00012", "scenes-fold1-00120"], most=2)
    ['scenes-fold1-00012']
    """
    known = dict.fromkeys(names) if wanted else {}
    number, lowered = natural(wanted), wanted.casefold()
    found = (
        [name for name in known if _is_one_edit(wanted, name)]
        or [name for name in known if natural(name) == number]
        or [name for name in known if lowered in name.casefold()]
    )
    rank = {name: (natural(name) != number, -_shared(wanted, name), len(name), name) for name in found}
    return sorted(found, key=rank.__getitem__)[:most]


def _is_one_edit(one: str, other: str) -> bool:
    if abs(len(one) - len(other)) > 1:
        return False
    at = _shared(one, other)
    a, b = one[at:], other[at:]
    return a[1:] == b[1:] or a == b[1:] or a[1:] == b or a[1::-1] + a[2:] == b


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


_NAMED = 6
_ALIKE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipHit:
    """One clip of the result.

    Attributes
    ----------
    similarity : float
        Cosine of the two closest windows.
    start_seconds, seconds : float
        The closest window of the clip.
    """

    key: str
    encoder: str
    fingerprint: str
    dataset: str
    split: str
    similarity: float
    start_seconds: float
    seconds: float
    meta: str

    @property
    def distance(self) -> float:
        """1 - cosine: 0 for the same direction, 2 for the opposite direction."""
        return max(0.0, 1.0 - self.similarity)

    @property
    def labels(self) -> Any:
        """The clip's JSON."""
        return stored_clip_json(self.meta, key=self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRecord:
    """One clip of the result, as `featstore query --json` prints it.

    Attributes
    ----------
    rank : int
        1 is the nearest.
    similarity : float
        Cosine of the two closest windows.
    distance : float
        1 - similarity.
    start_seconds, seconds : float
        The closest window of the clip.
    labels : mapping
        Fields of the clip's JSON; None if the clip has no such field.
    """

    rank: int
    key: str
    encoder: str
    fingerprint: str
    dataset: str
    split: str
    similarity: float
    distance: float
    start_seconds: float
    seconds: float
    labels: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The result of a query: the nearest clips first, the number of compared clips, and the time.

    ``meta`` is the JSON of the query if it is a cached clip, else empty. ``sets_searched`` counts feature sets.
    """

    query: str
    meta: str
    encoder: str
    windows: int
    hits: tuple[ClipHit, ...]
    clips_searched: int
    sets_searched: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clip:
    """A cached clip as a query: its feature set, its number there, and the rows of its windows."""

    fs: FeatureSet
    number: int
    rows: range

    @property
    def name(self) -> str:
        """Unambiguous name of the clip."""
        return f"{self.fs.dataset}/{self.fs.split}/{self.fs.key[self.rows.start]}"


def sets_of_one_encoder(
    store: Store, *, encoder: str | None, dataset: str | None, split: str | None
) -> tuple[FeatureSet, ...]:
    """The matching feature sets, all of one recipe: vectors of different recipes cannot be compared.

    Raises
    ------
    UnknownFeatureSet
        There is no matching feature set.
    AmbiguousSelection
        The matching feature sets have several recipes.
    """
    found = store.feature_sets(encoder=encoder, dataset=dataset, split=split)
    if not found:
        wanted = "/".join(name or "*" for name in (encoder, dataset, split))
        raise UnknownFeatureSet(
            f"{store.url} has no feature set {wanted}: `featstore inspect --store {store.url}` lists all"
        )
    recipes = list(dict.fromkeys(fs.recipe.group_name for fs in found))
    if len(recipes) > 1:
        raise AmbiguousSelection(
            f"{store.url} has embeddings by {len(recipes)} encoders: choose one with --encoder {_listed(recipes)}"
        )
    return found


def nearest_to_key(sets: Sequence[FeatureSet], key: str, *, k: int) -> Found:
    """The ``k`` clips nearest to a cached clip, without the clip itself.

    Parameters
    ----------
    sets : sequence of FeatureSet
        Feature sets of one recipe; all of them are searched.
    key : str
        Key of a clip, or of one of its windows (``clip#2``), which is then the only query; after ``split/`` or
        ``dataset/split/`` if several feature sets have it.

    Raises
    ------
    UnknownFeatureSet
        No clip has this key.
    AmbiguousSelection
        Several clips have this key.
    """
    began = time.perf_counter()
    clip = _clip_of(sets, key)
    queries = np.concatenate([clip.fs.utterance_rows.slice(row, row + 1) for row in clip.rows])
    meta = clip.fs.metas_of([clip.rows.start])[0]
    return _nearest(sets, lambda _: queries, k=k, query=clip.name, began=began, own=clip, meta=meta)


def nearest_to_file(
    sets: Sequence[FeatureSet], path: Path, *, load: Callable[[FeatureSet], Encoder], k: int, device: str = "auto"
) -> Found:
    """The ``k`` clips nearest to an audio file, which is encoded by the recipe and the crop of each feature set.

    Parameters
    ----------
    load : callable
        Loads the encoder that made a feature set.
    """
    from featstore.extract.single_file import encode_file

    encoder = load(sets[0])
    encoded = {
        crop: encode_file(path, encoder=encoder, recipe=sets[0].recipe, crop_seconds=crop, device=device)
        for crop in {fs.address.crop_seconds for fs in sets}
    }
    return _nearest(
        sets, lambda fs: encoded[fs.address.crop_seconds].utterance, k=k, query=str(path), began=time.perf_counter()
    )


def nearest_to_vector(sets: Sequence[FeatureSet], vector: NDArray[np.float32], *, k: int, name: str) -> Found:
    """The ``k`` clips nearest to a vector, float32 (dim,), such as that of a text; `name` is shown as the query."""
    return _nearest(sets, lambda _: vector[None], k=k, query=name, began=time.perf_counter())


# --- selection --------------------------------------------------------------------------------------------------------


def _clip_of(sets: Sequence[FeatureSet], name: str) -> _Clip:
    found = [clip for fs in sets for key in _keys_meant(fs, name) if (clip := _clip_in(fs, key)) is not None]
    if not found:
        raise UnknownFeatureSet(
            f"no clip of {_listed([f'{fs.dataset}/{fs.split}' for fs in sets])} and no file is called {name!r}: "
            + (_did_you_mean(sets, name) or "`featstore explore` shows all clips")
        )
    if len(found) > 1:
        raise AmbiguousSelection(
            f"{len(found)} clips are called {name!r}: choose one of {_listed([clip.name for clip in found])}"
        )
    return found[0]


def _keys_meant(fs: FeatureSet, name: str) -> Iterator[str]:
    """The keys of this feature set that `name` may stand for."""
    yield name
    for place in (f"{fs.split}/", f"{fs.dataset}/{fs.split}/", f"{fs.recipe.group_name}/{fs.dataset}/{fs.split}/"):
        if name.startswith(place):
            yield name.removeprefix(place)


def _clip_in(fs: FeatureSet, key: str) -> _Clip | None:
    rows = np.flatnonzero(fs.key == key)
    if not len(rows):
        return None
    row = int(rows[0])
    number = int(fs.clip[row])
    is_whole = bool(fs.start_seconds[row] == 0.0)
    last = row + (int(np.searchsorted(fs.clip, number, side="right")) - row if is_whole else 1)
    return _Clip(fs=fs, number=number, rows=range(row, last))


def _did_you_mean(sets: Sequence[FeatureSet], name: str) -> str:
    wanted = min((meant for fs in sets for meant in _keys_meant(fs, name)), key=len)
    alike = closest_names(wanted, (key for fs in sets for key in fs.clip_key.tolist()), most=_ALIKE)
    return f"did you mean {' or '.join(map(repr, alike))}?" if alike else ""


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    return ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")


# --- search -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    """A clip of feature set number `place`: its first and its closest window."""

    similarity: float
    place: int
    first: int
    row: int


def _nearest(
    sets: Sequence[FeatureSet],
    queries_for: Callable[[FeatureSet], NDArray[np.float32]],
    *,
    k: int,
    query: str,
    began: float,
    own: _Clip | None = None,
    meta: str = "",
) -> Found:
    """Find the clips of all sets that are nearest to the windows of a query, without its own clip."""
    near: list[_Near] = []
    searched = windows = 0
    for place, fs in enumerate(sets):
        queries = queries_for(fs)
        windows = max(windows, len(queries))
        if not len(fs):
            continue
        cosines = best_cosines(fs.utterance_rows, queries)
        firsts = np.flatnonzero(fs.start_seconds == 0.0)
        of_clip = cosines if len(firsts) == len(fs) else np.maximum.reduceat(cosines, firsts)
        searched += len(firsts)
        if own is not None and own.fs is fs:
            of_clip[own.number] = -np.inf
            searched -= 1
        for clip in _largest(of_clip, k):
            first = int(firsts[clip])
            stop = int(firsts[clip + 1]) if clip + 1 < len(firsts) else len(fs)
            row = first + int(np.argmax(cosines[first:stop]))
            near.append(_Near(similarity=float(of_clip[clip]), place=place, first=first, row=row))
    near = sorted(near, key=lambda each: (-each.similarity, each.place, each.row))[:k]
    metas = {
        place: dict(zip(rows, sets[place].metas_of(rows), strict=True))
        for place in {each.place for each in near}
        if (rows := [each.row for each in near if each.place == place])
    }
    return Found(
        query=query,
        meta=meta,
        encoder=sets[0].recipe.group_name,
        windows=windows,
        hits=tuple(_hit(sets[each.place], each, metas[each.place][each.row]) for each in near),
        clips_searched=searched,
        sets_searched=len(sets),
        seconds=time.perf_counter() - began,
    )


def _largest(values: NDArray[np.float32], k: int) -> list[int]:
    """Indices of the ``k`` largest finite values, the largest first, ties in order."""
    least = np.partition(values, len(values) - k)[len(values) - k] if k < len(values) else -np.inf
    places = np.flatnonzero((values >= least) & np.isfinite(values))
    return [int(place) for place in places[np.argsort(-values[places], kind="stable")][:k]]


def _hit(fs: FeatureSet, near: _Near, meta: str) -> ClipHit:
    return ClipHit(
        key=str(fs.key[near.first]),
        encoder=fs.encoder,
        fingerprint=fs.fingerprint,
        dataset=fs.dataset,
        split=fs.split,
        similarity=near.similarity,
        start_seconds=float(fs.start_seconds[near.row]),
        seconds=float(fs.seconds[near.row]),
        meta=meta,
    )

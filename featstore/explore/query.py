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
    "edits",
    "nearest_to_file",
    "nearest_to_key",
    "nearest_to_vector",
    "sets_of_one_encoder",
]


MAX_NAMES = 1_000_000
MAX_RANKED = 10_000
MAX_LETTERS = 64
"""Letters of a name that count after the common prefix; the work is names x letters x letters."""

NAMES_PER_BLOCK = 1 << 14
"""Names per block, whose counters fit the cache of a core."""


def closest_names(wanted: str, names: Sequence[str], *, most: int) -> list[str]:
    """Up to `most` names with the smallest edit distance, at most a third of the letters of the wanted one, or one.

    Among ties, a name with the same numbers is first (007 equals 07), then names with a longer common prefix. If no
    name is that close, names that contain the wanted one. Only the first million names are considered.

    >>> closest_names("yes_07", ["yes_007", "yes_070", "yes_700", "no_07", "up"], most=2)
    ['yes_007', 'yes_070']
    >>> closest_names("00012", ["scenes-fold1-00012", "scenes-fold1-00120"], most=2)
    ['scenes-fold1-00012']
    """
    known = list(dict.fromkeys(names[:MAX_NAMES]))
    if not known or not wanted:
        return []
    found = edits(wanted, known)
    if found.min() <= max(1, len(wanted) // 3):
        nearest = [known[at] for at in np.flatnonzero(found == found.min())[:MAX_RANKED]]
        number = natural(wanted)
        rank = {name: (natural(name) != number, -_shared(wanted, name), len(name), name) for name in nearest}
        return sorted(nearest, key=rank.__getitem__)[:most]
    lowered = wanted.casefold()
    return sorted((name for name in known if lowered in name.casefold()), key=lambda name: (len(name), name))[:most]


def edits(wanted: str, names: Sequence[str]) -> NDArray[np.uint8]:
    """Levenshtein distance of each name from the wanted one, uint8 (names,).

    The table of Wagner and Fischer (1974), with columns over all names. The common prefix is skipped; the 64 letters
    after it count. `difflib.get_close_matches` takes 3.3 s for 100,000 keys of one pattern, this function 0.2 s.
    """
    shared = min(_shared(wanted, min(names)), _shared(wanted, max(names)))
    asked = _letters([wanted[shared:]])[:, 0]
    out = np.empty(len(names), np.uint8)
    for start in range(0, len(names), NAMES_PER_BLOCK):
        block = [name[shared:] for name in names[start : start + NAMES_PER_BLOCK]]
        lengths = np.minimum([len(name) for name in block], MAX_LETTERS)
        letters = _letters(block)
        row = np.repeat(np.arange(len(letters) + 1, dtype=np.uint8)[:, None], len(block), axis=1)
        for number, letter in enumerate(asked, start=1):
            above, row = row, np.empty_like(row)
            row[0] = number
            replaced = above[:-1] + (letters != letter)
            for place in range(len(letters)):
                row[place + 1] = np.minimum(np.minimum(row[place], above[place + 1]) + 1, replaced[place])
        out[start : start + len(block)] = row[lengths, np.arange(len(block))]
    return out


def _shared(one: str, other: str) -> int:
    """Length of the common prefix."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _letters(names: Sequence[str]) -> NDArray[np.uint32]:
    """Code points by position, uint32 (longest name, names); zero after the end of a name."""
    width = min(MAX_LETTERS, max(map(len, names)))
    if not width:
        return np.zeros((0, len(names)), np.uint32)
    # lone surrogates are letters too, which NumPy would refuse
    packed = b"".join(name[:width].encode("utf-32-le", "surrogatepass").ljust(4 * width, b"\0") for name in names)
    return np.ascontiguousarray(np.frombuffer(packed, "<u4").reshape(len(names), width).T)


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
    hits, searched = _nearest(sets, lambda _: queries, k=k, own=clip)
    return Found(
        query=clip.name,
        meta=clip.fs.metas_of([clip.rows.start])[0],
        encoder=clip.fs.recipe.group_name,
        windows=len(clip.rows),
        hits=hits,
        clips_searched=searched,
        sets_searched=len(sets),
        seconds=time.perf_counter() - began,
    )


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
    began = time.perf_counter()
    hits, searched = _nearest(sets, lambda fs: encoded[fs.address.crop_seconds].utterance, k=k, own=None)
    return Found(
        query=str(path),
        meta="",
        encoder=sets[0].recipe.group_name,
        windows=max(len(each.utterance) for each in encoded.values()),
        hits=hits,
        clips_searched=searched,
        sets_searched=len(sets),
        seconds=time.perf_counter() - began,
    )


def nearest_to_vector(sets: Sequence[FeatureSet], vector: NDArray[np.float32], *, k: int, name: str) -> Found:
    """The ``k`` clips nearest to a vector, float32 (dim,), such as that of a text; `name` is shown as the query."""
    began = time.perf_counter()
    hits, searched = _nearest(sets, lambda _: vector[None], k=k, own=None)
    return Found(
        query=name,
        meta="",
        encoder=sets[0].recipe.group_name,
        windows=1,
        hits=hits,
        clips_searched=searched,
        sets_searched=len(sets),
        seconds=time.perf_counter() - began,
    )


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
    alike = closest_names(wanted, [key for fs in sets for key in fs.clip_key.tolist()], most=_ALIKE)
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
    own: _Clip | None,
) -> tuple[tuple[ClipHit, ...], int]:
    """The nearest clips of all sets, and the number of compared clips."""
    near: list[_Near] = []
    searched = 0
    for place, fs in enumerate(sets):
        if not len(fs):
            continue
        cosines = best_cosines(fs.utterance_rows, queries_for(fs))
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
    return tuple(_hit(sets[each.place], each, metas[each.place][each.row]) for each in near), searched


def _largest(values: NDArray[np.float32], k: int) -> list[int]:
    """Indices of the ``k`` largest finite values, the largest first, ties in order."""
    if len(values) > 4 * k:
        least = np.partition(values, len(values) - k)[len(values) - k]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    places = places[np.isfinite(values[places])]
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

"""Reads a store: `Store`, a collection of feature sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, UnknownFeatureSet
from featstore.formatting import counted, html_table, text_table
from featstore.records import Recipe
from featstore.shard_patterns import ShardPattern
from featstore.store.catalogue import SplitEntry, check_root, foreign_paths, read_split, split_paths, view_of_shards
from featstore.store.feature_set import FeatureSet
from featstore.store.filesystem import Objects, open_objects
from featstore.store.texts import text_entries

__all__ = ["FeatureSets", "Store", "open_store"]

_T = TypeVar("_T")


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open the store at `url` for reading.

    Raises
    ------
    StoreNotFound
        There is no store at the URL.
    StoreVersionError
        A newer featstore wrote the store.
    StoreError
        It is not a featstore store.
    """
    objects = open_objects(os.fspath(url))
    check_root(objects)
    return Store(objects)


class Store:
    """A snapshot of the feature sets of a store.

    ``len(store)``, iteration and ``in`` refer to feature sets; ``store["logmel/words/train"]`` is one of them. The name
    of a feature set is ENCODER/DATASET/SPLIT; the encoder may include the fingerprint.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._read: dict[str, SplitEntry | None] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Objects]]:
        return Store, (self._objects,)

    def __len__(self) -> int:
        return sum(1 for _ in self._matching())

    def __iter__(self) -> Iterator[FeatureSet]:
        return iter(self.feature_sets())

    def __getitem__(self, name: str) -> FeatureSet:
        """Return the feature set with a name. Raises the errors of `select`; UnknownFeatureSet is a KeyError."""
        encoder, dataset, split = _split_name(name)
        return self.select(encoder=encoder, dataset=dataset, split=split)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        try:
            encoder, dataset, split = _split_name(name)
        except UnknownFeatureSet:
            return False
        return any(True for _ in self._matching(encoder, dataset, split))

    @property
    def url(self) -> str:
        """URL of the store, without credentials."""
        return self._objects.url

    @cached_property
    def _paths(self) -> tuple[str, ...]:
        return tuple(split_paths(self._objects))

    def _matching(
        self, encoder: str | None = None, dataset: str | None = None, split: str | None = None
    ) -> Iterator[SplitEntry]:
        """Feature sets that match, each read on first use, so that a server gets no unneeded requests."""
        for path in self._paths:
            if _is_at(path, encoder, dataset, split):
                if path not in self._read:
                    self._read[path] = read_split(self._objects, path)
                if (entry := self._read[path]) is not None:
                    yield entry

    def feature_sets(
        self, *, encoder: str | None = None, dataset: str | None = None, split: str | None = None
    ) -> FeatureSets:
        """Return all feature sets, in order of encoder, dataset and split: a tuple that prints as a table.

        With names, only the feature sets that match them as in `select`; the result may be empty.
        """
        return FeatureSets(FeatureSet(self._objects, entry) for entry in self._matching(encoder, dataset, split))

    def encoders(self) -> tuple[Recipe, ...]:
        """Return the recipes of all feature sets."""
        recipes = (entry.address.recipe for entry in self._matching())
        return tuple({recipe.group_name: recipe for recipe in recipes}.values())

    def resolve_encoder(self, name: str | None) -> Recipe:
        """Return the recipe with the name ``logmel`` or ``logmel@3f9c2a71``; None selects the only recipe.

        Raises
        ------
        UnknownFeatureSet
            The store has no such recipe.
        AmbiguousSelection
            The store has several.
        """
        groups = dict.fromkeys(path.partition("/")[0] for path in self._paths if _is_at(path, name, None, None))
        firsts = (next(self._matching(group), None) for group in groups)
        found = [first.address.recipe for first in firsts if first is not None]
        what = f"encoder {name!r}" if name else "encoder"
        return _only_one(found, what=what, url=self.url, name=lambda recipe: recipe.group_name)

    def select(self, *, encoder: str | None = None, dataset: str | None = None, split: str | None = None) -> FeatureSet:
        """Return the feature set that matches.

        Parameters
        ----------
        encoder : str, optional
            ``"logmel"`` or, if the store has several recipes of that encoder, ``"logmel@3f9c2a71"``.
        dataset : str, optional
            ``"words"``, or ``"words+crop5s"`` for windows of five seconds.
        split : str, optional
            A split or a fold.

        Raises
        ------
        UnknownFeatureSet
            Nothing matches.
        AmbiguousSelection
            Several feature sets match.
        """
        found = tuple(self._matching(encoder, dataset, split))
        requested = ", ".join(
            f"{key}={value!r}" for key, value in (("encoder", encoder), ("dataset", dataset), ("split", split)) if value
        )
        what = f"feature set with {requested}" if requested else "feature set"
        return FeatureSet(self._objects, _only_one(found, what=what, url=self.url, name=lambda entry: entry.path))

    def texts(self, encoder: str, *, task: str | None = None) -> dict[str, NDArray[np.float32]]:
        """Return the stored vectors of texts by an encoder's text tower: text to float32 (dim,).

        Parameters
        ----------
        encoder : str
            ``"clap"``, or ``"clap@3f9c2a71"``.
        task : str, optional
            Only the texts of one task; by default, of all.
        """
        group = self.resolve_encoder(encoder).group_name
        return {
            str(text): vector
            for entry in text_entries(self._objects, group)
            if task in (None, entry.address.split)
            for fs in (FeatureSet(self._objects, entry),)
            for text, vector in zip(fs.key, fs.utterance, strict=True)
        }

    def text_counts(self, encoder: str) -> dict[str, int]:
        """Return the number of stored texts of each task, by an encoder's text tower."""
        group = self.resolve_encoder(encoder).group_name
        return {
            entry.address.split: sum(segment.member.windows for segment in entry.segments)
            for entry in text_entries(self._objects, group)
        }

    def foreign(self) -> tuple[str, ...]:
        """Return the paths of all items in the store that featstore did not write, sorted."""
        return tuple(sorted(foreign_paths(self._objects, tuple(self._matching()))))

    def view(self, *, encoder: str, dataset: str, split: str, pattern: str) -> FeatureSet:
        """Return the shards of a dataset that match a pattern, as one feature set.

        The shards are looked up in all splits of the dataset. A shard that several groups contain is read from the
        group of `split` if it is there, else from the newest part. Shards that do not match are excluded.

        Parameters
        ----------
        encoder : str
            ``"logmel"``, or ``"logmel@3f9c2a71"``.
        dataset : str
            ``"words"``, or ``"words+crop5s"``.
        split : str
            Split of the view.
        pattern : str
            Glob of shard names with brace expansion, as in a manifest.

        Raises
        ------
        UnknownFeatureSet
            The store has none of these shards.
        AmbiguousSelection
            Several encoders match.
        """
        found = tuple(self._matching(encoder, dataset))
        groups = tuple(dict.fromkeys(entry.address.recipe.group_name for entry in found))
        what = f"shard with encoder={encoder!r}, dataset={dataset!r} that matches {pattern!r}"
        group = _only_one(groups, what=what, url=self.url, name=str)
        entries = [entry for entry in found if entry.address.recipe.group_name == group]
        view = view_of_shards(entries, split=split, pattern=ShardPattern(pattern))
        views = [] if view is None else [view]
        return FeatureSet(self._objects, _only_one(views, what=what, url=self.url, name=lambda each: each.path))

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.feature_sets()!r}"

    def _repr_html_(self) -> str:
        return html_table(TABLE_HEADER, [_table_row(fs) for fs in self.feature_sets()], caption=self._title())

    def _title(self) -> str:
        return f"featstore.Store({self.url!r}): {counted(len(self), 'feature set')}"


class FeatureSets(tuple[FeatureSet, ...]):
    """A tuple of feature sets that prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        return text_table(TABLE_HEADER, [_table_row(fs) for fs in self])

    def _repr_html_(self) -> str:
        return html_table(TABLE_HEADER, [_table_row(fs) for fs in self])


TABLE_HEADER = ("encoder", "dataset", "split", "clips", "windows", "dim", "frames", "hours")


def _table_row(fs: FeatureSet) -> tuple[str, ...]:
    names = (fs.recipe.group_name, fs.dataset, fs.split)
    frames = f"{fs.n_frames:,}" if fs.has_frames else "-"
    return (*names, f"{fs.n_clips:,}", f"{len(fs):,}", str(fs.recipe.dim), frames, f"{fs.audio_seconds / 3600:.2f}")


def _split_name(name: str) -> tuple[str, str, str]:
    """Split the name of a feature set into encoder, dataset and split."""
    parts = name.split("/") if isinstance(name, str) else []
    if len(parts) != 3 or not all(parts):
        raise UnknownFeatureSet(
            f"the name of a feature set must be ENCODER/DATASET/SPLIT, such as 'logmel/words/train': got {name!r}"
        )
    return parts[0], parts[1], parts[2]


def _is_at(path: str, encoder: str | None, dataset: str | None, split: str | None) -> bool:
    """Whether the path of a split matches the names that are not None."""
    group, its_dataset, its_split = path.split("/")
    return (
        encoder in (None, group, group.rpartition("@")[0])
        and dataset in (None, its_dataset)
        and split in (None, its_split)
    )


def _only_one(found: Sequence[_T], *, what: str, url: str, name: Callable[[_T], str]) -> _T:
    if not found:
        raise UnknownFeatureSet(f"{url} has no {what}: `featstore inspect --store {url}` lists what it has")
    if len(found) > 1:
        listed = ", ".join(map(name, found[:6])) + (", ..." if len(found) > 6 else "")
        raise AmbiguousSelection(f"{url} has more than one {what}: select one of {listed}")
    return found[0]

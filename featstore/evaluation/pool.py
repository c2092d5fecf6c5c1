"""The feature sets of a task, concatenated into one pool of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from shlex import quote
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from featstore.errors import AmbiguousSelection, DataError, UnknownFeatureSet
from featstore.formatting import counted
from featstore.records import Recipe, SkippedClip
from featstore.shard_patterns import ShardPattern
from featstore.shipped import manifest_files

if TYPE_CHECKING:
    from featstore.store import FeatureSet, Store
    from featstore.tasks import Manifest

__all__ = [
    "Pool",
    "Windows",
    "extract_command",
    "read_pool",
    "read_windows",
    "shard_names",
    "task_argument",
    "without_overwritten",
]

# Batch size of X-ARES in windows, which ``--padding xares`` uses too.
XARES_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows of several feature sets, concatenated, with their clips and without their embeddings.

    Attributes
    ----------
    sets : tuple of FeatureSet
        The distinct feature sets.
    seconds : float64 (windows,)
        Duration of each window without padding.
    clip : int64 (windows,)
        Clip of each window, ascending from 0 to ``n_clips - 1``.
    keys, metas : tuple of str (n_clips,)
        Key and JSON of each clip.
    clip_id : tuple of str (n_clips,)
        ``set/key``: unique in the pool, while a key is unique in its set only.
    members : mapping
        Name of a feature set to its clips, int64 (n,).
    features : mapping
        Name of a feature set to its content hash.
    skipped : tuple of SkippedClip
        Clips that are not in the store, each with its reason.
    groups : tuple of str (n_clips,) or None
        Group of each clip, if the manifest names a field for it (``[splits] group``).
    """

    recipe: Recipe
    sets: tuple[FeatureSet, ...]
    seconds: NDArray[np.float64]
    clip: NDArray[np.int64]
    keys: tuple[str, ...]
    metas: tuple[str, ...]
    clip_id: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]
    features: Mapping[str, str]
    skipped: tuple[SkippedClip, ...]
    groups: tuple[str, ...] | None

    @classmethod
    def of(cls, windows: Windows, **more: Any) -> Self:
        """Build a record of this class from the fields of another one and further fields."""
        known = {each.name: getattr(windows, each.name) for each in fields(cls) if hasattr(windows, each.name)}
        return cls(**{**known, **more})

    def windows_of(self, clips: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the windows of some clips, ascending."""
        wanted = np.zeros(len(self.clip_id), bool)
        wanted[clips] = True
        return np.flatnonzero(wanted[self.clip])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Windows):
    """Windows with their utterance vectors: ``X`` float32 (windows, dim), a writable copy."""

    X: NDArray[np.float32]


def read_pool(store: Store, manifest: Manifest, *, encoder: str | None, group: str | None = None) -> Pool:
    """Read each distinct feature set of a task once; ``group`` is as of `read_windows`.

    Raises
    ------
    UnknownFeatureSet
        The store lacks a feature set or the encoder; the message has the command to run.
    DataError
        A set has no clip, or an embedding is not finite.
    """
    windows = read_windows(store, manifest, encoder=encoder, group=group)
    X = np.empty((len(windows.clip), windows.recipe.dim), np.float32)
    first = 0
    for feature_set in windows.sets:
        X[first : first + len(feature_set)] = feature_set.utterance
        first += len(feature_set)
    _check_finite(X, windows.clip, ids=windows.clip_id, task=manifest.name)
    return Pool.of(windows, X=X)


def without_overwritten(pool: Pool) -> Pool:
    """Keep the windows that X-ARES reads back: of the windows of a clip in one batch, only the first.

    X-ARES names a window by its clip and the number of its batch, and webdataset yields the first of several entries
    with the same name. ``sets`` keeps all windows. The sets must be stored under ``--padding xares``, which fixes the
    batches.
    """
    places = [np.arange(segment.member.windows) // XARES_BATCH for each in pool.sets for segment in each.segments]
    batch = np.concatenate(places)
    kept = np.flatnonzero((np.diff(pool.clip, prepend=-1) > 0) | (np.diff(batch, prepend=-1) != 0))
    if len(kept) == len(pool.clip):
        return pool
    return replace(pool, X=pool.X[kept], seconds=pool.seconds[kept], clip=pool.clip[kept])


def read_windows(store: Store, manifest: Manifest, *, encoder: str | None, group: str | None = None) -> Windows:
    """Find each distinct feature set of a task, and read the clips of its windows.

    Parameters
    ----------
    group : str, optional
        Field of a clip's JSON that holds its group; by default that of the manifest.

    Raises
    ------
    UnknownFeatureSet
        The store lacks a feature set or the encoder; the message has the command to run.
    DataError
        A set has no clip.
    LabelError
        There is a group field, and a clip has no group.
    """
    from featstore.tasks.labels import clip_groups

    group = group or manifest.group
    recipe = _recipe_of(store, manifest, encoder)
    sets = _select_all(store, manifest, recipe)
    for name, feature_set in sets.items():
        if not len(feature_set):
            raise DataError(f"task {manifest.name}: {name!r} has no clip; {len(feature_set.skipped)} skipped")

    seconds, clips, members = [], [], {}
    keys: list[str] = []
    metas: list[str] = []
    ids: list[str] = []
    for name, feature_set in sets.items():
        seconds.append(feature_set.seconds)
        clips.append(feature_set.clip + len(keys))
        clip_keys = [str(key) for key in feature_set.clip_key]
        _check_distinct(clip_keys, name=name, task=manifest.name)
        members[name] = np.arange(len(keys), len(keys) + len(clip_keys))
        first_of_clip = np.flatnonzero(np.diff(feature_set.clip, prepend=-1))
        keys += clip_keys
        metas += [str(meta) for meta in feature_set.meta_json[first_of_clip]]
        ids += [f"{name}/{key}" for key in clip_keys]
    return Windows(
        recipe=recipe,
        sets=tuple(sets.values()),
        seconds=np.concatenate(seconds),
        clip=np.concatenate(clips),
        keys=tuple(keys),
        metas=tuple(metas),
        clip_id=tuple(ids),
        members=members,
        features={name: feature_set.content_hash for name, feature_set in sets.items()},
        skipped=tuple(clip for feature_set in sets.values() for clip in feature_set.skipped),
        groups=None if group is None else tuple(clip_groups(manifest, keys, metas, field=group)),
    )


def _recipe_of(store: Store, manifest: Manifest, encoder: str | None) -> Recipe:
    try:
        return store.resolve_encoder(encoder)
    except AmbiguousSelection:
        if encoder is not None or store.feature_sets(dataset=manifest.feature_dataset):
            raise
        command = f"featstore extract {task_argument(manifest)} --encoder ENCODER --data DIR --store {store.url}"
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} has no {manifest.feature_dataset} by any encoder: run `{command}`"
        ) from None


def _check_distinct(keys: Sequence[str], *, name: str, task: str) -> None:
    """Raise DataError for a repeated key: such a clip would be tested twice, or be its own neighbour."""
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise DataError(
                f"task {task}: {name!r} contains clip {key!r} more than once; if a shard was renamed or removed, run "
                "`featstore extract --prune` with the same options to drop shards that no longer exist; if an import "
                "with --replace was interrupted, run it again"
            )
        seen.add(key)


def _select_all(store: Store, manifest: Manifest, recipe: Recipe) -> dict[str, FeatureSet]:
    """Select the shards that match the manifest's patterns, from any split of the store.

    Shards that a glob matches on disk but that are not stored cannot be detected here; `featstore extract` sees them.
    """
    found: dict[str, FeatureSet] = {}
    missing: list[str] = []
    lacking: dict[str, tuple[str, ...]] = {}
    patterns = manifest.patterns
    for name in dict.fromkeys(manifest.feature_sets.values()):
        try:
            found[name] = store.view(
                encoder=recipe.group_name, dataset=manifest.feature_dataset, split=name, pattern=patterns[name]
            )
        except UnknownFeatureSet:
            missing.append(name)
            continue
        if unmatched := ShardPattern(patterns[name]).unmatched(shard_names(found[name])):
            lacking[name] = unmatched
    if missing:
        splits = "".join(f" --split {name}" for name in missing) if found else ""
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} has no {manifest.feature_dataset} {', '.join(missing)} by "
            f"{recipe.group_name}: run `{extract_command(manifest, recipe, store, options=splits)}`"
        )
    if lacking:
        n = sum(map(len, lacking.values()))
        first = next(iter(lacking.values()))[0]
        splits = "".join(f" --split {name}" for name in lacking)
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} lacks {counted(n, 'shard')} of {manifest.feature_dataset} "
            f"{', '.join(lacking)} by {recipe.group_name} that the manifest lists, {first} among them: "
            f"run `{extract_command(manifest, recipe, store, options=splits)}`"
        )
    return found


def shard_names(feature_set: FeatureSet) -> tuple[str, ...]:
    """Names of the shards of a feature set."""
    return tuple(segment.member.shard.name for segment in feature_set.segments)


def task_argument(manifest: Manifest) -> str:
    """The task as an argument of a command. The path of a user's own manifest is not known."""
    return manifest.name if manifest.name in manifest_files() else "MANIFEST"


def extract_command(manifest: Manifest, recipe: Recipe, store: Store, *, options: str) -> str:
    """Return the command that extracts missing embeddings; `options` are those of ``featstore extract``."""
    task = task_argument(manifest)
    if recipe.imported_from is not None:
        words = f" --source {quote(recipe.imported_from)}" if recipe.imported_from else ""
        hop = " --hop SECONDS" if manifest.wants_frames else ""
        return f"featstore import FILE --encoder {recipe.encoder}{words}{hop} --task {task} --store {store.url}"
    spec = store.feature_sets(encoder=recipe.group_name)[0].address.spec  # the encoder's name is not a spec
    pool = "" if recipe.pool == "mean" else f" --pool {recipe.pool}"
    return f"featstore extract {task}{options} --encoder {quote(spec)}{pool} --data DIR --store {store.url}"


def _check_finite(X: NDArray[np.float32], clip: NDArray[np.int64], *, ids: Sequence[str], task: str) -> None:
    # A finite sum proves that a row is finite without a mask as large as the pool; only the other rows are examined.
    with np.errstate(over="ignore", invalid="ignore"):
        suspects = np.flatnonzero(~np.isfinite(X.sum(axis=1)))
    broken = suspects[~np.isfinite(X[suspects]).all(axis=1)]
    if len(broken):
        raise DataError(
            f"task {task}: {len(broken)} of {len(X)} embeddings are not finite, the first in clip "
            f"{ids[clip[broken[0]]]}: `featstore verify --repair` drops damaged parts, extract again to replace them"
        )

"""Public functions that look into a store: `inspect`, `health`, `query` and `diff`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from featstore.api.arguments import StrPath, opened
from featstore.errors import UnknownFeatureSet, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featstore.diagnostics import Health
    from featstore.diagnostics.diff import SpaceDiff
    from featstore.encoders.encoder import Encoder
    from featstore.explore.query import Found
    from featstore.store import FeatureSet, Store
    from featstore.store.summary import Details, Summary

__all__ = ["diff", "health", "inspect", "query"]


def query(
    wanted: StrPath | None = None,
    *,
    text: str | None = None,
    store: Store | StrPath,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    k: int = 10,
    spec: str | None = None,
    device: str = "auto",
) -> Found:
    """Find the cached clips nearest to an audio file, to a cached clip, or to a text.

    Parameters
    ----------
    wanted : str or os.PathLike, optional
        An audio file, or the key of a cached clip; with ``split/`` or ``dataset/split/`` before it where several
        feature sets have the key.
    text : str, optional
        A text in place of `wanted`, for encoders with a text tower. A text that the store has, such as a prompt of a
        task, needs no encoder.
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Search only these feature sets, which are of one encoder.
    k : int
        Number of clips.
    spec : str, optional
        How to load the encoder for a file or a text, where it is not built in.
    device : str
        Where the file or text is encoded.

    Returns
    -------
    Found
        ``hits``, nearest first: ``key``, ``dataset``, ``split``, ``similarity``, ``distance``, ``labels``.

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        There is neither such a clip nor such a file, or no feature set matches.
    featstore.errors.AmbiguousSelection
        The feature sets are of several encoders, or several clips have the key.
    featstore.errors.EncoderError
        The encoder cannot be loaded, or has no text tower.
    featstore.errors.UsageError
        `k` is less than 1, or both or neither of `wanted` and `text` are given.
    """
    from featstore.explore.query import nearest_to_file, nearest_to_key, nearest_to_vector, sets_of_one_encoder

    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}")
    if (wanted is None) == (text is None):
        raise UsageError("give a file, a key or a text to search for, and one of them only")
    cached = opened(store)
    sets = sets_of_one_encoder(cached, encoder=encoder, dataset=dataset, split=split)
    if wanted is None:
        vector = _text_vector(str(text), cached, sets[0], spec=spec, device=device)
        return nearest_to_vector(sets, vector, k=k, name=str(text))
    name = os.fspath(wanted)
    if not os.path.isfile(name):  # noqa: PTH113 - a key may be longer than a file name, for which Path raises
        return nearest_to_key(sets, name, k=k)
    from featstore.extract.single_file import load_encoder_of

    def load(fs: FeatureSet) -> Encoder:
        return load_encoder_of(fs.recipe, stored_spec=fs.address.spec, spec=spec)

    return nearest_to_file(sets, Path(name), load=load, k=k, device=device)


def _text_vector(text: str, store: Store, fs: FeatureSet, *, spec: str | None, device: str) -> NDArray[np.float32]:
    """Vector of a text in the space of a feature set, float32 (dim,): the stored one if there is one."""
    from featstore.store import check_is_space_of_texts

    check_is_space_of_texts(fs.recipe)
    stored = store.texts(fs.recipe.group_name).get(text)
    if stored is not None:
        return stored
    from featstore.extract.single_file import encode_text, load_encoder_of

    encoder = load_encoder_of(fs.recipe, stored_spec=fs.address.spec, spec=spec)
    return encode_text(text, encoder=encoder, recipe=fs.recipe, device=device)


def health(
    store: Store | StrPath,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    label: str | None = None,
    near_cosine: float | None = None,
) -> tuple[Health, ...]:
    """Measure embedding spaces: norms, effective rank, anisotropy, hubness, near-duplicates in other splits.

    Parameters
    ----------
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Measure only these feature sets.
    label : str, optional
        Field of the clips' JSON that holds the class: adds the separability of classes.
    near_cosine : float, optional
        From where on two whitened vectors are near-duplicates; 0.98 by default.

    Returns
    -------
    tuple of Health

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        No feature set matches.
    featstore.errors.LabelError
        A clip has no such field, or several values in it.
    featstore.errors.UsageError
        `near_cosine` is not above 0 and at most 1.
    """
    from featstore.diagnostics import NEAR_COSINE, examine_health

    near = NEAR_COSINE if near_cosine is None else near_cosine
    if not 0 < near <= 1:
        raise UsageError(f"near_cosine must be above 0 and at most 1, got {near:g}")
    cached = opened(store)
    chosen = matching(cached, encoder=encoder, dataset=dataset, split=split)
    return examine_health(chosen, among=cached.feature_sets(), label=label, near_cosine=near)


def diff(
    store: Store | StrPath,
    a: str,
    b: str,
    *,
    store_b: Store | StrPath | None = None,
    dataset: str | None = None,
    split: str | None = None,
    k: int = 10,
    max_clips: int | None = None,
    seed: int = 0,
) -> SpaceDiff:
    """Compare two encoders, layers, precisions or versions on the clips that both have.

    Parameters
    ----------
    store : Store, str or os.PathLike
    a, b : str
        Names in the store (``"logmel"``, or ``"logmel@3f9c2a71"``), imported embeddings included.
    store_b : Store, str or os.PathLike, optional
        Store of `b`; `store` by default.
    dataset, split : str, optional
        Compare only these feature sets.
    k : int
        Number of nearest neighbours.
    max_clips : int, optional
        Of more common clips, a random sample of this size is compared; 5,000 by default.
    seed : int
        Seed of the sample, and of the groups of clips that the intervals leave out.

    Returns
    -------
    SpaceDiff
        ``cka``, ``overlap``, ``index_overlap``, ``procrustes`` and ``rank_correlation``, each with ``value``, ``low``
        and ``high``, and ``moved``, the clips that moved most.

    Raises
    ------
    featstore.errors.UnknownFeatureSet, featstore.errors.AmbiguousSelection
        A store has no such encoder, or several recipes of it.
    featstore.errors.DataError
        The two have fewer than three clips in common.
    featstore.errors.UsageError
        `k` is less than 1, or `max_clips` less than 3.
    """
    from featstore.diagnostics.diff import MAX_CLIPS, compare_spaces

    most = MAX_CLIPS if max_clips is None else max_clips
    if most < 3:
        raise UsageError(f"max_clips must be at least 3, got {most}")
    first = opened(store)
    sets = []
    for cached, name in ((first, a), (first if store_b is None else opened(store_b), b)):
        group = cached.resolve_encoder(name).group_name
        sets.append(matching(cached, encoder=group, dataset=dataset, split=split))
    return compare_spaces(sets[0], sets[1], k=k, max_clips=most, seed=seed)


@overload
def inspect(
    store: Store | StrPath,
    *,
    encoder: str | None = ...,
    dataset: str | None = ...,
    split: str | None = ...,
    details: Literal[False] = ...,
) -> tuple[Summary, ...]: ...
@overload
def inspect(
    store: Store | StrPath,
    *,
    encoder: str | None = ...,
    dataset: str | None = ...,
    split: str | None = ...,
    details: Literal[True],
) -> tuple[Details, ...]: ...
def inspect(
    store: Store | StrPath,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    details: bool = False,
) -> tuple[Summary, ...] | tuple[Details, ...]:
    """Summarise the feature sets of a store.

    Parameters
    ----------
    store : Store, str or os.PathLike
    encoder, dataset, split : str, optional
        Only these feature sets.
    details : bool
        Also recipe, provenance, shards, skipped clips and statistics of the vectors, which are read.

    Returns
    -------
    tuple of Summary or of Details
        In the natural order of encoders.

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        No feature set matches.
    """
    from featstore.store.summary import examine, summarise

    chosen = matching(opened(store), encoder=encoder, dataset=dataset, split=split)
    return tuple(map(examine, chosen)) if details else tuple(map(summarise, chosen))


def matching(store: Store, *, encoder: str | None, dataset: str | None, split: str | None) -> list[FeatureSet]:
    """The selected feature sets in the natural order of encoders; all of them, perhaps none, if nothing is selected."""
    from featstore.report.tables import natural

    chosen = store.feature_sets(encoder=encoder, dataset=dataset, split=split)
    wanted = (encoder, dataset, split)
    if not chosen and any(wanted):
        raise UnknownFeatureSet(
            f"{store.url} has no feature set {'/'.join(name or '*' for name in wanted)}: "
            f"`featstore inspect --store {store.url}` lists all"
        )
    return sorted(chosen, key=lambda fs: (natural(fs.encoder), fs.recipe.fingerprint))

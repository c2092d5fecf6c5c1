"""Vectors of texts by an encoder's text tower, beside the feature sets of the encoder.

The texts of a task are a split ``ENCODER@fingerprint/.text/TASK`` with one shard, ``texts``, and a window for each
text: ``key`` is the text, ``utterance`` its vector. The ``sha256`` of the shard identifies the texts and the text
tower, so that a part is replaced when either changes. The name of the group starts with a dot: readers and commands of
older versions ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.records import Recipe, sha256_of
from featstore.store.catalogue import SplitEntry, read_split, read_splits, split_paths
from featstore.store.documents import SplitAddress
from featstore.store.filesystem import Objects, open_objects
from featstore.store.format import TEXT_GROUP, Member, ShardIdentity
from featstore.store.part_writer import WindowBlock
from featstore.store.writer import open_split_writer_at

__all__ = ["check_is_space_of_texts", "has_texts", "is_space_of_texts", "text_entries", "write_texts"]

_SHARD = "texts"


def is_space_of_texts(recipe: Recipe) -> bool:
    """Whether vectors of texts are in the space of a recipe: it is of what ``forward`` returns, and of the mean."""
    return "layer" not in recipe.encoder_identity and recipe.pool == "mean"


def check_is_space_of_texts(recipe: Recipe) -> None:
    """Raise UsageError unless vectors of texts are in the space of a recipe."""
    if not is_space_of_texts(recipe):
        raise UsageError(
            f"{recipe.group_name} cannot be compared with texts: these are in the space of the encoder's own output, "
            "pooled by the mean, and not of its layers and other pools"
        )


def text_entries(objects: Objects, encoder: str) -> Iterator[SplitEntry]:
    """Yield the texts of each task, in order of the tasks' names; `encoder` is the name of a group, ``clap@3f9c2a71``.

    Raises
    ------
    DamagedPart
        A document is damaged.
    """
    return read_splits(objects, split_paths(objects, encoder=encoder, dataset=TEXT_GROUP, texts=True))


def has_texts(url: str, recipe: Recipe, task: str, *, texts: Sequence[str], tower_sha256: str) -> bool:
    """Whether the store has the vectors of exactly these texts of a task by this text tower."""
    entry = read_split(open_objects(url), _address(recipe, task, spec="").path)
    wanted = _identity(texts, tower_sha256)
    return entry is not None and any(each.member.shard.sha256 == wanted for each in entry.segments)


def write_texts(
    url: str,
    recipe: Recipe,
    task: str,
    *,
    spec: str,
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    tower_sha256: str,
    versions: Mapping[str, str],
) -> None:
    """Store the vectors of the texts of a task in place of its earlier ones.

    Parameters
    ----------
    recipe : Recipe
        Recipe of the feature sets in whose space the vectors are.
    spec : str
        Spec of the encoder on the command line.
    texts : sequence of str
        Distinct.
    vectors : float32 (texts, dim)
    tower_sha256 : str
        Hash of what determines the vectors besides the recipe.
    versions : mapping
        Versions of the software that made the vectors.

    Raises
    ------
    StoreError
        The store cannot be written.
    """
    n = len(texts)
    shard = ShardIdentity(name=_SHARD, size=vectors.nbytes, sha256=_identity(texts, tower_sha256))
    writer = open_split_writer_at(open_objects(url), _address(recipe, task, spec=spec))
    with writer.begin_part(_SHARD) as part:
        part.add_block(
            WindowBlock(
                keys=list(texts),
                metas=[json.dumps({"text": text}, ensure_ascii=False) for text in texts],
                start_seconds=np.zeros(n),
                seconds=np.zeros(n),
                utterance=vectors,
                frames=None,
                frame_counts=None,
            )
        )
        member = Member(shard=shard, clips=n, windows=n, frames=0, audio_seconds=0.0, skipped=())
        part.commit([member], frames_stored=False, versions=versions)
    writer.sweep()
    writer.write_catalogue()


def _address(recipe: Recipe, task: str, *, spec: str) -> SplitAddress:
    return SplitAddress(recipe=recipe, spec=spec, dataset=TEXT_GROUP, crop_seconds=None, split=task)


def _identity(texts: Sequence[str], tower_sha256: str) -> str:
    return sha256_of({"texts": list(texts), "tower": tower_sha256})

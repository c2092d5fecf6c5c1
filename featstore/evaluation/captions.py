"""Data sets of kind ``contrastive``: the captions of clips, and retrieval of both by cosine similarity.

Metrics are computed over the test clips of a round and all of their captions:

- text to audio: the query is a caption, its clip is relevant; audio to text: the query is a clip, its captions are;
- recall@k: the fraction of queries with a relevant result among the first k; mAP@10: see `average_precision_at`;
- ``recall_at_1``, the main metric, is the mean over both directions, as in X-ARES.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.evaluation.data import Samples, group_windows
from featstore.evaluation.pool import Pool
from featstore.evaluation.runner import encoders_with
from featstore.metrics import TestSet
from featstore.metrics.retrieval import average_precision_at, relevant_ranks
from featstore.records import Protocol
from featstore.tasks import labels

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["CaptionQueries", "ClipCaptions", "encoders_to_retrieve", "for_test_clips", "queries_of", "read_captions"]

RECALLS = (1, 5, 10)
MAP_AT = 10
AUDIO_TO_TEXT, TEXT_TO_AUDIO = 0, 1
DIRECTIONS = ("audio_to_text", "text_to_audio")

Ranks = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ranks of the relevant results of each query, by direction: see `featstore.metrics.retrieval.relevant_ranks`."""


def for_test_clips(manifest: Manifest) -> Manifest:
    """Return the manifest of the test clips of a data set with captions; other manifests, and folds, are unchanged."""
    if manifest.kind != "contrastive" or manifest.splits is None:
        return manifest
    splits = manifest.splits.model_copy(update={"train": manifest.splits.test, "valid": manifest.splits.test})
    return manifest.model_copy(update={"splits": splits})


def encoders_to_retrieve(store: Store, manifest: Manifest) -> list[str]:
    """Return the encoders that have what measures without training read: of captions, the test clips only."""
    return encoders_with(store, for_test_clips(manifest))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCaptions:
    """Captions of all clips; the captions of a clip are consecutive.

    Attributes
    ----------
    clip : int64 (captions,)
        Clip of each caption, ascending.
    texts : tuple of str (captions,)
    """

    clip: NDArray[np.int64]
    texts: tuple[str, ...]

    def n_shared(self, captions: NDArray[np.int64]) -> int:
        """Number of captions that occur in another clip too; for these, only one of the clips can rank first."""
        clips_of: dict[str, set[int]] = {}
        for caption in captions.tolist():
            clips_of.setdefault(self.texts[caption], set()).add(int(self.clip[caption]))
        return sum(len(clips_of[self.texts[caption]]) > 1 for caption in captions.tolist())

    def of(self, clip: int) -> NDArray[np.int64]:
        """Captions of a clip."""
        return np.arange(*np.searchsorted(self.clip, [clip, clip + 1]))


def read_captions(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> ClipCaptions:
    """Read the captions of clips. Raises LabelError if a clip has none."""
    by_clip = labels.captions(manifest, keys, metas)
    return ClipCaptions(
        clip=np.repeat(np.arange(len(by_clip)), [len(captions) for captions in by_clip]),
        texts=tuple(caption for captions in by_clip for caption in captions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionQueries:
    """Items (clips, or windows under ``xares``) and their captions, which are queries and documents of each other.

    Attributes
    ----------
    samples : Samples
        The items; targets are their clips.
    caption : int64 (captions,)
    caption_item : int64 (captions,)
        Item of each caption, ascending.
    """

    samples: Samples
    caption: NDArray[np.int64]
    caption_item: NDArray[np.int64]

    def items(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mean of the vectors of each item's windows (windows, dim), weighted by duration: float32 (items, dim)."""
        weights, starts = self.samples.weights[:, None], self.samples.starts
        summed = np.add.reduceat(vectors * weights, starts, axis=0)
        return np.asarray(summed / np.add.reduceat(weights, starts, axis=0), np.float32)

    def ranks(self, audio: NDArray[np.float32], text: NDArray[np.float32]) -> Ranks:
        """Rank by the dot products of vectors of the items (items, dim) and of the captions (captions, dim)."""
        items = np.arange(len(self.samples.clip))
        return (
            relevant_ranks(audio, text, query_clip=items, document_clip=self.caption_item),
            relevant_ranks(text, audio, query_clip=self.caption_item, document_clip=items),
        )

    def test_set(self, ranks: Sequence[Ranks]) -> TestSet:
        """Queries of both directions, and the rank of the first relevant result for each seed."""
        direction = np.repeat([AUDIO_TO_TEXT, TEXT_TO_AUDIO], [len(self.samples.clip), len(self.caption)])
        return TestSet(
            y_true=direction,
            y_scores=tuple(np.concatenate([of[:, 0] for of in both]).astype(np.float64) for both in ranks),
            clip=np.concatenate([self.samples.clip, self.samples.clip[self.caption_item]]),
        )

    def details(self, ranks: Sequence[Ranks], captions: ClipCaptions) -> dict[str, Any]:
        """Numbers of captions, and recalls and mAP@10 by direction, means over seeds."""
        scores = [self._scores(of) for of in ranks]
        details: dict[str, Any] = {
            "n_captions": len(self.caption),
            "n_shared_captions": captions.n_shared(np.unique(self.caption)),
            **{
                name: {key: float(np.mean([of[name][key] for of in scores])) for key in scores[0][name]}
                for name in DIRECTIONS
            },
        }
        return details

    def _scores(self, ranks: Ranks) -> Mapping[str, Mapping[str, float]]:
        n_relevant = (np.bincount(self.caption_item), np.ones(len(self.caption), np.int64))
        return {
            direction: {
                **{f"recall_at_{k}": float(np.mean(of[:, 0] <= k)) for k in RECALLS},
                f"map_at_{MAP_AT}": float(np.mean(average_precision_at(of, k=MAP_AT, n_relevant=number))),
            }
            for direction, of, number in zip(DIRECTIONS, ranks, n_relevant, strict=True)
        }


def queries_of(pool: Pool, captions: ClipCaptions, clips: NDArray[np.int64], *, protocol: Protocol) -> CaptionQueries:
    """Queries and documents of some clips, in both directions."""
    of_clips = np.arange(len(pool.clip_id))
    samples = group_windows(clips, clip=pool.clip, seconds=pool.seconds, values=of_clips, protocol=protocol)
    found = [captions.of(each) for each in samples.clip.tolist()]
    return CaptionQueries(
        samples=samples,
        caption=np.concatenate(found),
        caption_item=np.repeat(np.arange(len(found)), [len(each) for each in found]),
    )

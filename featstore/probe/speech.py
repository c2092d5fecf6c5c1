"""Clips as frame sequences with transcripts, length-sorted batches, and error rates of recognised texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from featstore.errors import DataError
from featstore.evaluation.frames import FrameReader, read_frames
from featstore.evaluation.layers import LayerFamily, find_family, frames_of_layers
from featstore.evaluation.pool import Windows, read_windows
from featstore.metrics import TestSet
from featstore.metrics.word_error_rate import count_edits
from featstore.probe import layer_mix
from featstore.probe.scoring import RoundResult
from featstore.probe.standardisation import Standardisation, Standardise
from featstore.records import Protocol
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.training import Fitted
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Sequences", "compare_texts", "length_batches", "open_sequences"]


MAX_BATCH_FRAMES = 2**17
"""Default frames per padded batch: 400 MiB of float32 at 768 dimensions."""

LENGTH_JITTER = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Clips of a task. The windows of a clip form one sequence in time order, under both protocols.

    Attributes
    ----------
    windows : Windows
    reader : FrameReader
        Frames of each window; of all layers, concatenated, if there is a ``family``.
    n_frames : int64 (n_clips,)
        Number of frames of each clip.
    transcripts : tuple of str (n_clips,)
        Raw transcripts.
    family : LayerFamily or None
        The layers of a layer mix.
    """

    windows: Windows
    reader: FrameReader
    n_frames: NDArray[np.int64]
    transcripts: tuple[str, ...]
    family: LayerFamily | None = None

    def frames(self, clip: int) -> NDArray[np.float32]:
        """Frames of one clip, float32 (n_frames[clip], layers x dim), copied. Raises DataError if one is not finite."""
        windows = range(*np.searchsorted(self.windows.clip, [clip, clip + 1]).tolist())
        frames = np.concatenate([self.reader[window] for window in windows], dtype=np.float32)
        if not np.isfinite(frames).all():
            raise DataError(
                f"clip {self.windows.clip_id[clip]} has frames with non-finite values: run `featstore verify "
                "--repair` to drop damaged parts, then extract again"
            )
        return frames

    def normalisation(self, clips: NDArray[np.int64]) -> nn.Module:
        """Build the first layer of a strict head: standardise by the frames of some clips; then mix the layers."""
        statistics = Standardisation.of_chunks(map(self.frames, clips.tolist()))
        if self.family is None:
            return Standardise(statistics)
        frames = map(self.frames, clips.tolist())
        products = layer_mix.frame_products(frames, statistics, n_layers=len(self.family.layers))
        return nn.Sequential(Standardise(statistics), layer_mix.LayerSum(products))


def open_sequences(
    store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol, every_layer: bool = False
) -> Sequences:
    """Open the frames and read the transcripts of a task.

    ``strict`` omits frames of padding; ``xares`` uses all stored frames. With ``every_layer``, ``encoder`` is the name
    of one without a layer.

    Raises
    ------
    UnknownFeatureSet
        The store lacks feature sets, frames or the encoder; the message gives the command to run.
    LabelError
        A clip has no valid transcript.
    DataError
        A set has no clip, or a window has no frame.
    """
    from featstore.tasks import labels

    family = find_family(store, manifest, encoder) if every_layer else None
    windows = read_windows(store, manifest, encoder=encoder if family is None else family.recipes[-1].group_name)
    reader = read_frames(store, manifest, windows, protocol=protocol)
    if family is not None:
        reader, features = frames_of_layers(store, manifest, family, windows, reader, protocol=protocol)
        windows = replace(windows, features=features)
    return Sequences(
        windows=windows,
        reader=reader,
        n_frames=np.bincount(windows.clip, weights=reader.lengths, minlength=len(windows.clip_id)).astype(np.int64),
        transcripts=tuple(labels.transcripts(manifest, windows.keys, windows.metas)),
        family=family,
    )


def length_batches(
    clips: NDArray[np.int64],
    n_frames: NDArray[np.int64],
    *,
    batch_size: int,
    rng: np.random.Generator | None,
    max_frames: int = MAX_BATCH_FRAMES,
) -> list[NDArray[np.int64]]:
    """Batches of clips of similar length; every clip occurs once.

    Parameters
    ----------
    clips : int64 (n,)
        Indices into ``n_frames``.
    rng : numpy Generator or None
        Shuffles clips of similar length and the order of batches. None: sorted by length.
    max_frames : int
        Maximum frames of a batch, padding included; a longer clip is a batch by itself.
    """
    length = n_frames[clips].astype(np.float64)
    if rng is not None:
        length *= rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(clips))
    ranked = clips[np.argsort(length, kind="stable")]
    batches: list[NDArray[np.int64]] = []
    start, longest = 0, 0
    for at, clip in enumerate(ranked):
        longer = max(longest, int(n_frames[clip]))
        if at > start and (at - start == batch_size or longer * (at - start + 1) > max_frames):
            batches.append(ranked[start:at])
            start, longer = at, int(n_frames[clip])
        longest = longer
    if len(ranked):
        batches.append(ranked[start:])
    return batches if rng is None else [batches[at] for at in rng.permutation(len(batches))]


N_EXAMPLES = 5


def compare_texts(
    each: Round,
    *,
    clips: NDArray[np.int64],
    references: Sequence[str],
    recognised: Sequence[Sequence[str]],
    fits: Sequence[Fitted],
    details: Mapping[str, Any],
) -> RoundResult:
    """Count the edits between reference texts and recognised texts of a round's test clips.

    Parameters
    ----------
    clips : int64 (n,)
        The test clips, in the order of ``references``.
    references : sequence of str (n,)
        True texts, normalised for scoring.
    recognised : sequence of sequence of str (seeds, n)
        Recognised texts, normalised likewise.
    details : mapping
        Further numbers of the round.
    """
    words = [count_edits(references, texts, unit="word") for texts in recognised]
    characters = [count_edits(references, texts, unit="character") for texts in recognised]
    return RoundResult(
        round=each,
        test_set=TestSet(
            y_true=words[0].n_reference,
            y_scores=tuple(of.n_edits.astype(np.float64) for of in words),
            clip=clips,
        ),
        fits=tuple(fits),
        details={
            "wer": float(np.mean([of.rate for of in words])),
            "cer": float(np.mean([of.rate for of in characters])),
            **details,
            "examples": [list(pair) for pair in zip(references[:N_EXAMPLES], recognised[0][:N_EXAMPLES], strict=True)],
        },
    )

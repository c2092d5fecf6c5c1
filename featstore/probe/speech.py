"""Clips as frame sequences with transcripts, length-sorted batches, and error rates of recognised texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UnknownFeatureSet
from featstore.evaluation.pool import Windows, extract_command, read_windows
from featstore.metrics import TestSet
from featstore.metrics.word_error_rate import count_edits
from featstore.probe.scoring import RoundResult
from featstore.probe.standardisation import Standardisation
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
    window_frames : int64 (windows,)
        Number of frames to read from each window.
    n_frames : int64 (n_clips,)
        Number of frames of each clip.
    transcripts : tuple of str (n_clips,)
        Raw transcripts.
    """

    windows: Windows
    window_frames: NDArray[np.int64]
    n_frames: NDArray[np.int64]
    transcripts: tuple[str, ...]

    def frames(self, clip: int) -> NDArray[np.float32]:
        """Frames of one clip, float32 (n_frames[clip], dim), copied. Raises DataError if one is not finite."""
        sizes = [len(each) for each in self.windows.sets]
        firsts = np.cumsum([0, *sizes])
        begin, end = np.searchsorted(self.windows.clip, [clip, clip + 1])
        frames = np.empty((int(self.n_frames[clip]), self.windows.recipe.dim), np.float32)
        done = 0
        for window in range(int(begin), int(end)):
            number = int(np.searchsorted(firsts, window, side="right")) - 1
            count = int(self.window_frames[window])
            stored = self.windows.sets[number].frames[window - int(firsts[number])]
            frames[done : done + count] = stored[:count]
            done += count
        if not np.isfinite(frames).all():
            raise DataError(
                f"clip {self.windows.ids[clip]} has frames with non-finite values: run `featstore verify --repair` to "
                "drop damaged parts, then extract again"
            )
        return frames

    def standardisation(self, clips: NDArray[np.int64]) -> Standardisation:
        """Mean and variance of all frames of some clips, computed clip by clip."""
        return Standardisation.of_chunks(self.frames(clip) for clip in clips.tolist())


def open_sequences(store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol) -> Sequences:
    """Open the frames and read the transcripts of a task.

    ``strict`` omits frames of padding; ``xares`` uses all stored frames.

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

    windows = read_windows(store, manifest, encoder=encoder)
    without = sorted({each.split for each in windows.sets if not each.has_frames})
    if without:
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} has no frames of {manifest.feature_dataset} {', '.join(without)}: "
            f"run `{extract_command(manifest, windows.recipe, store, options=' --frames always')}`"
        )
    stored = np.concatenate([each.frames.lengths for each in windows.sets])
    if not stored.all():
        key = windows.ids[int(windows.clip[int(np.argmin(stored))])]
        raise DataError(f"task {manifest.name}: clip {key} has a window without frames: extract it again")
    real = np.maximum(1, np.rint(windows.seconds / windows.recipe.hop_seconds)).astype(np.int64)
    kept = stored if protocol == "xares" else np.minimum(stored, real)
    return Sequences(
        windows=windows,
        window_frames=kept,
        n_frames=np.bincount(windows.clip, weights=kept, minlength=len(windows.ids)).astype(np.int64),
        transcripts=tuple(labels.transcripts(manifest, windows.keys, windows.metas)),
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

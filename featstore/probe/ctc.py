"""Speech recognition by a linear CTC head over frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.errors import DataError
from featstore.evaluation import Stopwatch
from featstore.evaluation.data import plan_task
from featstore.metrics.word_error_rate import InverseErrorRate, count_edits, require_jiwer
from featstore.probe.layer_mix import learned_weights
from featstore.probe.scoring import RoundResult, verdict
from featstore.probe.speech import Sequences, compare_texts, length_batches, open_sequences
from featstore.probe.text import BLANK, Alphabet, normalised
from featstore.probe.training import FittedModel, Score, initialised, over_seeds, train
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["CtcHead", "Utterances", "rows_needed", "score_ctc", "upsampling_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """A batch: frames float32 (n_frames, dim) and transcript symbols int64 (n,) of each clip."""

    frames: Sequence[NDArray[np.float32]]
    symbols: Sequence[NDArray[np.int64]]


class CtcHead(nn.Module):
    """Linear CTC head with ``upsampling`` rows of symbol scores per frame, in time order."""

    def __init__(self, *, dim: int, n_symbols: int, upsampling: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.n_symbols, self.upsampling = n_symbols, upsampling
        self.norm = nn.LayerNorm(dim) if norm is None else norm
        self.linear = nn.Linear(dim, n_symbols * upsampling)

    def forward(self, frames: Tensor) -> Tensor:
        """Scores (n_frames * upsampling, n_symbols) of frames (n_frames, dim), of one clip or several concatenated."""
        scores: Tensor = self.linear(self.norm(frames))
        return scores.reshape(-1, self.n_symbols)

    @torch.no_grad()
    def best_symbols(self, frames: NDArray[np.float32]) -> NDArray[np.int64]:
        """Most likely symbol of every row, int64 (n_frames * upsampling,)."""
        best: NDArray[np.int64] = self(torch.from_numpy(frames)).argmax(dim=1).numpy()
        return best

    def loss(self, batch: Utterances) -> Tensor:
        """CTC loss per symbol, averaged over clips; 0 for a clip with fewer rows than its text needs."""
        scores = self(torch.from_numpy(np.concatenate(batch.frames)))
        n_rows = [len(frames) * self.upsampling for frames in batch.frames]
        padded = nn.utils.rnn.pad_sequence(list(scores.log_softmax(dim=1).split(n_rows)))
        return functional.ctc_loss(
            padded,
            torch.from_numpy(np.concatenate(batch.symbols)),
            torch.tensor(n_rows),
            torch.tensor([len(symbols) for symbols in batch.symbols]),
            blank=BLANK,
            zero_infinity=True,
        )


MAX_UPSAMPLING = 8
SHARE_THAT_FITS = 0.99


def score_ctc(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
) -> ScoreRecord:
    """Score a task of kind ``ctc`` on its stored frames.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks frames that the task needs; the message gives the command to run.
    LabelError, DataError
        The transcripts or the frames are invalid.
    UsageError
        jiwer is not installed.
    """
    require_jiwer()
    watch = Stopwatch()
    with watch("read"):
        sequences = open_sequences(store, manifest, encoder=encoder, protocol=protocol, every_layer=head == "layer-mix")
        texts = tuple(map(normalised, sequences.transcripts))
        rounds = plan_task(manifest, sequences.windows, protocol=protocol)
    tested = []
    for number, each in enumerate(rounds):
        with watch("train"):
            speller = _speller(manifest, sequences, texts, each)
            trained = over_seeds(seeds, partial(_train, manifest, speller, each, number=number, head=head))
        with watch("score"):
            tested.append(_test(speller, each, trained))
    return verdict(
        manifest,
        sequences.windows,
        tested,
        metric=InverseErrorRate(),
        protocol=protocol,
        seeds=seeds,
        head=head,
        settings={},
        seconds=watch.seconds,
        family=sequences.family,
        libraries=("torch",),
    )


def rows_needed(symbols: NDArray[np.int64]) -> int:
    """Rows of scores that CTC needs for a text: one per symbol, and one blank between equal neighbours.

    >>> rows_needed(np.array([1, 2, 2, 3]))
    5
    """
    return len(symbols) + int(np.sum(symbols[1:] == symbols[:-1]))


def upsampling_for(needed: NDArray[np.int64], n_frames: NDArray[np.int64]) -> int:
    """Rows per frame: the smallest number that suffices for 99 % of the clips, at most `MAX_UPSAMPLING`.

    >>> upsampling_for(np.array([5, 7]), np.array([10, 3]))
    3
    """
    ratio = np.sort(np.ceil(needed / n_frames))
    enough = ratio[max(0, int(np.ceil(SHARE_THAT_FITS * len(ratio))) - 1)]
    return int(np.clip(enough, 1, MAX_UPSAMPLING))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speller:
    """Alphabet of a round, with the text and symbols of each clip."""

    sequences: Sequences
    texts: tuple[str, ...]
    alphabet: Alphabet
    symbols: tuple[NDArray[np.int64], ...]
    upsampling: int

    def utterances(self, clips: NDArray[np.int64]) -> Utterances:

        return Utterances(
            frames=[self.sequences.frames(clip) for clip in clips.tolist()],
            symbols=[self.symbols[clip] for clip in clips],
        )

    def transcribe(self, head: CtcHead, clips: NDArray[np.int64]) -> list[str]:
        """Transcribe some clips by greedy decoding."""
        return [self.alphabet.collapse(head.best_symbols(self.sequences.frames(clip))) for clip in clips.tolist()]


def _speller(manifest: Manifest, sequences: Sequences, texts: tuple[str, ...], each: Round) -> _Speller:
    alphabet = Alphabet.of(texts[clip] for clip in each.train)
    if not alphabet.characters:
        raise DataError(
            f"task {manifest.name}, round {each.name!r}: no letter in any of {len(each.train)} training transcripts"
        )
    symbols = tuple(map(alphabet.encode, texts))
    needed = np.array([rows_needed(symbols[clip]) for clip in each.train])
    return _Speller(
        sequences=sequences,
        texts=texts,
        alphabet=alphabet,
        symbols=symbols,
        upsampling=upsampling_for(needed, sequences.n_frames[each.train]),
    )


def _train(
    manifest: Manifest,
    speller: _Speller,
    each: Round,
    *,
    number: int,
    head: Head,
    seed: int,
    rates: Sequence[float],
) -> FittedModel[CtcHead]:
    """Train a head, selected by word error rate. The rate is not clipped at 1, which would make early epochs equal."""
    sequences, probe = speller.sequences, manifest.probe
    dim = sequences.windows.recipe.dim
    norm = None if head == "linear" else sequences.normalisation(each.train)

    def build(rng: np.random.Generator) -> CtcHead:
        return initialised(
            lambda: CtcHead(
                dim=dim, n_symbols=len(speller.alphabet), upsampling=speller.upsampling, norm=deepcopy(norm)
            ),
            rng,
        )

    def batches(rng: np.random.Generator) -> Iterator[Utterances]:
        planned = length_batches(each.train, sequences.n_frames, batch_size=probe.batch_size, rng=rng)
        return map(speller.utterances, planned)

    def score(model: CtcHead) -> Score:
        references = [speller.texts[clip] for clip in each.valid]
        rate = count_edits(references, speller.transcribe(model, each.valid), unit="word").rate
        return 1.0 - rate, 0.0 if head == "linear" else -loss(model)

    @torch.no_grad()
    def loss(model: CtcHead) -> float:
        planned = length_batches(each.valid, sequences.n_frames, batch_size=probe.batch_size, rng=None)
        return sum(float(model.loss(speller.utterances(batch))) * len(batch) for batch in planned)

    found = train(
        build,
        seed=(seed, number),
        batches=batches,
        loss=CtcHead.loss,
        score=score if len(each.valid) else None,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
        rates=None if head == "linear" else rates,
    )
    return found.using(found.model, layer_weights=learned_weights(found.model))


def _test(speller: _Speller, each: Round, trained: Sequence[FittedModel[CtcHead]]) -> RoundResult:
    needed = np.array([rows_needed(speller.symbols[clip]) for clip in each.train])
    too_short = needed > speller.sequences.n_frames[each.train] * speller.upsampling
    return compare_texts(
        each,
        clips=each.test,
        references=[speller.texts[clip] for clip in each.test],
        recognised=[speller.transcribe(found.model, each.test) for found in trained],
        fits=trained,
        details={
            "alphabet": "".join(speller.alphabet.characters),
            "upsampling": speller.upsampling,
            "train_clips_too_short": int(too_short.sum()),
        },
    )

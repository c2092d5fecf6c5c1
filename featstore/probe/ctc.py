"""Speech recognition that a laptop can train: a linear head that spells frames out in characters.

``strict`` trains on standardised frames until validation stops improving (see `featstore.probe.plateau`), ``xares`` by
X-ARES's schedule, though X-ARES has no such task. Transcripts are learned and scored in the form that
`featstore.probe.text.normalised` gives them; decoding is greedy, without a language model.

CTC needs a row of scores for each character, and one more between two that are equal. Where frames are fewer, the head
gives several rows for each: the least number, up to `MAX_UPSAMPLING`, that does for 99 % of the training clips. Clips
that still have too few are left out of the loss, and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.metrics.wer import InverseErrorRate, count_edits, require_jiwer
from featstore.probe.error_rates import compare_texts
from featstore.probe.sequences import Sequences, length_batches, open_sequences
from featstore.probe.text import Alphabet, normalised
from featstore.probe.verdict import RoundResult, plan, verdict
from featstore.records import Protocol, ScoreRecord
from featstore.splits import Round
from featstore.taskdata import Stopwatch

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.probe.ctc_head import CtcHead, Utterances
    from featstore.probe.fitting import Fitted
    from featstore.probe.selection import Head
    from featstore.store import Store

__all__ = ["rows_needed", "score_ctc", "upsampling_for"]

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
    """Score a task of kind ``ctc`` on its cached frames.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The transcripts or the frames cannot be learned from.
    UsageError
        jiwer is not installed.
    """
    require_jiwer()
    watch = Stopwatch()
    with watch("read"):
        sequences = open_sequences(store, manifest, encoder=encoder, protocol=protocol)
        texts = tuple(map(normalised, sequences.transcripts))
        rounds = plan(manifest, sequences.windows, protocol=protocol)
    from featstore.probe.plateau import over_seeds

    tested = []
    for number, each in enumerate(rounds):
        with watch("train"):
            speller = _speller(manifest, sequences, texts, each)
            trained = over_seeds(
                seeds, partial(_train, manifest, speller, each, number=number, head=head), fit_of=lambda found: found[1]
            )
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
        libraries=("torch",),
    )


def rows_needed(symbols: NDArray[np.int64]) -> int:
    """Rows of scores that CTC needs for a text: one for each symbol, and a blank between two that are equal.

    >>> rows_needed(np.array([1, 2, 2, 3]))
    5
    """
    return len(symbols) + int(np.sum(symbols[1:] == symbols[:-1]))


def upsampling_for(needed: NDArray[np.int64], n_frames: NDArray[np.int64]) -> int:
    """Rows for each frame: the least number that does for 99 % of the clips, at most `MAX_UPSAMPLING`.

    >>> upsampling_for(np.array([5, 7]), np.array([10, 3]))
    3
    """
    ratio = np.sort(np.ceil(needed / n_frames))
    enough = ratio[max(0, int(np.ceil(SHARE_THAT_FITS * len(ratio))) - 1)]
    return int(np.clip(enough, 1, MAX_UPSAMPLING))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Speller:
    """A round's alphabet, and what is said in each clip, in text and in symbols."""

    sequences: Sequences
    texts: tuple[str, ...]
    alphabet: Alphabet
    symbols: tuple[NDArray[np.int64], ...]
    upsampling: int

    def utterances(self, clips: NDArray[np.int64]) -> Utterances:
        from featstore.probe.ctc_head import Utterances

        return Utterances(
            frames=[self.sequences.frames(clip) for clip in clips.tolist()],
            symbols=[self.symbols[clip] for clip in clips],
        )

    def read_aloud(self, head: CtcHead, clips: NDArray[np.int64]) -> list[str]:
        """What a head makes of some clips."""
        return [self.alphabet.collapse(head.best_symbols(self.sequences.frames(clip))) for clip in clips.tolist()]


def _speller(manifest: Manifest, sequences: Sequences, texts: tuple[str, ...], each: Round) -> _Speller:
    alphabet = Alphabet.of(texts[clip] for clip in each.train)
    if not alphabet.characters:
        raise DataError(
            f"task {manifest.name}, round {each.name!r}: none of {len(each.train)} training transcripts has a letter"
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
) -> tuple[CtcHead, Fitted]:
    """A head, selected by word error rate that is not cut off at 1, which would tell no early epoch from another."""
    import torch

    from featstore.probe.ctc_head import CtcHead
    from featstore.probe.fitting import fit, initialised
    from featstore.probe.plateau import Standardise, sweep_module

    sequences, probe = speller.sequences, manifest.probe
    dim = sequences.windows.recipe.dim
    norm = Standardise(sequences.standardisation(each.train)) if head == "sweep" else None

    def build(rng: np.random.Generator) -> CtcHead:
        return initialised(
            lambda: CtcHead(dim=dim, n_symbols=len(speller.alphabet), upsampling=speller.upsampling, norm=norm), rng
        )

    def batches(rng: np.random.Generator) -> Iterator[Utterances]:
        planned = length_batches(each.train, sequences.n_frames, batch_size=probe.batch_size, rng=rng)
        return map(speller.utterances, planned)

    def score(model: CtcHead) -> float:
        references = [speller.texts[clip] for clip in each.valid]
        return 1.0 - count_edits(references, speller.read_aloud(model, each.valid), unit="word").rate

    def loss(model: CtcHead) -> float:
        planned = length_batches(each.valid, sequences.n_frames, batch_size=probe.batch_size, rng=None)
        with torch.no_grad():
            return sum(float(model.loss(speller.utterances(batch))) * len(batch) for batch in planned)

    if head == "sweep":
        return sweep_module(
            build,
            seed=(seed, number),
            batches=batches,
            loss=lambda model, batch: model.loss(batch),
            score=(lambda model: (score(model), -loss(model))) if len(each.valid) else None,
            rates=rates,
            without_validation=(probe.epochs, probe.learning_rate),
        )
    rng = np.random.default_rng((seed, number))
    model = build(rng)
    fitted = fit(
        model,
        batches=lambda: batches(rng),
        loss=model.loss,
        score=(lambda: score(model)) if len(each.valid) else None,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
    )
    return model, fitted


def _test(speller: _Speller, each: Round, trained: list[tuple[CtcHead, Fitted]]) -> RoundResult:
    needed = np.array([rows_needed(speller.symbols[clip]) for clip in each.train])
    too_short = needed > speller.sequences.n_frames[each.train] * speller.upsampling
    return compare_texts(
        each,
        clips=each.test,
        references=[speller.texts[clip] for clip in each.test],
        said=[speller.read_aloud(head, each.test) for head, _ in trained],
        fits=[fitted for _, fitted in trained],
        details={
            "alphabet": "".join(speller.alphabet.characters),
            "upsampling": speller.upsampling,
            "train_clips_too_short": int(too_short.sum()),
        },
    )

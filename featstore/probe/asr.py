"""Speech recognition by a frozen language model that hears through a gated adapter, as X-ARES has it.

What the protocols differ in:

============================  ==================================  ===================================
.                             ``strict``                          ``xares``
============================  ==================================  ===================================
transcripts                   normalised, learned and scored      as written; lower case when scored
an epoch is selected by       the loss of validation tokens       words of teacher-forced texts
generation                    greedy; as long as the longest      greedy; repetition penalty 1.1,
                              training transcript and 10 tokens   at most 200 tokens
============================  ==================================  ===================================

X-ARES selects on texts whose every token was guessed from the true ones before it, cut off where the true text ends
(its source calls that cheating, "but just for validation"). The test is by generation in both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UsageError
from featstore.metrics.wer import InverseErrorRate, count_edits, require_jiwer
from featstore.probe.error_rates import compare_texts
from featstore.probe.sequences import Sequences, length_batches, open_sequences
from featstore.probe.text import normalised
from featstore.probe.verdict import RoundResult, plan, verdict
from featstore.records import Protocol, ScoreRecord
from featstore.splits import Round
from featstore.taskdata import Stopwatch

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.probe.asr_model import Listener, Utterances
    from featstore.probe.fitting import Fitted
    from featstore.probe.selection import Head
    from featstore.probe.text_models import LanguageModel
    from featstore.store import Store

__all__ = ["score_asr"]

XARES_MAX_NEW_TOKENS = 200
XARES_REPETITION_PENALTY = 1.1
SPARE_TOKENS = 10


def score_asr(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
) -> ScoreRecord:
    """Score a task of kind ``asr`` on its cached frames, with the language model that ``[probe]`` names.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The transcripts or the frames cannot be learned from, or are more than the language model takes.
    UsageError
        A library is missing, or the language model cannot be had.
    """
    require_jiwer()
    if manifest.probe.language_model is None:
        raise UsageError(
            f"task {manifest.name}: speech recognition takes a language model: give its folder or hub name as "
            '[probe] language_model, such as "Qwen/Qwen2.5-0.5B"'
        )
    from featstore.probe.asr_model import listening_device, load_language_model

    watch = Stopwatch()
    with watch("read"):
        sequences = open_sequences(store, manifest, encoder=encoder, protocol=protocol)
        rounds = plan(manifest, sequences.windows, protocol=protocol)
        language_model = load_language_model(manifest.probe.language_model, device=listening_device())
        spoken = _spoken(manifest, sequences, language_model, protocol=protocol)
    from featstore.probe.plateau import over_seeds

    tested = []
    for number, each in enumerate(rounds):
        with watch("train"):
            trained = over_seeds(
                seeds,
                partial(_train, manifest, spoken, each, number=number, head=head, protocol=protocol),
                fit_of=lambda found: found[1],
            )
        with watch("score"):
            tested.append(_test(manifest, spoken, each, trained, protocol=protocol))
    return verdict(
        manifest,
        sequences.windows,
        tested,
        metric=InverseErrorRate(),
        protocol=protocol,
        seeds=seeds,
        head=head,
        settings={"language_model_sha256": language_model.sha256},
        seconds=watch.seconds,
        libraries=("torch", "transformers"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spoken:
    """What is said in each clip: the text to learn, its tokens, and the text to score by."""

    sequences: Sequences
    language_model: LanguageModel
    texts: tuple[str, ...]
    tokens: tuple[list[int], ...]
    protocol: Protocol

    def utterances(self, clips: NDArray[np.int64]) -> Utterances:
        from featstore.probe.asr_model import Utterances

        return Utterances(
            frames=[self.sequences.frames(clip) for clip in clips.tolist()],
            tokens=[self.tokens[clip] for clip in clips],
        )

    def room_for(self, clips: NDArray[np.int64]) -> int:
        """How many tokens the language model can add to the frames of a batch."""
        most = self.language_model.max_positions
        return sys.maxsize if most is None else most - int(self.sequences.n_frames[clips].max()) - 1

    def scored(self, text: str) -> str:
        """Give a text the form that words are compared in."""
        return text.lower() if self.protocol == "xares" else normalised(text)

    def references(self, clips: NDArray[np.int64]) -> list[str]:
        """Texts of some clips, in that form."""
        return [self.scored(self.texts[clip]) for clip in clips]


def _spoken(manifest: Manifest, sequences: Sequences, language_model: LanguageModel, *, protocol: Protocol) -> _Spoken:
    texts = tuple(sequences.transcripts if protocol == "xares" else map(normalised, sequences.transcripts))
    tokens = tuple(map(language_model.encode, texts))
    most = language_model.max_positions
    long = [
        clip
        for clip, (n_frames, ids) in enumerate(zip(sequences.n_frames.tolist(), tokens, strict=True))
        if most is not None and n_frames + len(ids) + SPARE_TOKENS + 2 > most
    ]
    if long:
        raise DataError(
            f"task {manifest.name}: clip {sequences.windows.ids[long[0]]} and {len(long) - 1} more are too long for "
            f"{language_model.name}, which takes {most} positions: {sequences.n_frames[long[0]]} frames and "
            f"{len(tokens[long[0]])} tokens came"
        )
    return _Spoken(sequences=sequences, language_model=language_model, texts=texts, tokens=tokens, protocol=protocol)


def _train(
    manifest: Manifest,
    spoken: _Spoken,
    each: Round,
    *,
    number: int,
    head: Head,
    protocol: Protocol,
    seed: int,
    rates: Sequence[float],
) -> tuple[Listener, Fitted]:
    from featstore.probe.asr_model import Adapter, Listener
    from featstore.probe.fitting import fit, initialised
    from featstore.probe.plateau import Standardise, sweep_module

    probe, sequences, model = manifest.probe, spoken.sequences, spoken.language_model
    norm = Standardise(sequences.standardisation(each.train)) if head == "sweep" else None

    def build(rng: np.random.Generator) -> Adapter:
        dim, inner_width, width = sequences.windows.recipe.dim, model.inner_width, model.width
        adapter = initialised(lambda: Adapter(dim=dim, inner_width=inner_width, width=width, norm=norm), rng)
        return adapter.to(model.model.device)

    def batches(rng: np.random.Generator) -> Iterator[Utterances]:
        planned = length_batches(each.train, sequences.n_frames, batch_size=probe.batch_size, rng=rng)
        return map(spoken.utterances, planned)

    def score(adapter: Adapter) -> float:
        listener = Listener(model, adapter)
        planned = length_batches(each.valid, sequences.n_frames, batch_size=probe.batch_size, rng=None)
        if protocol == "xares":
            return _told_words_right(spoken, listener, planned)
        sums = [listener.told_loss(spoken.utterances(batch)) for batch in planned]
        return -sum(total for total, _ in sums) / sum(count for _, count in sums)

    if head == "sweep":
        adapter, fitted = sweep_module(
            build,
            seed=(seed, number),
            batches=batches,
            loss=lambda adapter, batch: Listener(model, adapter).loss(batch),
            score=(lambda adapter: (score(adapter), 0.0)) if len(each.valid) else None,
            rates=rates,
            without_validation=(probe.epochs, probe.learning_rate),
        )
        return Listener(model, adapter), fitted
    rng = np.random.default_rng((seed, number))
    adapter = build(rng)
    listener = Listener(model, adapter)
    fitted = fit(
        adapter,
        batches=lambda: batches(rng),
        loss=listener.loss,
        score=(lambda: score(adapter)) if len(each.valid) else None,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
    )
    return listener, fitted


def _told_words_right(spoken: _Spoken, listener: Listener, planned: Sequence[NDArray[np.int64]]) -> float:
    """Score teacher-forced texts, cut off where the true ones end, as X-ARES selects."""
    clips = np.concatenate(planned)
    said = [text for batch in planned for text in listener.told_texts(spoken.utterances(batch))]
    cut = [spoken.scored(text[: len(spoken.texts[clip])]) for clip, text in zip(clips, said, strict=True)]
    return max(0.0, 1.0 - count_edits(spoken.references(clips), cut, unit="word").rate)


def _test(
    manifest: Manifest,
    spoken: _Spoken,
    each: Round,
    trained: Sequence[tuple[Listener, Fitted]],
    *,
    protocol: Protocol,
) -> RoundResult:
    batches = length_batches(each.test, spoken.sequences.n_frames, batch_size=manifest.probe.batch_size, rng=None)
    clips = np.concatenate(batches)
    longest = max(len(spoken.tokens[clip]) for clip in each.train)
    most = XARES_MAX_NEW_TOKENS if protocol == "xares" else longest + SPARE_TOKENS
    said = [
        [
            spoken.scored(text)
            for batch in batches
            for text in listener.listen(
                spoken.utterances(batch).frames,
                max_new_tokens=min(most, spoken.room_for(batch)),
                repetition_penalty=XARES_REPETITION_PENALTY if protocol == "xares" else 1.0,
            )
        ]
        for listener, _ in trained
    ]
    return compare_texts(
        each,
        clips=clips,
        references=spoken.references(clips),
        said=said,
        fits=[fitted for _, fitted in trained],
        details={},
    )

"""Speech recognition by a frozen language model with a gated adapter, as in X-ARES."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featstore.errors import DataError, UsageError
from featstore.evaluation import Stopwatch
from featstore.metrics.word_error_rate import InverseErrorRate, count_edits, require_jiwer
from featstore.probe.scoring import RoundResult, plan, verdict
from featstore.probe.speech import Sequences, compare_texts, length_batches, open_sequences
from featstore.probe.standardisation import Standardise
from featstore.probe.text import load_language_model, normalised
from featstore.probe.training import Fitted, Score, initialised, over_seeds, train
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.probe.text import LanguageModel
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Adapter", "Listener", "Utterances", "listening_device", "load_language_model", "score_asr"]


NO_LABEL = -100


def listening_device() -> torch.device:
    """A GPU where there is one: half a billion weights are much for a CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """A batch: frames float32 (n_frames, dim) of each clip, and the tokens of what is said in it."""

    frames: Sequence[NDArray[np.float32]]
    tokens: Sequence[Sequence[int]]


class Adapter(nn.Module):
    """Frames (..., dim) to embeddings (..., width), gated (SwiGLU, Shazeer 2020)."""

    def __init__(self, *, dim: int, inner_width: int, width: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.gate = nn.Linear(dim, inner_width)
        self.value = nn.Linear(dim, inner_width)
        self.out = nn.Linear(inner_width, width)

    def forward(self, frames: Tensor) -> Tensor:
        """Embeddings."""
        frames = self.norm(frames)
        embeddings: Tensor = self.out(functional.silu(self.gate(frames)) * self.value(frames))
        return embeddings


@dataclass(frozen=True, slots=True, kw_only=True)
class _Padded:
    """Left-padded input of the model: embeddings (batch, length, width), 1 where real, positions, (batch, length)."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor


class Listener:
    """A language model that hears through an adapter; only the adapter learns."""

    def __init__(self, language_model: LanguageModel, adapter: Adapter) -> None:
        self.language_model = language_model
        self.adapter = adapter.to(language_model.model.device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.language_model.model.device
        return device

    def loss(self, batch: Utterances) -> Tensor:
        """Mean cross-entropy of the tokens of all texts and of their ends, each given those before it."""
        logits, labels = self._teach(batch)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL)

    @torch.no_grad()
    def told_loss(self, batch: Utterances) -> tuple[float, int]:
        """Sum of the same cross-entropy, and over how many tokens it is."""
        logits, labels = self._teach(batch)
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return float(total), int((labels != NO_LABEL).sum())

    @torch.no_grad()
    def told_texts(self, batch: Utterances) -> list[str]:
        """Texts of the likeliest tokens, each given the true ones before it."""
        logits, labels = self._teach(batch)
        best = logits.argmax(dim=2)
        return [
            self.language_model.decode(row[known].tolist()) for row, known in zip(best, labels != NO_LABEL, strict=True)
        ]

    @torch.no_grad()
    def listen(
        self, frames: Sequence[NDArray[np.float32]], *, max_new_tokens: int, repetition_penalty: float
    ) -> list[str]:
        """Generate the text of each clip, greedily."""
        padded = self._padded(frames, [[self.language_model.separator] for _ in frames])
        with self._autocast():
            made = self.language_model.generate(
                padded.embeddings,
                padded.mask,
                max_new_tokens=max_new_tokens,
                repetition_penalty=repetition_penalty,
            )
        return [self.language_model.decode(row) for row in made]

    def _teach(self, batch: Utterances) -> tuple[Tensor, Tensor]:
        """Logits (batch, longest, vocabulary) from the separators on, and the tokens that should come (batch, longest).

        Texts end together on the right, so that the vocabulary's worth of logits is made for them alone.
        """
        texts = [[*tokens, self.language_model.end] for tokens in batch.tokens]
        longest = max(map(len, texts))
        padded = self._padded(batch.frames, [[self.language_model.separator, *text[:-1]] for text in texts])
        labels = [[NO_LABEL] * (longest - len(text)) + text for text in texts]
        with self._autocast():
            output: Any = self.language_model.model(
                inputs_embeds=padded.embeddings,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                logits_to_keep=longest,
                use_cache=False,
            )
        return output.logits[:, -longest:], torch.tensor(labels, device=self.device)

    def _padded(self, frames: Sequence[NDArray[np.float32]], tokens: Sequence[Sequence[int]]) -> _Padded:
        heard = self.adapter(torch.from_numpy(np.concatenate(frames)).to(self.device)).split([len(f) for f in frames])
        dtype = self.language_model.model.dtype
        rows = [
            torch.cat([audio.to(dtype), self.language_model.embed(torch.tensor(text, device=self.device))])
            for audio, text in zip(heard, tokens, strict=True)
        ]
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(embeddings.shape[1], device=self.device) >= embeddings.shape[1] - lengths[:, None]).long()
        return _Padded(embeddings=embeddings, mask=mask, positions=(mask.cumsum(dim=1) - 1).clamp(min=0))

    def _autocast(self) -> AbstractContextManager[Any]:
        # The model's own weights are bfloat16 on a GPU; autocast is for what it casts by itself.
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()


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

    watch = Stopwatch()
    with watch("read"):
        sequences = open_sequences(store, manifest, encoder=encoder, protocol=protocol)
        rounds = plan(manifest, sequences.windows, protocol=protocol)
        language_model = load_language_model(manifest.probe.language_model, device=listening_device())
        spoken = _spoken(manifest, sequences, language_model, protocol=protocol)
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
    probe, sequences, model = manifest.probe, spoken.sequences, spoken.language_model
    norm = Standardise(sequences.standardisation(each.train)) if head == "sweep" else None

    def build(rng: np.random.Generator) -> Adapter:
        dim, inner_width, width = sequences.windows.recipe.dim, model.inner_width, model.width
        adapter = initialised(lambda: Adapter(dim=dim, inner_width=inner_width, width=width, norm=norm), rng)
        return adapter.to(model.model.device)

    def batches(rng: np.random.Generator) -> Iterator[Utterances]:
        planned = length_batches(each.train, sequences.n_frames, batch_size=probe.batch_size, rng=rng)
        return map(spoken.utterances, planned)

    def score(adapter: Adapter) -> Score:
        listener = Listener(model, adapter)
        planned = length_batches(each.valid, sequences.n_frames, batch_size=probe.batch_size, rng=None)
        if protocol == "xares":
            return _told_words_right(spoken, listener, planned), 0.0
        sums = [listener.told_loss(spoken.utterances(batch)) for batch in planned]
        return -sum(total for total, _ in sums) / sum(count for _, count in sums), 0.0

    adapter, fitted = train(
        build,
        seed=(seed, number),
        batches=batches,
        loss=lambda adapter, batch: Listener(model, adapter).loss(batch),
        score=score if len(each.valid) else None,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
        rates=rates if head == "sweep" else None,
    )
    return Listener(model, adapter), fitted


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

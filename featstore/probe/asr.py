"""Speech recognition by a frozen language model with a gated adapter, as in X-ARES."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
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
from featstore.evaluation.data import plan_task
from featstore.metrics.word_error_rate import InverseErrorRate, count_edits, require_jiwer
from featstore.probe.layer_mix import learned_weights
from featstore.probe.scoring import RoundResult, verdict
from featstore.probe.speech import Sequences, compare_texts, length_batches, open_sequences
from featstore.probe.text import load_language_model, normalised
from featstore.probe.training import FittedModel, Score, initialised, over_seeds, train
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.probe.text import LanguageModel
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["Adapter", "AudioLanguageModel", "Utterances", "default_device", "load_language_model", "score_asr"]


NO_LABEL = -100


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU: language models have some 500 million weights."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterances:
    """A batch: frames float32 (n_frames, dim) and transcript tokens of each clip."""

    frames: Sequence[NDArray[np.float32]]
    tokens: Sequence[Sequence[int]]


class Adapter(nn.Module):
    """Gated projection (SwiGLU, Shazeer 2020) of frames (..., dim) to embeddings (..., width)."""

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
    """Left-padded input of the model: embeddings (batch, length, width), mask and positions (batch, length)."""

    embeddings: Tensor
    mask: Tensor
    positions: Tensor


class AudioLanguageModel:
    """A frozen language model that takes audio frames through a trainable adapter."""

    def __init__(self, language_model: LanguageModel, adapter: Adapter) -> None:
        self.language_model = language_model
        self.adapter = adapter.to(language_model.model.device)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        device: torch.device = self.language_model.model.device
        return device

    def loss(self, batch: Utterances) -> Tensor:
        """Mean cross-entropy of all text tokens and end tokens, with teacher forcing."""
        logits, labels = self._teacher_forced(batch)
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL)

    @torch.no_grad()
    def teacher_forced_loss(self, batch: Utterances) -> tuple[float, int]:
        """Sum of the cross-entropy of `loss`, and the number of its tokens."""
        logits, labels = self._teacher_forced(batch)
        total = functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return float(total), int((labels != NO_LABEL).sum())

    @torch.no_grad()
    def teacher_forced_texts(self, batch: Utterances) -> list[str]:
        """Decode the most likely token at each position, with teacher forcing."""
        logits, labels = self._teacher_forced(batch)
        best = logits.argmax(dim=2)
        return [
            self.language_model.decode(row[known].tolist()) for row, known in zip(best, labels != NO_LABEL, strict=True)
        ]

    @torch.no_grad()
    def generate(
        self, frames: Sequence[NDArray[np.float32]], *, max_new_tokens: int, repetition_penalty: float
    ) -> list[str]:
        """Generate the text of each clip by greedy decoding."""
        padded = self._padded(frames, [[self.language_model.separator] for _ in frames])
        with self._autocast():
            generated = self.language_model.generate(
                padded.embeddings,
                padded.mask,
                max_new_tokens=max_new_tokens,
                repetition_penalty=repetition_penalty,
            )
        return [self.language_model.decode(row) for row in generated]

    def _teacher_forced(self, batch: Utterances) -> tuple[Tensor, Tensor]:
        """Logits (batch, longest, vocabulary) from the separators on, and target tokens (batch, longest).

        Texts are aligned on the right, so that logits are computed for text positions only.
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
        embedded = self.adapter(torch.from_numpy(np.concatenate(frames)).to(self.device)).split(
            [len(f) for f in frames]
        )
        dtype = self.language_model.model.dtype
        rows = [
            torch.cat([audio.to(dtype), self.language_model.embed(torch.tensor(text, device=self.device))])
            for audio, text in zip(embedded, tokens, strict=True)
        ]
        embeddings = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = (torch.arange(embeddings.shape[1], device=self.device) >= embeddings.shape[1] - lengths[:, None]).long()
        return _Padded(embeddings=embeddings, mask=mask, positions=(mask.cumsum(dim=1) - 1).clamp(min=0))

    def _autocast(self) -> AbstractContextManager[Any]:
        # The model's weights are bfloat16 on a GPU already; autocast covers the adapter.
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
    """Score a task of kind ``asr`` on its stored frames, with the language model that ``[probe]`` names.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks frames that the task needs; the message gives the command to run.
    LabelError, DataError
        The transcripts or the frames are invalid, or exceed the positions of the language model.
    UsageError
        A library is missing, or the language model cannot be loaded.
    """
    require_jiwer()
    if manifest.probe.language_model is None:
        raise UsageError(
            f"task {manifest.name}: speech recognition needs a language model: set its folder or hub name as "
            '[probe] language_model, such as "Qwen/Qwen2.5-0.5B"'
        )

    watch = Stopwatch()
    with watch("read"):
        sequences = open_sequences(store, manifest, encoder=encoder, protocol=protocol, every_layer=head == "layer-mix")
        rounds = plan_task(manifest, sequences.windows, protocol=protocol)
        language_model = load_language_model(manifest.probe.language_model, device=default_device())
        transcripts = _transcripts(manifest, sequences, language_model, protocol=protocol)
    tested = []
    for number, each in enumerate(rounds):
        with watch("train"):
            trained = over_seeds(
                seeds,
                partial(_train, manifest, transcripts, each, number=number, head=head, protocol=protocol),
            )
        with watch("score"):
            tested.append(_test(manifest, transcripts, each, trained, protocol=protocol))
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
        family=sequences.family,
        libraries=("torch", "transformers"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transcripts:
    """Transcripts of all clips: texts and tokens to train on, and texts to score."""

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

    def max_new_tokens(self, clips: NDArray[np.int64]) -> int:
        """Number of tokens that the language model can generate after the longest clip of a batch."""
        most = self.language_model.max_positions
        return sys.maxsize if most is None else most - int(self.sequences.n_frames[clips].max()) - 1

    def scored(self, text: str) -> str:
        """Normalise a text as the protocol scores it."""
        return text.lower() if self.protocol == "xares" else normalised(text)

    def references(self, clips: NDArray[np.int64]) -> list[str]:
        """Reference texts of some clips, normalised."""
        return [self.scored(self.texts[clip]) for clip in clips]


def _transcripts(
    manifest: Manifest, sequences: Sequences, language_model: LanguageModel, *, protocol: Protocol
) -> _Transcripts:
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
            f"task {manifest.name}: clip {sequences.windows.clip_id[long[0]]} and {len(long) - 1} more are too long "
            f"for {language_model.name}, which has {most} positions: the first has {sequences.n_frames[long[0]]} "
            f"frames and {len(tokens[long[0]])} tokens"
        )
    return _Transcripts(
        sequences=sequences, language_model=language_model, texts=texts, tokens=tokens, protocol=protocol
    )


def _train(
    manifest: Manifest,
    transcripts: _Transcripts,
    each: Round,
    *,
    number: int,
    head: Head,
    protocol: Protocol,
    seed: int,
    rates: Sequence[float],
) -> FittedModel[AudioLanguageModel]:
    probe, sequences, model = manifest.probe, transcripts.sequences, transcripts.language_model
    norm = None if head == "linear" else sequences.normalisation(each.train)

    def build(rng: np.random.Generator) -> Adapter:
        dim, inner_width, width = sequences.windows.recipe.dim, model.inner_width, model.width
        adapter = initialised(lambda: Adapter(dim=dim, inner_width=inner_width, width=width, norm=deepcopy(norm)), rng)
        return adapter.to(model.model.device)

    def batches(rng: np.random.Generator) -> Iterator[Utterances]:
        planned = length_batches(each.train, sequences.n_frames, batch_size=probe.batch_size, rng=rng)
        return map(transcripts.utterances, planned)

    def score(adapter: Adapter) -> Score:
        recogniser = AudioLanguageModel(model, adapter)
        planned = length_batches(each.valid, sequences.n_frames, batch_size=probe.batch_size, rng=None)
        if protocol == "xares":
            return _teacher_forced_accuracy(transcripts, recogniser, planned), 0.0
        sums = [recogniser.teacher_forced_loss(transcripts.utterances(batch)) for batch in planned]
        return -sum(total for total, _ in sums) / sum(count for _, count in sums), 0.0

    found = train(
        build,
        seed=(seed, number),
        batches=batches,
        loss=lambda adapter, batch: AudioLanguageModel(model, adapter).loss(batch),
        score=score if len(each.valid) else None,
        epochs=probe.epochs,
        learning_rate=probe.learning_rate,
        rates=None if head == "linear" else rates,
    )
    return found.using(AudioLanguageModel(model, found.model), layer_weights=learned_weights(found.model))


def _teacher_forced_accuracy(
    transcripts: _Transcripts, recogniser: AudioLanguageModel, planned: Sequence[NDArray[np.int64]]
) -> float:
    """Word accuracy of teacher-forced texts, each cut at the length of its reference, as X-ARES selects."""
    clips = np.concatenate(planned)
    recognised = [text for batch in planned for text in recogniser.teacher_forced_texts(transcripts.utterances(batch))]
    cut = [
        transcripts.scored(text[: len(transcripts.texts[clip])]) for clip, text in zip(clips, recognised, strict=True)
    ]
    return max(0.0, 1.0 - count_edits(transcripts.references(clips), cut, unit="word").rate)


def _test(
    manifest: Manifest,
    transcripts: _Transcripts,
    each: Round,
    trained: Sequence[FittedModel[AudioLanguageModel]],
    *,
    protocol: Protocol,
) -> RoundResult:
    batches = length_batches(each.test, transcripts.sequences.n_frames, batch_size=manifest.probe.batch_size, rng=None)
    clips = np.concatenate(batches)
    longest = max(len(transcripts.tokens[clip]) for clip in each.train)
    most = XARES_MAX_NEW_TOKENS if protocol == "xares" else longest + SPARE_TOKENS
    recognised = [
        [
            transcripts.scored(text)
            for batch in batches
            for text in found.model.generate(
                transcripts.utterances(batch).frames,
                max_new_tokens=min(most, transcripts.max_new_tokens(batch)),
                repetition_penalty=XARES_REPETITION_PENALTY if protocol == "xares" else 1.0,
            )
        ]
        for found in trained
    ]
    return compare_texts(
        each,
        clips=clips,
        references=transcripts.references(clips),
        recognised=recognised,
        fits=trained,
        details={},
    )

"""Kind ``contrastive``: audio-text retrieval by cosine similarity in a learned shared space.

`featstore.evaluation.captions` has the metrics.

X-ARES repeats each clip once per caption in training and scores only the first copy. It requires one window and the
same number of captions per clip, where its metric equals the one above. The protocols differ in the queries of audio to
text (``strict``: a clip, whose windows are averaged by their seconds; ``xares``: a window) and in the loss: see
`featstore.probe.contrastive_model.objective_of`.

Tokens that no training caption has are dropped under ``strict``; under ``xares`` they keep their random initial
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.evaluation import Stopwatch
from featstore.evaluation.captions import CaptionQueries, ClipCaptions, Ranks, queries_of, read_captions
from featstore.evaluation.data import plan_task
from featstore.evaluation.pool import Pool, read_pool
from featstore.metrics.retrieval import RecallAt
from featstore.probe import contrastive_model
from featstore.probe.contrastive_model import Captions, Embedder, Pairs
from featstore.probe.scoring import RoundResult, verdict
from featstore.probe.text import load_tokenizer, words
from featstore.probe.training import FittedModel, over_seeds
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["score_contrastive"]

WORDS = "words"
NO_TOKEN = 0


def score_contrastive(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
) -> ScoreRecord:
    """Score a task of kind ``contrastive`` on its stored utterance vectors.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The captions or the embeddings are invalid.
    UsageError
        The metric is not ``recall_at_1``, or the tokenizer cannot be loaded.
    """
    if manifest.metric != "recall_at_1":
        raise UsageError(f"task {manifest.name}: a contrastive task is scored by recall_at_1, got {manifest.metric!r}")
    watch = Stopwatch()
    with watch("read"):
        pool = read_pool(store, manifest, encoder=encoder)
        texts = _read_texts(manifest, pool)
        rounds = plan_task(manifest, pool, protocol=protocol)
    tested = []
    for number, each in enumerate(rounds):
        captions = texts.known_to(each) if protocol == "strict" else texts.captions
        data = _RoundData(pool=pool, texts=texts, captions=captions, protocol=protocol)
        with watch("train"):
            trained = over_seeds(seeds, partial(_train, manifest, data, each, number=number, head=head))
        with watch("score"):
            tested.append(_test(data, each, trained))
    return verdict(
        manifest,
        pool,
        tested,
        metric=RecallAt(k=1),
        protocol=protocol,
        seeds=seeds,
        head=head,
        settings=texts.settings,
        seconds=watch.seconds,
        libraries=("torch", *texts.libraries),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts(ClipCaptions):
    """Captions of all clips, and their tokens."""

    captions: Captions
    settings: Mapping[str, Any]
    libraries: tuple[str, ...]

    def known_to(self, each: Round) -> Captions:
        """Captions without tokens that do not occur in training; a caption without tokens becomes ``[NO_TOKEN]``."""
        all_tokens = self.captions
        trained = np.flatnonzero(np.isin(self.clip, each.train))
        seen = np.zeros(all_tokens.n_tokens, bool)
        seen[all_tokens.take(trained)[0]] = True
        seen[NO_TOKEN] = False
        by_caption = np.split(all_tokens.tokens, all_tokens.bounds[1:-1])
        return _as_captions([tokens[seen[tokens]] for tokens in by_caption], n_tokens=all_tokens.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RoundData:
    """Data of a round; ``captions`` are those of `texts`, restricted to its training tokens under ``strict``."""

    pool: Pool
    texts: _Texts
    captions: Captions
    protocol: Protocol

    def pairs(self, clips: NDArray[np.int64]) -> Pairs:
        """All pairs of a window of some clips and a caption of its clip."""
        windows = self.pool.windows_of(clips)
        captions = [self.texts.of(clip) for clip in self.pool.clip[windows].tolist()]
        window = np.repeat(windows, [len(each) for each in captions])
        return Pairs(window=window, caption=np.concatenate(captions), clip=self.pool.clip[window])

    def queries(self, clips: NDArray[np.int64]) -> CaptionQueries:
        """Queries and documents of some clips, in both directions."""
        return queries_of(self.pool, self.texts, clips, protocol=self.protocol)

    def ranks(self, model: Embedder, queries: CaptionQueries) -> Ranks:
        """Ranks of the relevant results by direction."""
        audio = queries.items(model.embed_audio(self.pool.X[queries.samples.windows]))
        return queries.ranks(audio, model.embed_captions(*self.captions.take(queries.caption)))


def _read_texts(manifest: Manifest, pool: Pool) -> _Texts:
    read = read_captions(manifest, pool.keys, pool.metas)
    tokenized: Sequence[Sequence[str | int]]
    if manifest.probe.tokenizer is None:
        tokenized = [words(caption) for caption in read.texts]
        settings: dict[str, Any] = {"tokenizer": WORDS}
        libraries: tuple[str, ...] = ()
    else:
        tokenizer = load_tokenizer(manifest.probe.tokenizer)
        tokenized = tokenizer.tokens(read.texts)
        settings = {"tokenizer": tokenizer.name, "tokenizer_sha256": tokenizer.sha256}
        libraries = ("transformers",)
    # Token numbers start at 1 and cover only tokens that occur.
    number: dict[str | int, int] = {}
    ids = [np.array([number.setdefault(token, len(number) + 1) for token in tokens], np.int64) for tokens in tokenized]
    return _Texts(
        clip=read.clip,
        texts=read.texts,
        captions=_as_captions(ids, n_tokens=len(number) + 1),
        settings=settings,
        libraries=libraries,
    )


def _as_captions(by_caption: Sequence[NDArray[np.int64]], *, n_tokens: int) -> Captions:
    """Concatenate the tokens of all captions; a caption without tokens becomes ``[NO_TOKEN]``."""
    filled = [tokens if len(tokens) else np.array([NO_TOKEN]) for tokens in by_caption]
    return Captions(tokens=np.concatenate(filled), bounds=np.cumsum([0, *map(len, filled)]), n_tokens=n_tokens)


def _train(
    manifest: Manifest,
    data: _RoundData,
    each: Round,
    *,
    number: int,
    head: Head,
    seed: int,
    rates: Sequence[float],
) -> FittedModel[Embedder]:
    """Train a model; the mean recall@1 over both directions selects its epoch."""
    queries = data.queries(each.valid) if len(each.valid) else None

    def score(model: Embedder) -> tuple[float, float]:
        """Mean recall@1 and, as a tie-breaker, mean reciprocal rank over both directions."""
        ranks = () if queries is None else data.ranks(model, queries)
        recalls, reciprocals = ([np.mean(of[:, 0] <= 1) for of in ranks], [np.mean(1.0 / of[:, 0]) for of in ranks])
        return float(np.mean(recalls)), float(np.mean(reciprocals))

    return contrastive_model.train(
        data.pool.X,
        data.captions,
        data.pairs(each.train),
        objective=contrastive_model.objective_of(data.protocol),
        score=None if queries is None else score,
        seed=(seed, number),
        epochs=manifest.probe.epochs,
        batch_size=manifest.probe.batch_size,
        learning_rate=manifest.probe.learning_rate,
        rates=rates if head == "sweep" else None,
    )


def _test(data: _RoundData, each: Round, trained: Sequence[FittedModel[Embedder]]) -> RoundResult:
    queries = data.queries(each.test)
    ranks = [data.ranks(found.model, queries) for found in trained]
    return RoundResult(
        round=each,
        test_set=queries.test_set(ranks),
        fits=tuple(trained),
        details=queries.details(ranks, data.texts),
    )

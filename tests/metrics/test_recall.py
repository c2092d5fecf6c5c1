"""Cross-modal retrieval metrics against a ranking that is written out query by query, and against X-ARES's layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import DataError
from featstore.metrics import TestSet
from featstore.metrics.retrieval import RecallAt, average_precision_at, relevant_ranks
from intervals import interval

seeds = st.integers(0, 2**32 - 1)


def ranked_one_by_one(queries, documents, query_clip, document_clip):
    """For every query: the ranks of its relevant documents, a tie lost to every other document."""
    found = []
    for query, clip in zip(queries, query_clip, strict=True):
        relevance = [
            (float(document @ query), of != clip) for document, of in zip(documents, document_clip, strict=True)
        ]
        order = sorted(relevance, key=lambda pair: (-pair[0], not pair[1]))
        found.append([rank for rank, (_, other) in enumerate(order, start=1) if not other])
    return found


@settings(max_examples=60)
@given(seed=seeds, n_clips=st.integers(1, 12), most=st.integers(1, 6), levels=st.integers(1, 4))
def test_ranks_are_those_of_sorting_one_by_one_ties_included(seed, n_clips, most, levels):
    rng = np.random.default_rng(seed)
    document_clip = np.repeat(np.arange(n_clips), rng.integers(1, most + 1, n_clips))
    rng.shuffle(document_clip)
    # Small whole numbers: products are exact, and ties are many.
    queries = rng.integers(-levels, levels + 1, (n_clips, 3)).astype(np.float32)
    documents = rng.integers(-levels, levels + 1, (len(document_clip), 3)).astype(np.float32)
    query_clip = rng.permutation(n_clips)
    ranks = relevant_ranks(queries, documents, query_clip=query_clip, document_clip=document_clip)
    expected = ranked_one_by_one(queries, documents, query_clip, document_clip)
    for row, known in zip(ranks, expected, strict=True):
        assert row[: len(known)].tolist() == known
        assert (row[len(known) :] == len(documents) + 1).all()
    average = average_precision_at(ranks, k=10, n_relevant=np.array([len(known) for known in expected]))
    for value, known in zip(average, expected, strict=True):
        hits = [any(rank == at for rank in known) for at in range(1, 11)]
        precision = [sum(hits[: at + 1]) / (at + 1) for at in range(10) if hits[at]]
        assert value == pytest.approx(sum(precision) / min(10, len(known)))


def x_ares_layout(audio, text, n_captions):
    """What X-ARES computes: every clip as many times as it has captions, then the first copy of each."""
    copies = np.repeat(audio, n_captions, axis=0)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (copies, text)]
    similarity = unit[0] @ unit[1].T
    recall, precision = [], []
    place = np.argsort(np.argsort(-similarity[::n_captions], axis=1), axis=1)
    own = np.stack([row[at * n_captions : (at + 1) * n_captions] for at, row in enumerate(place)])
    recall.append([np.mean(own.min(axis=1) < k) for k in (1, 5, 10)])
    ordered = np.sort(own + 1, axis=1)
    precision.append(np.mean(np.where(ordered <= 10, np.arange(1, n_captions + 1) / ordered, 0)))
    place = np.argsort(np.argsort(-similarity.T[:, ::n_captions], axis=1), axis=1)
    own = place[np.arange(len(text)), np.arange(len(text)) // n_captions]
    recall.append([np.mean(own < k) for k in (1, 5, 10)])
    precision.append(np.mean(np.where(own < 10, 1 / (own + 1), 0)))
    return np.mean(recall, axis=0), np.mean(precision)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, n_captions=st.integers(1, 5))
def test_with_as_many_captions_for_each_clip_the_scores_are_those_of_x_ares(seed, n_captions):
    rng = np.random.default_rng(seed)
    audio = rng.standard_normal((40, 8)).astype(np.float32)
    text = (np.repeat(audio, n_captions, axis=0) + 1.5 * rng.standard_normal((40 * n_captions, 8))).astype(np.float32)
    recall, precision = x_ares_layout(audio.astype(np.float64), text.astype(np.float64), n_captions)
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    clip = np.arange(40)
    to_text = relevant_ranks(audio, text, query_clip=clip, document_clip=np.repeat(clip, n_captions))
    to_audio = relevant_ranks(text, audio, query_clip=np.repeat(clip, n_captions), document_clip=clip)
    direction = np.repeat([0, 1], [len(to_text), len(to_audio)])
    first = np.concatenate([to_text[:, 0], to_audio[:, 0]]).astype(float)
    np.testing.assert_allclose([RecallAt(k=k).score(direction, first) for k in (1, 5, 10)], recall)
    averages = [
        average_precision_at(ranks, k=10, n_relevant=np.full(len(ranks), number)).mean()
        for ranks, number in ((to_text, n_captions), (to_audio, 1))
    ]
    assert np.mean(averages) == pytest.approx(precision)


def test_vectors_that_are_all_alike_or_not_numbers_find_nothing():
    clip = np.arange(20)
    for vectors in (np.ones((20, 4), np.float32), np.full((20, 4), np.nan, np.float32)):
        ranks = relevant_ranks(vectors, vectors, query_clip=clip, document_clip=clip)
        assert (ranks == 20).all()


def test_many_queries_are_ranked_block_by_block(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 4)).astype(np.float32)
    asked = {"query_clip": np.arange(50), "document_clip": rng.permutation(50)}
    whole = relevant_ranks(vectors, vectors, **asked)
    monkeypatch.setattr("featstore.metrics.retrieval.MAX_BLOCK_CELLS", 50 * 7)
    np.testing.assert_array_equal(relevant_ranks(vectors, vectors, **asked), whole)


@settings(max_examples=30)
@given(seed=seeds)
def test_a_weight_counts_a_query_so_many_times(seed):
    rng = np.random.default_rng(seed)
    direction, first = rng.integers(2, size=30), rng.integers(1, 4, size=30).astype(float)
    direction[:2] = (0, 1)
    weights = rng.integers(0, 4, (30, 6)).astype(np.float32)
    weights[:2] = 1
    metric = RecallAt(k=1)
    times = weights.astype(int)
    expected = [metric.score(np.repeat(direction, column), np.repeat(first, column)) for column in times.T]
    np.testing.assert_allclose(metric.weighted(direction, first, weights), expected)


def test_the_interval_is_by_clip():
    rng = np.random.default_rng(0)
    hit = rng.random(80) < 0.5
    clip = np.concatenate([np.arange(80), np.repeat(np.arange(80), 5)])
    first = np.where(np.concatenate([hit, np.repeat(hit, 5)]), 1.0, 2.0)
    direction = np.repeat([0, 1], [80, 400])
    test_set = TestSet(y_true=direction, y_scores=(first,), clip=clip)
    found = interval(RecallAt(k=1), test_set)
    # The captions of a clip all say what the clip says: 80 coins, not 480.
    error = np.sqrt(hit.mean() * (1 - hit.mean()) / 80)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_no_query_has_no_recall():
    with pytest.raises(DataError, match="query"):
        RecallAt(k=1).score(np.zeros(0, int), np.zeros(0))

"""Word and character error rates against a table of edits that is filled in cell by cell."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import DataError, UsageError
from featstore.metrics import TestSet
from featstore.metrics.word_error_rate import InverseErrorRate, count_edits
from intervals import interval

pytest.importorskip("jiwer", reason="word error rates need jiwer: pip install featstore[asr]")

sentences = st.lists(st.sampled_from(["a", "b", "ab", "dog", "barks"]), max_size=7).map(" ".join)


def distance(one, other):
    """Levenshtein's, as Wagner and Fischer (1974) compute it."""
    table = np.zeros((len(one) + 1, len(other) + 1), int)
    table[:, 0], table[0] = np.arange(len(one) + 1), np.arange(len(other) + 1)
    for i, a in enumerate(one, start=1):
        for j, b in enumerate(other, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    return int(table[-1, -1])


@settings(max_examples=80, deadline=None)
@given(pairs=st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6))
def test_edits_are_levenshteins_pair_by_pair(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    found = count_edits(references, hypotheses, unit="word")
    assert found.n_edits.tolist() == [distance(a.split(), b.split()) for a, b in pairs]
    assert found.n_reference.tolist() == [len(a.split()) for a in references]
    found = count_edits(references, hypotheses, unit="character")
    assert found.n_edits.tolist() == [distance(a, b) for a, b in pairs]
    assert found.n_reference.tolist() == [len(a) for a in references]


def test_the_rate_is_that_of_all_samples_together_and_its_inverse_not_below_zero():
    found = count_edits(["a b c d", "a"], ["a b c x", "b"], unit="word")
    assert found.rate == 2 / 5
    metric = InverseErrorRate()
    assert metric.score(found.n_reference, found.n_edits.astype(float)) == pytest.approx(3 / 5)
    assert metric.score(np.array([1]), np.array([4.0])) == 0.0


def test_what_is_said_against_an_empty_reference_is_all_too_much():
    found = count_edits(["", "a b"], ["c d", "a b"], unit="word")
    assert (found.n_edits.tolist(), found.n_reference.tolist(), found.rate) == ([2, 0], [0, 2], 1.0)
    with pytest.raises(DataError, match=r"\b2\b"):
        _ = count_edits(["", " "], ["", "a"], unit="word").rate


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_weight_counts_a_sample_so_many_times(seed):
    rng = np.random.default_rng(seed)
    words, edits = rng.integers(0, 9, 20), rng.integers(0, 9, 20).astype(float)
    words[0] = 3
    weights = rng.integers(0, 4, (20, 5)).astype(np.float32)
    weights[0] = 1
    expected = [
        InverseErrorRate().score(np.repeat(words, column), np.repeat(edits, column)) for column in weights.astype(int).T
    ]
    np.testing.assert_allclose(InverseErrorRate().weighted(words, edits, weights), expected)


def test_the_interval_holds_the_score():
    rng = np.random.default_rng(0)
    words = rng.integers(3, 20, 100)
    edits = rng.binomial(words, 0.3).astype(float)
    test_set = TestSet(y_true=words, y_scores=(edits,), clip=np.arange(100))
    found = interval(InverseErrorRate(), test_set)
    assert found.low < InverseErrorRate().score(words, edits) < found.high


def test_without_jiwer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UsageError, match=r"jiwer.*featstore\[asr\]"):
        count_edits(["a"], ["a"], unit="word")

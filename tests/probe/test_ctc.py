"""Character CTC probes: from audio to a word error rate, and their parts against independent references."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import beeps
from featstore.errors import DataError, UnknownFeatureSet, UsageError
from featstore.probe import probe_task
from featstore.probe.ctc import CtcHead, Utterances, rows_needed, upsampling_for
from featstore.probe.speech import length_batches
from featstore.probe.text import Alphabet, normalised
from featstore.store import open_store

pytest.importorskip("jiwer", reason="word error rates need jiwer: pip install featstore[asr]")

WORDS = ("abba", "cede", "fad", "beef", "dab", "face")
TASK = beeps.manifest(
    kind="ctc",
    metric="wer_inv",
    label={"field": "said"},
    probe={"epochs": 30, "learning_rate": 0.05, "batch_size": 8},
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)

    def clips(name, n):
        texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 4))) for _ in range(n)]
        return [
            beeps.clip(f"{name}{at}", beeps.spoken(text, tones="abcdef ", rng=rng), {"said": f"{text.upper()}!"})
            for at, text in enumerate(texts)
        ]

    sizes = {"train": 48, "valid": 12, "test": 16}
    return beeps.store_of(tmp_path_factory.mktemp("ctc"), TASK, {name: clips(name, n) for name, n in sizes.items()})


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_a_probe_learns_to_spell_what_it_hears(store, protocol):
    record = probe_task(store, TASK, protocol=protocol, seeds=(0,))
    # LayerNorm, X-ARES's, undoes the level of each frame, which a linear layer on standardised frames cannot.
    assert record.value > (0.7 if protocol == "strict" else 0.9)
    assert record.value == pytest.approx(1 - record.details["wer"])
    assert record.details["cer"] < (0.1 if protocol == "strict" else 0.05)
    assert (record.ci_low, record.ci_high) == (None, None)  # of sixteen clips there is no interval
    assert record.details["interval"]["reason"]
    assert (record.metric, record.n_train, record.n_valid, record.n_test) == ("wer_inv", 48, 12, 16)
    assert record.details["alphabet"] == " abcdef"
    assert record.details["upsampling"] == 1
    assert all(reference == reference.lower().strip("!") for reference, _ in record.details["examples"])
    assert {"jiwer", "torch"} <= set(record.versions)


@pytest.mark.slow
@pytest.mark.usefixtures("few_epochs")
def test_a_run_repeats_to_the_last_digit(store):
    task = TASK.model_copy(update={"probe": TASK.probe.model_copy(update={"epochs": 2})})
    one, two = (probe_task(store, task, seeds=(3, 4)) for _ in range(2))
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}
    assert len(one.details["by_seed"]) == 2


@pytest.mark.usefixtures("few_epochs")
def test_noise_in_place_of_speech_scores_nothing(store, monkeypatch):
    rng = np.random.default_rng(1)
    read = "featstore.probe.speech.Sequences.frames"
    monkeypatch.setattr(
        read, lambda self, at: rng.standard_normal((self.n_frames[at], self.windows.recipe.dim)).astype(np.float32)
    )
    task = TASK.model_copy(update={"probe": TASK.probe.model_copy(update={"epochs": 4})})
    assert probe_task(store, task, seeds=(0,)).value < 0.1


@pytest.mark.usefixtures("few_epochs")
def test_frames_that_are_fewer_than_characters_get_several_rows_each(tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.permutation(list("abcdef" * 4)) for _ in range(6)]
    clips = [
        beeps.clip(f"c{at}", beeps.spoken("ab", tones="abcdef ", rng=rng), {"said": "".join(text)})
        for at, text in enumerate(texts)
    ]
    task = TASK.model_copy(update={"probe": TASK.probe.model_copy(update={"epochs": 1})})
    store = beeps.store_of(tmp_path, task, dict.fromkeys(beeps.SPLITS, clips))
    record = probe_task(store, task, seeds=(0,))
    needed = np.array([24 + np.sum(text[1:] == text[:-1]) for text in texts])
    feature_set = store.select(split=task.feature_sets["train"])
    frames = dict(zip(feature_set.key, feature_set.frames.lengths, strict=True))
    ratio = np.ceil(needed / [frames[f"train-c{at}"] for at in range(6)])
    assert record.details["upsampling"] == ratio.max() > 1
    assert record.details["train_clips_too_short"] == 0


def test_a_store_without_frames_says_how_to_get_them(tmp_path):
    rng = np.random.default_rng(0)
    clips = [beeps.clip(f"c{at}", beeps.spoken("ab", tones="ab", rng=rng), {"said": "ab"}) for at in range(2)]
    for split in beeps.SPLITS:
        beeps.handmade.write_split(tmp_path / "data" / "beeps", split, clips)
    beeps.handmade.extract(TASK, tmp_path / "data", tmp_path / "s.zarr", splits=tuple(beeps.SPLITS), frames="never")
    with pytest.raises(UnknownFeatureSet, match=r"beeps test, train, valid.*--frames always"):
        probe_task(open_store(str(tmp_path / "s.zarr")), TASK)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("HELLO  World", "hello world"),
        ("“Don’t”, she said -- 'twice'!", "don't she said twice"),
        ("’tis rock'n'roll", "tis rock'n'roll"),
        ("Straße, Öl and ﬁre: 12 ²", "straße öl and fire 12 2"),
        ("e\u0301te\u0301", "été"),
        ("... --- '", ""),
        ("你好，世界", "你好 世界"),
    ],
)
def test_transcripts_are_normalised_as_documented(text, form):
    assert normalised(text) == form
    assert normalised(form) == form


def naive_collapse(symbols, characters):
    spelt, last = "", None
    for symbol in symbols:
        if symbol not in (last, 0):
            spelt += characters[symbol - 1]
        last = symbol
    return " ".join(spelt.split())


@given(symbols=st.lists(st.integers(0, 3), max_size=30))
def test_greedy_decoding_drops_repeats_and_then_blanks(symbols):
    alphabet = Alphabet(characters=(" ", "a", "b"))
    assert alphabet.collapse(np.array(symbols, np.int64)) == naive_collapse(symbols, " ab")


@given(text=st.text("ab", min_size=1, max_size=8))
def test_a_text_spelt_with_the_rows_it_needs_is_read_back(text):
    alphabet = Alphabet.of(["ab"])
    symbols = alphabet.encode(text)
    rows = [symbols[0]]
    for before, symbol in itertools.pairwise(symbols):
        rows += [0, symbol] if before == symbol else [symbol]
    assert len(rows) == rows_needed(symbols)
    assert alphabet.collapse(np.array(rows)) == text


def test_rows_for_each_frame_do_for_all_but_one_in_a_hundred_clips():
    needed = np.r_[np.full(99, 20), 1000]
    assert upsampling_for(needed, np.full(100, 10)) == 2
    assert upsampling_for(needed, np.full(100, 30)) == 1
    assert upsampling_for(np.array([1000]), np.array([10])) == 8


def ctc_by_paths(log_probabilities, symbols):
    """Sum over every path, one by one."""
    n_rows, n_symbols = log_probabilities.shape
    total = 0.0
    for path in np.ndindex(*[n_symbols] * n_rows):
        kept = [s for at, s in enumerate(path) if s != 0 and (at == 0 or path[at - 1] != s)]
        if kept == list(symbols):
            total += np.exp(sum(log_probabilities[at, s] for at, s in enumerate(path)))
    return -np.log(total)


def test_the_loss_is_the_sum_over_all_paths_whatever_shares_the_batch():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    head = CtcHead(dim=5, n_symbols=3, upsampling=2)
    frames = [rng.standard_normal((n, 5)).astype(np.float32) for n in (2, 3)]
    symbols = [np.array([1]), np.array([2, 2, 1])]
    with torch.no_grad():
        scores = [head(torch.from_numpy(each)).log_softmax(1).double().numpy() for each in frames]
        alone = [ctc_by_paths(each, said) / len(said) for each, said in zip(scores, symbols, strict=True)]
        assert head.loss(Utterances(frames=frames, symbols=symbols)).item() == pytest.approx(np.mean(alone), rel=1e-4)
    assert scores[0].shape == (4, 3)


@settings(max_examples=50)
@given(
    n_frames=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    max_frames=st.integers(1, 200),
    seed=st.one_of(st.none(), st.integers(0, 99)),
)
def test_every_clip_is_in_one_batch_and_no_batch_is_too_large(n_frames, batch_size, max_frames, seed):
    lengths = np.array(n_frames)
    rng = None if seed is None else np.random.default_rng(seed)
    clips = np.arange(len(lengths))[::-1]
    batches = length_batches(clips, lengths, batch_size=batch_size, rng=rng, max_frames=max_frames)
    assert sorted(np.concatenate(batches)) == sorted(clips)
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= max_frames


def test_without_jiwer_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UsageError, match=r"jiwer.*featstore\[asr\]"):
        probe_task(None, TASK)


def test_another_head_is_a_usage_error(store):
    with pytest.raises(UsageError, match=r"--head ridge.*regression.*ctc"):
        probe_task(store, TASK, head="ridge")


def test_transcripts_without_a_letter_cannot_be_learned_from(tmp_path):
    rng = np.random.default_rng(0)
    clips = [beeps.clip(f"c{at}", beeps.spoken("ab", tones="ab", rng=rng), {"said": "..."}) for at in range(2)]
    store = beeps.store_of(tmp_path, TASK, dict.fromkeys(beeps.SPLITS, clips))
    with pytest.raises(DataError, match=r"\b2\b"):
        probe_task(store, TASK)

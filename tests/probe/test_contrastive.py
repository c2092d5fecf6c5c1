"""Audio-text retrieval, from audio to both directions' recalls; the model and its losses against plain torch."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import beeps
import tiny
from featstore.errors import DataError, UsageError
from featstore.probe import probe_task
from featstore.probe.contrastive_model import Captions, Embedder, objective_of
from featstore.probe.text import words

PITCHES = "abcdefghijkl"
TASK = beeps.manifest(
    kind="contrastive",
    metric="recall_at_1",
    label={"captions": "*"},
    data={"dataset": "beeps", "crop_seconds": 1.0},
    probe={"epochs": 12, "learning_rate": 3e-3, "batch_size": 32},
)
SIZES = {"train": 60, "valid": 12, "test": 24}


def captions(names):
    low, high = (f"pitch{PITCHES.index(name)}" for name in names)
    return {
        "c1": f"A beep at {low}, then one at {high}.",
        "c2": f"First {low}; after that {high}!",
        "c3": f"{low} before {high}, curiously",
    }


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """The model of X-ARES is 1024 wide, which these few sounds do not need."""
    monkeypatch.setattr("featstore.probe.contrastive_model.WIDTH", 128)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    every = [low + high for low in PITCHES for high in PITCHES if low < high]

    def clips(name, n):
        chosen = [every[at] for at in rng.permutation(len(every))[:n]]
        # Some clips have two windows, a long and a short one.
        return [
            beeps.clip(
                f"{name}{at}",
                beeps.spoken(pair * 2, tones=PITCHES, tone_seconds=0.15 + 0.06 * (at % 3), rng=rng),
                captions(pair),
            )
            for at, pair in enumerate(chosen)
        ]

    return beeps.store_of(tmp_path_factory.mktemp("text"), TASK, {name: clips(name, n) for name, n in SIZES.items()})


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_captions_find_their_clips_and_clips_their_captions(store, protocol):
    record = probe_task(store, TASK, protocol=protocol, seeds=(0,))
    test = store.select(split="test")
    assert len(test) > test.n_clips == 24
    # Under xares a window is a sample of its own, with captions of its own, and the clip's other window is a wrong one.
    n_items = 24 if protocol == "strict" else len(test)
    for direction in ("audio_to_text", "text_to_audio"):
        scores = record.details[direction]
        assert set(scores) == {"recall_at_1", "recall_at_5", "recall_at_10", "map_at_10"}
        assert 4 / n_items < scores["recall_at_1"] <= scores["recall_at_5"] <= scores["recall_at_10"] <= 1
        assert 0 < scores["map_at_10"] <= 1
    both = [record.details[direction]["recall_at_1"] for direction in ("audio_to_text", "text_to_audio")]
    assert record.value == pytest.approx(np.mean(both))
    assert (record.ci_low, record.ci_high) == (None, None)
    assert "24" in record.details["interval"]["reason"]
    assert (record.n_train, record.n_valid, record.n_test) == (60, 12, 24)
    assert record.details["n_captions"] == 3 * n_items
    assert record.settings["tokenizer"] == "words"


@pytest.mark.usefixtures("few_epochs")
def test_a_run_repeats_to_the_last_digit_and_seeds_differ(store):
    task = TASK.model_copy(update={"probe": TASK.probe.model_copy(update={"epochs": 2})})
    one, two = (probe_task(store, task, seeds=(1, 2)) for _ in range(2))
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}
    histories = one.details["validation"]["test"]
    assert len(histories) == 2
    assert histories[0] != histories[1]
    assert [fit["grid"] for fit in one.details["fit"]["rounds"]["test"]][1] == [
        one.details["fit"]["rounds"]["test"][0]["learning_rate"]
    ]


@pytest.mark.parametrize("folds", [False, True])
def test_selection_of_strict_never_sees_a_test_caption(folds):
    class CaptionSet(tiny.TinySet):
        @property
        def meta(self):
            return np.array([self.clips[at].label for at in self.clip], dtype=object)

    def clips(name, n, *, swapped=False):
        vectors = np.random.default_rng([*name.encode()]).standard_normal((n, 6))
        captions = [f"word{at}" for at in vectors.argmax(axis=1)]
        captions = captions[::-1] if swapped else captions
        return CaptionSet([
            tiny.Clip(f"{name}{at}", f'{{"one": "{text} x", "two": "y {text}"}}', vector)
            for at, (text, vector) in enumerate(zip(captions, vectors, strict=True))
        ])  # fmt: skip

    changes = tiny.folds("train", "test") if folds else {}
    if not folds:
        changes["splits"] = {"train": "train*.tar", "valid": "test*.tar", "test": "test*.tar"}
    task = tiny.task(kind="contrastive", metric="recall_at_1", label={"captions": "*"}, probe={"epochs": 3}, **changes)
    true, false = (
        probe_task(tiny.TinyStore({"train": clips("train", 30), "test": clips("test", 10, swapped=swap)}), task)
        for swap in (False, True)
    )
    for name in ("validation", "best_epoch"):
        assert true.details[name]["test"] == false.details[name]["test"]
    assert true.n_test == (40 if folds else 10)


def test_the_model_is_the_one_of_x_ares_written_out():
    torch.manual_seed(0)
    model = Embedder(dim=6, n_tokens=9)
    by_caption = [[3, 1, 3], [2], [8, 0, 5, 5]]
    bags = Captions(tokens=np.concatenate(by_caption), bounds=np.array([0, 3, 4, 8]), n_tokens=9)
    asked = np.array([2, 0])
    padded = nn.utils.rnn.pad_sequence([torch.tensor(by_caption[at]) for at in asked], batch_first=True)
    real = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]]).unsqueeze(2)
    with torch.no_grad():
        by_token = model.caption(model.token(model.embedding(padded)))
        expected = (by_token * real).sum(1) / real.sum(1)
        torch.testing.assert_close(model.project_captions(*bags.take(asked)), expected)
        vectors = torch.randn(4, 6)
        normal = (vectors - vectors.mean(1, keepdim=True)) / (
            vectors.var(1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt()
        torch.testing.assert_close(model.project_audio(vectors), model.audio(normal))
    unit = model.embed_captions(*bags.take(asked))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)


def test_the_loss_of_xares_is_that_of_x_ares_written_out():
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor(2.0, dtype=torch.float64)
    logits = (torch.e**scale * audio @ text.T).numpy()
    right = -np.mean([np.log(np.exp(of[at]) / np.exp(of).sum()) for at, of in enumerate(logits)])
    left = -np.mean([np.log(np.exp(of[at]) / np.exp(of).sum()) for at, of in enumerate(logits.T)])
    sizes = sum(np.abs(each).mean() / np.sqrt((each**2).sum()) for each in (audio.numpy(), text.numpy()))
    loss = objective_of("xares")(audio, text, clip=torch.zeros(5), log_scale=scale)
    assert loss.item() == pytest.approx((right + left) / 2 + sizes)


def test_the_loss_of_strict_goes_by_cosines_and_takes_every_caption_of_the_clip():
    generator = torch.Generator().manual_seed(0)
    audio, text = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    clip, scale = torch.tensor([5, 2, 5, 9]), torch.tensor(1.5, dtype=torch.float64)
    strict = objective_of("strict")
    loss = strict(audio, text, clip=clip, log_scale=scale)
    cosine = functional.cosine_similarity(audio[:, None], text[None], dim=2).numpy() * np.exp(1.5)
    total = 0.0
    for logits in (cosine, cosine.T):
        for at in range(4):
            chances = np.exp(logits[at]) / np.exp(logits[at]).sum()
            own = np.flatnonzero(clip.numpy() == clip.numpy()[at])
            total -= np.log(chances[own]).mean()
    assert loss.item() == pytest.approx(total / 8)
    torch.testing.assert_close(strict(3 * audio, text / 5, clip=clip, log_scale=scale), loss)
    assert strict(audio, text, clip=clip, log_scale=torch.tensor(1e3)).isfinite()


def test_words_are_those_of_the_normalised_text():
    assert words("A dog's bark -- twice, in 2 rooms.") == ["a", "dog's", "bark", "twice", "in", "2", "rooms"]


@pytest.fixture
def tokenizer_folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install featstore[hf]")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    vocabulary = ["[PAD]", "[UNK]", "beep", "pitch", "then", *map(str, range(12))]
    raw = Tokenizer(models.WordPiece({word: at for at, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.BertPreTokenizer()])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def with_probe(**changes):
    return TASK.model_copy(update={"probe": TASK.probe.model_copy(update=changes)})


def test_a_tokenizer_of_transformers_takes_the_place_of_words(store, tokenizer_folder):
    record = probe_task(store, with_probe(tokenizer=str(tokenizer_folder)), seeds=(0,))
    assert record.value > 6 / 24
    assert record.settings["tokenizer"] == str(tokenizer_folder)
    assert len(record.settings["tokenizer_sha256"]) == 16
    assert "transformers" in record.versions


def test_a_tokenizer_that_is_not_there_is_one_line_with_a_remedy(store, tmp_path):
    pytest.importorskip("transformers", reason="needs transformers: pip install featstore[hf]")
    with pytest.raises(UsageError, match=r"/none'.*\[probe\] tokenizer") as caught:
        probe_task(store, with_probe(tokenizer=str(tmp_path / "none")), seeds=(0,))
    assert "\n" not in str(caught.value)


def test_without_transformers_one_line_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"transformers.*featstore\[hf\]"):
        probe_task(store, with_probe(tokenizer="bert-base-uncased"), seeds=(0,))


def test_another_head_is_a_usage_error(store):
    with pytest.raises(UsageError, match=r"--head logreg.*\bclip\b.*\bmultilabel\b"):
        probe_task(store, TASK, head="logreg")


def test_a_model_that_diverged_is_one_line_with_a_remedy(store):
    task = TASK.model_copy(update={"probe": TASK.probe.model_copy(update={"epochs": 1, "learning_rate": 1e30})})
    with pytest.raises(DataError, match=r"\[probe\] learning_rate"):
        probe_task(store, task, seeds=(0,), head="linear")


def test_captions_that_several_clips_have_are_counted(tmp_path):
    rng = np.random.default_rng(0)

    def clips(name, n):
        captions = [f"A beep, number {at // 2 if name == 'test' else at}." for at in range(n)]
        return [beeps.clip(f"{name}{at}", beeps.spoken("ab", tones=PITCHES, tone_seconds=0.2, rng=rng), {"c": text})
                for at, text in enumerate(captions)]  # fmt: skip

    store = beeps.store_of(
        tmp_path, TASK, {name: clips(name, n) for name, n in (("train", 12), ("valid", 4), ("test", 8))}
    )
    assert probe_task(store, TASK, seeds=(0,)).details["n_shared_captions"] == 8

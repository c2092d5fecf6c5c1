"""Speech recognition through a frozen language model, on a tiny one that the test makes and saves."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

import beeps
from featstore.errors import DataError, UsageError
from featstore.probe import probe_task

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install featstore[hf]")
pytest.importorskip("jiwer", reason="word error rates need jiwer: pip install featstore[asr]")

from featstore.probe.asr import Adapter, AudioLanguageModel, Utterances  # noqa: E402
from featstore.probe.text import load_language_model  # noqa: E402

WORDS = ("abc", "fed", "dabe", "bce")
LETTERS = "abcdef"
CPU = torch.device("cpu")


def save_model(folder, *, family="qwen2", separator="<|vision_end|>", positions=256):
    """A causal language model of random weights, whose tokens are letters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = [token for token in ("<pad>", "<end>", separator) if token]
    vocabulary = [*special, *LETTERS, " ", *LETTERS.upper()]
    raw = Tokenizer(models.WordLevel({token: at for at, token in enumerate(vocabulary)}, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    raw.decoder = decoders.Fuse()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", extra_special_tokens=[separator] * bool(separator)
    )
    wrapped.save_pretrained(folder)
    shape = {"vocab_size": len(vocabulary), "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(n_positions=positions, n_embd=48, n_layer=1, n_head=2, **shape)
    else:
        config = transformers.Qwen2Config(
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.3,
            **shape,
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("language-model"))


def task(folder, **probe):
    return beeps.manifest(
        kind="asr",
        metric="wer_inv",
        label={"field": "trans"},
        probe={"epochs": 60, "learning_rate": 3e-3, "batch_size": 4, "language_model": str(folder), **probe},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder):
    rng = np.random.default_rng(0)
    # The same few words are learned and asked for: what is tested is that sound comes through as text.
    clips = {
        name: [
            beeps.clip(f"{name}{at}", beeps.spoken(WORDS[at % 4], tones=LETTERS, rng=rng), {"trans": WORDS[at % 4]})
            for at in range(n)
        ]
        for name, n in (("train", 16), ("valid", 4), ("test", 8))
    }
    return beeps.store_of(tmp_path_factory.mktemp("asr"), task(model_folder), clips)


@pytest.mark.parametrize("protocol", ["strict", pytest.param("xares", marks=pytest.mark.slow)])
def test_a_frozen_language_model_learns_to_hear(store, model_folder, protocol):
    record = probe_task(store, task(model_folder), protocol=protocol, seeds=(0,))
    # One word in four is chance. As in X-ARES, xares takes the first epoch that gets the letters of validation texts
    # right when it is told those before each; whether it would have stopped there is not asked.
    assert record.value > (0.7 if protocol == "strict" else 0.45)
    assert record.value == pytest.approx(max(0.0, 1 - record.details["wer"]))
    assert (record.ci_low, record.ci_high) == (None, None)  # of eight clips there is no interval
    assert record.details["interval"]["reason"]
    assert (record.n_train, record.n_valid, record.n_test) == (16, 4, 8)
    assert {"jiwer", "torch", "transformers"} <= set(record.versions)
    assert record.settings["language_model"] == str(model_folder)
    assert len(record.settings["language_model_sha256"]) == 16
    history = record.details["validation"]["test"][0]
    best = record.details["best_epoch"]["test"][0]
    assert history[best - 1] == max(history)
    assert len(history) == 60 if protocol == "xares" else record.details["fit"]["converged"]


@pytest.mark.usefixtures("few_epochs")
def test_with_one_layer_that_varies_the_mix_is_the_head_of_that_layer(tmp_path, model_folder):
    rng = np.random.default_rng(0)
    clips = {
        name: [
            beeps.clip(f"{name}{at}", beeps.spoken(WORDS[at % 4], tones=LETTERS, rng=rng), {"trans": WORDS[at % 4]})
            for at in range(n)
        ]
        for name, n in (("train", 16), ("valid", 4), ("test", 8))
    }
    encoder = beeps.layered(tmp_path, deaf="torch.ones_like(spectrum)")
    store = beeps.store_of(tmp_path, task(model_folder), clips, encoder=encoder)
    mix = probe_task(store, task(model_folder), head="layer-mix", seeds=(0,))
    alone = probe_task(store, task(model_folder), encoder="Ear.layer2", seeds=(0,))
    assert (mix.encoder, mix.settings["layers"]) == ("Ear", [0, 1, 2])
    assert mix.details["layer_weights"]["mean"] == pytest.approx([1 / 3] * 3, abs=0.05)  # Adam amplifies rounding
    assert mix.details["fit"]["rounds"]["test"][0]["grid"] == alone.details["fit"]["rounds"]["test"][0]["grid"]
    found, expected = (each.details["validation"]["test"][0] for each in (mix, alone))
    assert found[:5] == pytest.approx(expected[:5], rel=1e-3)


@pytest.mark.usefixtures("few_epochs")
def test_a_clip_that_is_not_heard_is_not_guessed(store, model_folder, monkeypatch):
    """The words are as likely without sound: what scores above is the sound that came through the adapter."""
    rng = np.random.default_rng(1)
    monkeypatch.setattr(
        "featstore.probe.speech.Sequences.frames",
        lambda self, at: rng.standard_normal((self.n_frames[at], self.windows.recipe.dim)).astype(np.float32),
    )
    assert probe_task(store, task(model_folder, epochs=15), seeds=(0,)).value < 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("few_epochs")
def test_a_run_repeats_to_the_last_digit(store, model_folder):
    one, two = (probe_task(store, task(model_folder, epochs=2), seeds=(1, 2)) for _ in range(2))
    assert {**one.as_json(), "seconds": {}} == {**two.as_json(), "seconds": {}}


def listener(folder, dim=6):
    model = load_language_model(str(folder), device=CPU)
    torch.manual_seed(0)
    return AudioLanguageModel(model, Adapter(dim=dim, inner_width=model.inner_width, width=model.width))


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def hearing(request, tmp_path_factory):
    separator = "<|vision_end|>" if request.param == "qwen2" else ""
    return listener(save_model(tmp_path_factory.mktemp(request.param), family=request.param, separator=separator))


def utterances(hearing, texts=("abba", "cede fad", "b")):
    rng = np.random.default_rng(0)
    return Utterances(
        frames=[rng.standard_normal((n, 6)).astype(np.float32) for n in (9, 4, 17)],
        tokens=[hearing.language_model.encode(text) for text in texts],
    )


def alone(batch):
    return [
        Utterances(frames=[frames], tokens=[tokens]) for frames, tokens in zip(batch.frames, batch.tokens, strict=True)
    ]


def test_the_loss_is_that_of_each_clip_by_itself_written_out(hearing):
    batch, model = utterances(hearing), hearing.language_model
    total, count = 0.0, 0
    for frames, tokens in zip(batch.frames, batch.tokens, strict=True):
        with torch.no_grad():
            heard = hearing.adapter(torch.from_numpy(frames))
            inputs = torch.cat([heard, model.embed(torch.tensor([model.separator, *tokens]))])
            logits = model.model(inputs_embeds=inputs[None]).logits[0, len(frames) :].double().log_softmax(1)
        for row, token in zip(logits, [*tokens, model.end], strict=True):
            total, count = total - row[token].item(), count + 1
    with torch.no_grad():
        assert hearing.loss(batch).item() == pytest.approx(total / count, rel=1e-4)
    result, tokens_told = hearing.teacher_forced_loss(batch)
    assert (result, tokens_told) == (pytest.approx(total, rel=1e-4), count)


def test_a_clip_is_heard_the_same_alone_and_in_a_batch(hearing):
    batch = utterances(hearing)
    for options in ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.3}):
        together = hearing.generate(batch.frames, max_new_tokens=12, **options)
        assert together == [hearing.generate(one.frames, max_new_tokens=12, **options)[0] for one in alone(batch)]
    assert hearing.teacher_forced_texts(batch) == [hearing.teacher_forced_texts(one)[0] for one in alone(batch)]


def test_generation_is_greedy_step_by_step(hearing):
    batch, model = utterances(hearing), hearing.language_model
    for frames in batch.frames:
        tokens_so_far = []
        with torch.no_grad():
            heard = hearing.adapter(torch.from_numpy(frames))
            while len(tokens_so_far) < 8 and model.end not in tokens_so_far:
                inputs = torch.cat([heard, model.embed(torch.tensor([model.separator, *tokens_so_far]))])
                tokens_so_far.append(int(model.model(inputs_embeds=inputs[None]).logits[0, -1].argmax()))
        (text,) = hearing.generate([frames], max_new_tokens=8, repetition_penalty=1.0)
        assert text == model.decode(tokens_so_far)  # the end is a special token


def test_only_the_adapter_learns(hearing):
    before = {name: value.clone() for name, value in hearing.language_model.model.state_dict().items()}
    hearing.loss(utterances(hearing)).backward()
    assert all(parameter.grad is None for parameter in hearing.language_model.model.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in hearing.adapter.parameters())
    assert all(torch.equal(value, before[name]) for name, value in hearing.language_model.model.state_dict().items())


def test_the_adapter_is_gated():
    torch.manual_seed(0)
    adapter, frames = Adapter(dim=3, inner_width=5, width=4), torch.randn(7, 3)
    gate, value = adapter.gate(frames), adapter.value(frames)
    torch.testing.assert_close(adapter(frames), adapter.out(gate * torch.sigmoid(gate) * value))


def test_a_model_of_pickled_weights_is_refused(tmp_path):
    folder = save_model(tmp_path / "model")
    state = transformers.AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=rf"{re.escape(str(folder))}.*safetensors"):
        load_language_model(str(folder), device=CPU)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\nclass M: pass\n")
    with pytest.raises(UsageError, match=re.escape(str(folder))):
        load_language_model(str(folder), device=CPU)
    assert not (tmp_path / "ran").exists()


def test_a_model_that_cannot_be_had_is_one_line_with_a_remedy(store, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"Qwen/Qwen2.5-0.5B.*\[probe\] language_model") as caught:
        probe_task(store, task("Qwen/Qwen2.5-0.5B"))
    assert "\n" not in str(caught.value)


def test_a_clip_that_is_longer_than_the_model_takes_is_named(store, tmp_path):
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 30}))
    with pytest.raises(DataError, match=r"\w+/[\w-]+.*\d+.*\b30\b"):
        probe_task(store, task(folder))


def test_generation_ends_where_the_model_has_no_more_positions(store, tmp_path):
    most = int(max(store.select(split=name).frames.lengths.max() for name in ("train", "valid", "test"))) + 20
    folder = save_model(tmp_path / "model", family="gpt2", separator="", positions=most)
    record = probe_task(store, task(folder, epochs=1), protocol="xares")
    assert 0 <= record.value <= 1


def test_a_task_without_a_language_model_says_where_it_is_named(store):
    nameless = beeps.manifest(kind="asr", metric="wer_inv", label={"field": "trans"})
    with pytest.raises(UsageError, match=r"\[probe\] language_model"):
        probe_task(store, nameless)


@pytest.mark.parametrize(("library", "extra"), [("jiwer", "asr"), ("transformers", "hf")])
def test_without_a_library_one_line_says_what_to_install(store, model_folder, monkeypatch, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library}.*featstore\[{extra}\]"):
        probe_task(store, task(model_folder))

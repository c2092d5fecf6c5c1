"""A CLAP model of transformers from its folder to scores and answers: extract, zero-shot, `featstore query --text`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import save_with_text

import featstore
from featstore.errors import EncoderError, UsageError
from featstore.tasks import Manifest, load_manifest
from handmade import Run, clip, environment, noise, task_toml, write_split

RATE = 48_000
LABELS = ("dog", "rain", "car")
PROMPTS = ("this is a sound of {label}", "{label} horn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, shards, a manifest, and the store that was extracted from them."""
    folder = tmp_path_factory.mktemp("clap")
    save_with_text(folder / "model")
    for number, (split, n) in enumerate((("train", 6), ("valid", 3), ("test", 9))):
        clips = [
            clip(f"{split}{at}", noise(0.5, seed=20 * number + at, rate=RATE), label=LABELS[at % 3], rate=RATE)
            for at in range(n)
        ]
        write_split(folder / "data/tiny", split, clips)
    task_toml(folder, classes=LABELS, zero_shot={"prompts": PROMPTS})
    extracted = featstore.extract(
        folder / "tiny.toml", encoder=f"hf:{folder / 'model'}", data=folder / "data", store=folder / "store",
        workers=1, device="cpu",
    )  # fmt: skip
    extracted.raise_failures()
    return folder


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return load_manifest(folder / "tiny.toml")


@pytest.fixture(scope="module")
def by_transformers(folder: Path) -> dict[str, np.ndarray]:
    """Unit vectors of texts as transformers makes them."""
    model = transformers.ClapModel.from_pretrained(folder / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    texts = [prompt.replace("{label}", label) for label in LABELS for prompt in PROMPTS] + ["a sound of barking"]
    with torch.no_grad():
        vectors = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    return dict(zip(texts, vectors.numpy(), strict=True))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_zero_shot_of_a_stored_clap_is_that_of_transformers(
    folder: Path, manifest: Manifest, by_transformers: dict[str, np.ndarray]
) -> None:
    store = featstore.open(folder / "store")
    [record] = featstore.retrieve(manifest, store=store, measure="zero-shot")
    test = store.select(split="test")
    classes = unit(
        np.array([np.mean([by_transformers[t] for t in manifest.zero_shot.texts(c)], axis=0) for c in LABELS])
    )
    found = (unit(np.asarray(test.utterance)) @ classes.T).argmax(axis=1)
    assert record.value == pytest.approx(
        np.mean([LABELS[at] == meta["label"] for at, meta in zip(found, test.meta, strict=True)])
    )
    assert record.encoder == "model"


def test_a_stored_text_is_answered_without_its_encoder(folder: Path, by_transformers: dict[str, np.ndarray]) -> None:
    text = "this is a sound of rain"
    found = featstore.query(text=text, store=folder / "store", split="test", k=3)
    test = featstore.open(folder / "store").select(split="test")
    similar = unit(np.asarray(test.utterance)) @ by_transformers[text]
    assert [hit.key for hit in found.hits] == [test.key[at] for at in np.argsort(-similar)[:3]]
    assert [hit.similarity for hit in found.hits] == pytest.approx(np.sort(similar)[::-1][:3], abs=1e-5)
    program = (
        "import sys; from featstore.cli import main\n"
        f"try: main(['query', '--text', {text!r}, '--store', {str(folder / 'store')!r}])\n"
        "except SystemExit as done: assert done.code == 0\n"
        "print(sorted({'torch', 'sklearn', 'faiss', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_another_text_is_encoded_by_the_encoder_of_the_store(
    folder: Path, run: Run, by_transformers: dict[str, np.ndarray]
) -> None:
    text, store = "a sound of barking", folder / "store"
    with pytest.raises(UsageError, match="--spec"):
        featstore.query(text=text, store=store)
    spec = f"hf:{folder / 'model'}"
    records = json.loads(run("query", "--text", text, "--store", store, "--spec", spec, "--k", "18", "--json").out)
    sets = featstore.open(store).feature_sets()
    wanted = {
        key: row @ by_transformers[text]
        for fs in sets
        for key, row in zip(fs.key, unit(np.asarray(fs.utterance)), strict=True)
    }
    assert {each["key"]: each["similarity"] for each in records} == pytest.approx(wanted, abs=1e-5)


def test_an_encoder_without_a_text_tower_is_one_line(tmp_path: Path, run: Run, folder: Path) -> None:
    featstore.extract(folder / "tiny.toml", encoder="logmel", data=folder / "data", store=tmp_path / "s", workers=1)
    with pytest.raises(EncoderError, match="logmel has no text tower"):
        featstore.query(text="rain", store=tmp_path / "s")
    outcome = run("query", "--text", "rain", "--store", tmp_path / "s")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("wanted", [(), ("train0", "--text", "rain")])
def test_one_thing_is_searched_for(wanted: tuple[str, ...], folder: Path, run: Run) -> None:
    outcome = run("query", *wanted, "--store", folder / "store")
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)


# --- captions ---------------------------------------------------------------------------------------------------------

CAPTIONS = (
    ("a dog barking", "barking of a dog", "this is a dog"),
    ("rain", "a sound of rain"),
    ("car horn", "a car", "this is a car horn", "a horn", "horn of a car"),
    ("a dog", "car barking"),
    ("rain is a sound", "sound of a horn"),
)


@pytest.fixture(scope="module")
def captioned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with captions, a manifest, and a store of the test clips alone."""
    made = tmp_path_factory.mktemp("captions")
    clips = []
    for at, captions in enumerate(CAPTIONS):
        [audio, _] = clip(f"c{at}", noise(0.5, seed=70 + at, rate=RATE), rate=RATE)
        meta = {f"caption_{number}": caption for number, caption in enumerate(captions)}
        clips.append([audio, (f"c{at}.json", json.dumps(meta).encode())])
    for split in ("train", "valid", "test"):
        write_split(made / "data/sounds", split, clips if split == "test" else clips[:1])
    (made / "sounds.toml").write_text(
        'name = "sounds"\ntitle = "Sounds"\nkind = "contrastive"\nmetric = "recall_at_1"\neval_weight = 1.0\n'
        '[data]\ndataset = "sounds"\n[label]\ncaptions = "*"\n'
        '[splits]\ntrain = "train*.tar"\nvalid = "valid*.tar"\ntest = "test*.tar"\n'
    )
    featstore.extract(
        made / "sounds.toml", encoder=f"hf:{folder / 'model'}", data=made / "data", store=made / "store",
        split=["test"], workers=1, device="cpu",
    ).raise_failures()  # fmt: skip
    return made


def test_captions_of_a_stored_clap_are_retrieved_as_by_transformers(captioned: Path, folder: Path, run: Run) -> None:
    model = transformers.ClapModel.from_pretrained(folder / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    flat = [caption for captions in CAPTIONS for caption in captions]
    owner = np.repeat(np.arange(len(CAPTIONS)), [len(captions) for captions in CAPTIONS])
    with torch.no_grad():
        text = unit(model.get_text_features(**tokenizer(flat, padding=True, return_tensors="pt")).pooler_output.numpy())
    test = featstore.open(captioned / "store").select(split="test")
    audio = unit(np.asarray(test.utterance))[[list(test.key).index(f"c{at}") for at in range(len(CAPTIONS))]]
    cosines = text @ audio.T
    nearest_clip, nearest_caption = cosines.argmax(axis=1), cosines.argmax(axis=0)
    found = run("retrieve", captioned / "sounds.toml", "--store", captioned / "store", "--measure", "text")
    assert "recall_at_10" in found.out
    printed = run("retrieve", captioned / "sounds.toml", "--store", captioned / "store", "--measure", "text", "--json")
    [record] = json.loads(printed.out)
    expected = {
        "text_to_audio": np.mean(nearest_clip == owner),
        "audio_to_text": np.mean(owner[nearest_caption] == np.arange(len(CAPTIONS))),
    }
    for direction, recall in expected.items():
        assert record["details"][direction]["recall_at_1"] == pytest.approx(recall)
    assert record["value"] == pytest.approx(np.mean([*expected.values()]))


def test_captions_without_a_text_tower_are_one_line(captioned: Path, tmp_path: Path, run: Run) -> None:
    featstore.extract(
        captioned / "sounds.toml", encoder="logmel", data=captioned / "data", store=tmp_path / "s", workers=1
    )
    found = run("retrieve", captioned / "sounds.toml", "--store", tmp_path / "s", "--measure", "text")
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert "--split test --encoder logmel" in found.err


def test_inspect_counts_the_texts_of_an_encoder(captioned: Path, run: Run) -> None:
    recipe = featstore.open(captioned / "store").resolve_encoder("model")
    assert f"texts by {recipe.group_name}: 14 of sounds" in run("inspect", captioned / "store").out
    assert "14 of sounds" in run("inspect", captioned / "store", "model/sounds/test").out

"""Text towers: `encode_text` of the contract, of CLAP models of transformers, and in `featstore check`."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from model_files import write_sentence_transformer
from safetensors.torch import load_file, save_file
from tiny_models import save, save_with_text
from torch.nn import functional

from featstore.encoders import load_encoder
from featstore.encoders.check.batching import check_text
from featstore.encoders.check.bench import Bench, Check
from featstore.encoders.encoder import Encoder
from featstore.encoders.runner import EncoderRun
from featstore.errors import EncoderContractError, EncoderError
from featstore.extract import ExtractOptions, plan_recipe
from featstore.extract.windows import Padding, plan_windows
from handmade import build

TEXTS = ["dog barking", "this is a sound of rain", "car", "a sound of this car horn is a sound of rain"]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_text(tmp_path_factory.mktemp("text") / "clap")


@pytest.fixture(scope="module")
def encoder(clap: Path) -> Encoder:
    return load_encoder(f"hf:{clap}")


def run_of(encoder: Encoder, **options: Any) -> EncoderRun:
    recipe = plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions(**options))
    return EncoderRun(encoder, recipe, device="cpu", keep_frames=False)


def test_texts_of_clap_are_those_of_transformers(clap: Path, encoder: Encoder) -> None:
    model = transformers.ClapModel.from_pretrained(clap).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clap)
    with torch.no_grad():
        features = model.get_text_features(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
    vectors = run_of(encoder).encode_texts(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, encoder.facts.dim))
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=0.1)  # as the audio: not of unit length
    np.testing.assert_allclose(functional.normalize(torch.from_numpy(vectors), dim=1), features, atol=1e-6)


def test_texts_and_audio_share_the_space_of_the_model(clap: Path, encoder: Encoder) -> None:
    model = transformers.ClapModel.from_pretrained(clap).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(clap)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clap)
    wave = 0.1 * torch.randn(48_000, generator=torch.Generator().manual_seed(1))
    inputs = extractor(wave.numpy(), sampling_rate=48_000, return_tensors="pt")
    with torch.no_grad():
        wanted = model(
            **tokenizer(TEXTS, padding=True, return_tensors="pt"),
            input_features=inputs["input_features"],
            is_longer=torch.zeros(1, 1, dtype=torch.bool),
        ).logits_per_audio[0] / model.logit_scale_a.exp()  # fmt: skip
        [audio] = encoder.forward(wave[None], torch.tensor([48_000]))
    assert audio.utterance is not None
    texts = torch.from_numpy(run_of(encoder).encode_texts(TEXTS))
    np.testing.assert_allclose(functional.cosine_similarity(texts, audio.utterance), wanted, atol=1e-5)


def test_more_texts_than_a_batch_and_longer_ones_than_the_model_has_positions(encoder: Encoder) -> None:
    run = run_of(encoder)
    many = run.encode_texts([TEXTS[number % 4] for number in range(70)])
    np.testing.assert_allclose(many[66:70], many[[2, 3, 0, 1]], atol=1e-6)
    truncated, longer = run.encode_texts(["dog " * 40, "dog " * 50])
    np.testing.assert_allclose(truncated, longer, atol=1e-6)


def test_a_text_tower_leaves_the_fingerprint_and_has_an_identity_of_its_own(
    clap: Path, encoder: Encoder, tmp_path: Path
) -> None:
    audio_only = load_encoder(f"hf:{save('clap', tmp_path / 'audio')}")
    assert audio_only.identity == encoder.identity
    assert (audio_only.facts.takes_text, audio_only.text_sha256) == (False, None)
    assert load_encoder(f"hf:{clap}").text_sha256 == encoder.text_sha256

    def edited(name: str, edit: Any) -> Encoder:
        copy = Path(shutil.copytree(clap, tmp_path / name))
        edit(copy)
        return load_encoder(f"hf:{copy}")

    def weights(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        state["text_projection.linear2.bias"] += 1.0
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def words(folder: Path) -> None:
        rules = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = rules["model"]["vocab"]
        vocabulary["rain"], vocabulary["car"] = vocabulary["car"], vocabulary["rain"]
        (folder / "tokenizer.json").write_text(json.dumps(rules))

    for other in (edited("weights", weights), edited("words", words)):
        assert other.identity == encoder.identity
        assert other.text_sha256 not in (None, encoder.text_sha256)


def test_a_model_without_the_weights_of_its_text_tower_has_none(clap: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clap, tmp_path / "copy"))
    state = load_file(copy / "model.safetensors")
    kept = {name: value for name, value in state.items() if not name.startswith("text_projection")}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder(f"hf:{copy}")
    assert not encoder.facts.takes_text
    with pytest.raises(EncoderError, match="text tower"):
        run_of(encoder).encode_texts(["dog"])


def test_texts_of_sentence_transformers_are_those_of_its_encode(clap: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = Path(shutil.copytree(clap, tmp_path / "clap"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    transformers.ClapProcessor(extractor, tokenizer).save_pretrained(folder)
    encoder = load_encoder(f"st:{folder}")
    wanted = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(run_of(encoder).encode_texts(TEXTS), wanted, atol=1e-6)
    assert encoder.text_sha256 is not None
    assert not load_encoder(f"st:{write_sentence_transformer(tmp_path / 'audio')}").facts.takes_text


class Bagged(torch.nn.Module):
    """A user's encoder: texts by their letters."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 8, 20.0

    def __init__(self) -> None:
        super().__init__()
        self.letters = torch.nn.Parameter(torch.randn(256, 8, generator=torch.Generator().manual_seed(0)))

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return audio.unfold(1, 400, 320).mean(dim=2, keepdim=True).expand(-1, -1, 8)

    def encode_text(self, texts: list[str]) -> Any:
        return torch.stack([self.letters[list(text.encode())].mean(dim=0) for text in texts])


def test_a_users_encoder_needs_only_the_method() -> None:
    encoder = build(Bagged())
    assert encoder.facts.takes_text
    assert encoder.text_sha256 == build(Bagged()).text_sha256
    assert run_of(encoder).encode_texts(["dog", "rain"]).shape == (2, 8)


@pytest.mark.parametrize(
    "broken",
    [
        lambda vectors: vectors[:, :4],
        lambda vectors: vectors[:1],
        lambda vectors: vectors.long(),
        lambda vectors: vectors / 0.0,
        lambda vectors: vectors.detach().numpy(),
    ],
)
def test_an_output_that_breaks_the_contract_is_named(broken: Any) -> None:
    module = Bagged()
    whole = module.encode_text
    module.encode_text = lambda texts: broken(whole(texts))  # type: ignore[method-assign]
    with pytest.raises(EncoderContractError, match="encode_text"):
        run_of(build(module)).encode_texts(["dog", "rain"])


def checked(encoder: Encoder) -> Check:
    recipe = plan_recipe(encoder, encoder.outputs[0], device="cpu", options=ExtractOptions())
    plan = partial(plan_windows, crop_seconds=None, padding=Padding.parse("0.25"), sample_rate_hz=recipe.sample_rate_hz)
    return check_text(Bench.start(encoder, recipe=recipe, device="cpu", plan=plan))


def test_check_passes_a_sound_text_tower(encoder: Encoder) -> None:
    check = checked(encoder)
    assert (check.name, check.verdict, check.figures["dim"]) == ("text", "ok", encoder.facts.dim)
    assert check.figures["max_relative_difference"] < 1e-5
    assert checked(build(Bagged())).verdict == "ok"


@pytest.mark.parametrize(
    "defect",
    [
        lambda vectors: vectors + vectors.mean(dim=0),
        lambda vectors: vectors + torch.arange(len(vectors))[:, None],
        torch.ones_like,
        lambda vectors: vectors[:, :4],
    ],
)
def test_check_finds_texts_that_affect_each_other(defect: Any) -> None:
    module = Bagged()
    whole = module.encode_text
    module.encode_text = lambda texts: defect(whole(texts))  # type: ignore[method-assign]
    check = checked(build(module))
    assert check.verdict == "failed"
    assert check.advice

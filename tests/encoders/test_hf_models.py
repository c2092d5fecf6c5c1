"""transformers audio models as encoders, against transformers itself on each clip alone."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import FAMILIES, save

from featstore.encoders import load_encoder
from featstore.encoders.adapters.waveform import normalised
from featstore.encoders.devices import move
from featstore.encoders.encoder import Encoder
from handmade import noise, started

MASKED = {"wav2vec2-layer", "wav2vec2-adapter", "data2vec-audio", "hubert", "wavlm", "wav2vec2-bert"}
REACHING = {"wav2vec2-adapter", "data2vec-audio"}  # convolutions after the mask, by design
FIXED = {"whisper", "ast", "clap", "clap-fusion"}
WITH_LAYERS = sorted(FAMILIES.keys() - {"clap", "clap-fusion"})
ONE_OF_EACH_ADAPTER = {"wav2vec2-layer", "wavlm", "whisper", "ast", "wav2vec2-bert", "clap"}
SECONDS = (1.0, 0.76, 0.83, 0.999)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save(family, root / family)
    return root


start = partial(started, frame_dtype="float32")


def stacked(waves: list[np.ndarray], *, to: int) -> tuple[np.ndarray, np.ndarray]:
    audio = np.zeros((len(waves), to), np.float32)
    for row, wave in enumerate(waves):
        audio[row, : len(wave)] = wave
    return audio, np.array([len(wave) for wave in waves])


def waves(encoder: Encoder) -> list[np.ndarray]:
    rate = encoder.facts.sample_rate_hz
    return [noise(seconds, seed=number, rate=rate) + 0.05 for number, seconds in enumerate(SECONDS)]


def alone(encoder: Encoder, wave: np.ndarray, *, to: int | None = None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Utterance vector and frames of each output, of one window in a batch of its own."""
    found = start(encoder)(*stacked([wave], to=to or len(wave)))
    return [(each.utterance[0], each.frames[0] if each.frames else each.utterance) for each in found]


def normalised_in_float64(extractor: Any, wave: np.ndarray) -> torch.Tensor:
    """What SeamlessM4TFeatureExtractor means; in float32 it misses that by up to 1e-4."""
    raw = extractor(wave, sampling_rate=16_000, return_tensors="np", do_normalize_per_mel_bins=False)
    steps = int(1 + (len(wave) - 400) // 160)
    banks = raw["input_features"].reshape(-1, extractor.num_mel_bins).astype(np.float64)
    banks[:steps] -= banks[:steps].mean(0)
    banks[:steps] /= np.sqrt(banks[:steps].var(0, ddof=1) + 1e-7)
    banks[steps:] = 0
    return torch.from_numpy(banks.reshape(1, -1, 2 * extractor.num_mel_bins)).float()


def by_transformers(path: Path, wave: np.ndarray, *, layer: int | None = None) -> torch.Tensor:
    """Frames (frames, dim) that transformers gives for a clip alone, by its own feature extractor."""
    extractor, model = peer(path)
    inputs = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    if model.config.model_type == "wav2vec2-bert":
        inputs["input_features"] = normalised_in_float64(extractor, wave)
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        if model.config.model_type == "clap":
            found = model.audio_model(input_features=inputs["input_features"], is_longer=torch.tensor([[False]]))
            return model.audio_projection(found.pooler_output)
        found = model(**inputs, output_hidden_states=layer is not None)
    state = found.last_hidden_state[0] if layer is None else found.hidden_states[layer][0]
    if model.config.model_type == "audio-spectrogram-transformer":  # a 12 x 12 grid of patches in 128 steps
        return state[2:].reshape(2, 12, -1).mean(0)
    return state


def tolerance(family: str) -> float:
    """A last bit of a spectrum that falls to the other side is seen through a band that hardly changes."""
    return 5e-5 if family == "wav2vec2-bert" else 1e-5


def encoder_of(folder: Path, family: str, **options: Any) -> Encoder:
    return load_encoder(f"hf:{folder / family}", **options)


unchanged = cache(encoder_of)
"""The encoder of tests that leave it as it is."""


@cache
def peer(path: Path) -> tuple[Any, Any]:
    """Feature extractor and model of transformers."""
    return transformers.AutoFeatureExtractor.from_pretrained(path), transformers.AutoModel.from_pretrained(path).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_alone_gives_what_transformers_gives_by_its_own_feature_extractor(family: str, folder: Path) -> None:
    encoder = unchanged(folder, family)
    for wave in waves(encoder)[1:3]:
        [(_, frames)] = alone(encoder, wave)
        expected = by_transformers(folder / family, wave)[: len(frames)].numpy()
        assert len(expected) == len(frames)
        np.testing.assert_allclose(frames, expected, rtol=1e-5, atol=tolerance(family))


@pytest.mark.parametrize("family", WITH_LAYERS)
def test_each_layer_is_the_hidden_state_that_transformers_gives(family: str, folder: Path) -> None:
    encoder = encoder_of(folder, family, layers=(0, 2, None, 3))
    wave = waves(encoder)[1]
    found = alone(encoder, wave)
    assert len(found) == 4
    for (_, frames), layer in zip(found, (0, 2, None, 3), strict=True):
        expected = by_transformers(folder / family, wave, layer=layer)[: len(frames)].numpy()
        np.testing.assert_allclose(frames, expected, rtol=1e-5, atol=tolerance(family), err_msg=str(layer))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_window_embeds_the_same_alone_and_in_a_batch(family: str, folder: Path) -> None:
    encoder = encoder_of(folder, family, layers=(1, None) if family in WITH_LAYERS else ())
    windows, rate = waves(encoder), encoder.facts.sample_rate_hz
    together = start(encoder)(*stacked(windows, to=rate))
    for row, wave in enumerate(windows):
        for output, (utterance, frames) in enumerate(alone(encoder, wave, to=rate)):
            np.testing.assert_allclose(together[output].utterance[row], utterance, rtol=1e-5, atol=1e-5)
            if together[output].frames:
                np.testing.assert_allclose(together[output].frames[row], frames, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", sorted((MASKED | FIXED | {"sew"}) - REACHING))
def test_padding_reaches_no_window_of_a_model_with_a_mask_or_a_length_of_its_own(family: str, folder: Path) -> None:
    encoder = unchanged(folder, family)
    for wave in waves(encoder)[1:3]:
        for (utterance, frames), (padded, padded_frames) in zip(
            alone(encoder, wave), alone(encoder, wave, to=2 * len(wave)), strict=True
        ):
            np.testing.assert_allclose(padded, utterance, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(padded_frames, frames, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["wav2vec2-group", "unispeech-sat"])
def test_a_model_without_a_mask_is_given_none_and_sees_its_padding(family: str, folder: Path) -> None:
    """As it did in training. The window's own length decides what it sees; `--padding exact` shows it none."""
    encoder = encoder_of(folder, family)
    seen = []
    encoder.module.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    wave = waves(encoder)[1]
    [(exact, _)], [(padded, _)] = alone(encoder, wave), alone(encoder, wave, to=2 * len(wave))
    assert seen == [None, None]
    assert np.abs(exact - padded).max() > 1e-4


@pytest.mark.parametrize("family", sorted(MASKED))
def test_a_model_with_a_mask_is_given_it(family: str, folder: Path) -> None:
    encoder = encoder_of(folder, family)
    seen = []
    encoder.module.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["attention_mask"]), with_kwargs=True
    )
    start(encoder)(*stacked(waves(encoder), to=16_000))
    [mask] = seen
    share = mask.float().mean(dim=1)
    np.testing.assert_allclose(share, SECONDS, atol=0.02)


@pytest.mark.parametrize(
    ("family", "seconds", "frames"),
    [
        ("wav2vec2-layer", 1.0, 49),  # what the convolutions make of 16,000 samples without padding
        ("wav2vec2-adapter", 1.0, 13),
        ("whisper", 1.0, 50),
        ("whisper", 0.011, 1),
        ("whisper", 2.0, 100),
        ("wav2vec2-bert", 1.0, 49),
        ("ast", 1.0, 9),
        ("ast", 0.05, 1),
        ("clap", 1.0, 1),
        ("sew", 1.0, 49),
    ],
)
def test_frames_are_those_of_the_true_duration(family: str, seconds: float, frames: int, folder: Path) -> None:
    encoder = unchanged(folder, family)
    rate = encoder.facts.sample_rate_hz
    [found] = start(encoder)(*stacked([noise(seconds, rate=rate), noise(0.3, rate=rate)], to=2 * rate))
    assert len(found.frames[0]) == frames


@pytest.mark.parametrize("family", FAMILIES)
def test_very_short_and_silent_windows_are_finite(family: str, folder: Path) -> None:
    encoder = unchanged(folder, family)
    short = [np.ones(1, np.float32), noise(0.01, rate=encoder.facts.sample_rate_hz), np.zeros(399, np.float32)]
    for wave in short:
        [(utterance, frames)] = alone(encoder, wave)
        assert np.isfinite(utterance).all()
        assert len(frames) <= 2 or family == "sew"  # what no extractor cuts shorter than 0.1 s


@pytest.mark.parametrize(
    "family",
    [
        family if family in ONE_OF_EACH_ADAPTER else pytest.param(family, marks=pytest.mark.slow)
        for family in sorted(FAMILIES.keys() - {"sew", "clap-fusion"})
    ],
)
def test_a_model_leaves_no_tensor_behind_when_it_is_moved_and_looks_at_none_on_its_device(
    family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the device ``meta`` have no values: to look at one, or to mix it with one of the CPU, is an error.

    transformers looks whether a mask hides anything, and so does its fusion of CLAP; a model without a module of its
    own prepares its input on the CPU.
    """
    encoder = encoder_of(folder, family, layers=(1, None) if family in WITH_LAYERS else ())
    run, device = start(encoder), torch.device("meta")
    move(encoder.module, device)
    for name in ("clap", "spectrogram_transformer", "wav2vec2_bert", "waveform", "whisper"):
        monkeypatch.setattr(f"featstore.encoders.adapters.{name}.full_precision", lambda _: nullcontext())
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda _=None: True)
    for name, value in {"_device": device, "_autocast": nullcontext, "_uploads": object()}.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(run, "_on_device", lambda numbers: torch.from_numpy(numbers).to(device))
    rate = encoder.facts.sample_rate_hz  # a second is what loading has run it on: what it keeps of that is found again
    layers = run._layers(torch.empty((3, rate), device=device), np.array([rate, rate - 99, rate // 2]))
    with torch.inference_mode():
        made = [run._device_output(output, layers[output.layer]) for output in encoder.outputs]
        sent = [tensor for each in made for tensor in (each.is_finite(), *each.to_transfer())]
    assert {tensor.device for tensor in sent} == {device}


def test_a_waveform_is_normalised_over_its_real_samples_as_its_extractor_does_it_alone() -> None:
    clips = [noise(seconds, seed=number) * 0.3 + 0.2 for number, seconds in enumerate(SECONDS)]
    audio, lengths = stacked(clips, to=16_000)
    found = normalised(torch.from_numpy(audio), torch.from_numpy(lengths)).numpy()
    for row, wave in zip(found, clips, strict=True):
        [expected] = transformers.Wav2Vec2FeatureExtractor()(wave, sampling_rate=16_000)["input_values"]
        np.testing.assert_allclose(row[: len(wave)], expected, rtol=1e-5, atol=1e-5)
        assert not row[len(wave) :].any()


def test_whispers_hop_is_20_ms_though_its_extractor_says_10(folder: Path) -> None:
    facts = encoder_of(folder, "whisper").facts
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder / "whisper")
    assert 1000 * extractor.hop_length / extractor.sampling_rate == 10
    assert facts.hop_seconds == 0.02


def test_asts_utterance_vector_is_the_one_its_head_reads(folder: Path) -> None:
    encoder = encoder_of(folder, "ast")
    wave = waves(encoder)[1]
    [(utterance, _)] = alone(encoder, wave)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder / "ast")
    model = transformers.AutoModel.from_pretrained(folder / "ast").eval()
    with torch.no_grad():
        expected = model(**extractor(wave, sampling_rate=16_000, return_tensors="pt")).pooler_output[0]
    np.testing.assert_allclose(utterance, expected.numpy(), rtol=1e-5, atol=1e-5)


def test_spectra_are_made_in_full_precision_whatever_the_models_is(folder: Path) -> None:
    encoder = encoder_of(folder, "whisper")
    audio = torch.from_numpy(stacked(waves(encoder), to=16_000)[0])
    expected = encoder.module.features(audio)
    seen = []
    encoder.module.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        encoder.module(audio)
    torch.testing.assert_close(seen[0], expected)


def test_a_feature_extractor_works_in_full_precision_whatever_the_models_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are written in torch, whose products a lower precision would reach on a CPU."""
    module: Any = encoder_of(folder, "sew").module
    extractor, lowered = module._extractor, []

    def notes(*of: Any, **settings: Any) -> Any:
        lowered.append(torch.is_autocast_enabled("cpu"))
        return extractor(*of, **settings)

    monkeypatch.setattr(module, "_extractor", notes)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        module(torch.zeros(2, 16_000))
    assert lowered == [False, False]

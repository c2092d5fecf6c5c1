"""``dasheng:`` specs, by the package itself and a tiny model of its class."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore.encoders import load_encoder
from featstore.errors import EncoderError

SETTINGS: dict[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1
}  # fmt: skip


def why(spec: str | Path) -> str:
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"dasheng:{spec}")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_published_size_is_loaded_through_the_package(dasheng_package: Path) -> None:
    encoder = load_encoder("dasheng:base")
    assert (encoder.name, encoder.facts.dim, encoder.facts.hop_seconds) == ("dasheng-base", 8, 0.04)
    [output] = encoder.forward(torch.randn(2, 16_000), torch.tensor([16_000, 9600]))
    assert output.n_frames is not None
    assert output.n_frames.tolist() == [25, 15]


def test_a_checkpoint_is_the_same_encoder_wherever_it_lies(dasheng_package: Path, tmp_path: Path) -> None:
    moved = dasheng_package.rename(tmp_path / "my dasheng.pt")
    by_path = load_encoder(f"dasheng:{moved}")
    moved.rename(dasheng_package)
    by_size = load_encoder("dasheng:base")
    assert (by_path.name, by_size.name) == ("my-dasheng", "dasheng-base")
    assert by_path.recipe(**SETTINGS).fingerprint == by_size.recipe(**SETTINGS).fingerprint


def test_what_the_configuration_leaves_out_is_seen_from_the_weights(dasheng_package: Path) -> None:
    dump = torch.load(dasheng_package, weights_only=True)
    result = {name: value for name, value in dump["config"].items() if name not in ("embed_dim", "depth")}
    torch.save({**dump, "config": result}, dasheng_package)
    assert load_encoder("dasheng:base").facts.dim == 8


@pytest.mark.parametrize("change", [{"num_heads": 4}, {"hop_size": 80}])
def test_a_setting_that_is_no_weight_changes_the_fingerprint(change: dict[str, int], dasheng_package: Path) -> None:
    before = load_encoder("dasheng:base").identity
    dump = torch.load(dasheng_package, weights_only=True)
    torch.save({**dump, "config": {**dump["config"], **change}}, dasheng_package)
    assert load_encoder("dasheng:base").identity != before


SECONDS = 2.3  # two whole pieces of the tiny model's one second, and a short one


def by_hand(model: Any, audio: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states of one window and the model's output, written out."""
    patches = model.patch_embed(model.forward_to_spec(audio))
    pieces = []
    for piece in patches.split(25, dim=-1):
        placed = piece + model.time_pos_embed[..., : piece.shape[-1]] + model.freq_pos_embed
        states = [placed.flatten(2).transpose(1, 2)]
        for block in model.blocks:
            states.append(block(states[-1]))
        pieces.append([*states, model.norm(states[-1])])
    return [torch.cat(of_each, dim=1) for of_each in zip(*pieces, strict=True)]


def test_hidden_states_are_those_of_the_package_in_one_pass(dasheng_package: Path) -> None:
    encoder = load_encoder("dasheng:base", layers=[0, 1, 2, None])
    module: Any = encoder.module
    audio = torch.randn(1, int(SECONDS * 16_000), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = by_hand(module.model, audio)
        torch.testing.assert_close(expected[-1], module.model(audio))
        for found, states in zip(encoder.forward(audio, None), expected, strict=True):
            torch.testing.assert_close(found.frames, states)
            assert found.n_frames is not None
            assert found.n_frames.tolist() == [found.frames.shape[1]] == [57]
    assert not torch.allclose(expected[2], expected[3])  # the last block, and what the norm after it makes of that
    assert module._seen == {}


def test_a_layer_is_named_and_fingerprinted_as_those_of_transformers_are(dasheng_package: Path) -> None:
    by_spec, by_option = load_encoder("dasheng:base#layer=1"), load_encoder("dasheng:base", layers=[None, 1])
    layer = by_option.recipe(**SETTINGS, output=by_option.outputs[1])
    assert by_spec.recipe(**SETTINGS) == layer
    assert (layer.encoder, layer.encoder_identity["layer"], layer.dim, layer.hop_seconds) == (
        "dasheng-base.layer1", 1, 8, 0.04
    )  # fmt: skip
    assert by_option.spec_of(by_option.outputs[1]) == "dasheng:base#layer=1"
    assert by_option.recipe(**SETTINGS).fingerprint == load_encoder("dasheng:base").recipe(**SETTINGS).fingerprint
    assert re.search(r"\b0\b.*\b2\b.*\blast\b", why("base#layer=3"))


def test_a_batch_of_padded_windows_gives_each_layer_as_the_window_alone_does(dasheng_package: Path) -> None:
    encoder = load_encoder("dasheng:base", layers=[0, 2, None])
    pair = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.01]])
    lengths = torch.tensor([24_000, 15_000])
    with torch.inference_mode():
        together, alone = encoder.forward(pair, lengths), encoder.forward(pair[1:], lengths[1:])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both.frames[1:], one.frames)
        assert both.n_frames is not None
        assert both.n_frames.tolist() == [37, 23]


def test_a_window_does_not_depend_on_a_loud_neighbour_as_it_does_in_the_package(dasheng_package: Path) -> None:
    module: Any = load_encoder("dasheng:base").module
    pair = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.01]])
    with torch.inference_mode():
        alone = module.model(pair[1:])
        assert (module.model(pair)[1:] - alone).abs().max() > 0.01
        torch.testing.assert_close(module(pair)[0][1:], alone)


def test_a_pickle_that_holds_code_is_refused(dasheng_package: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Bomb(), "config": {}}, dasheng_package)
    assert "pickle" in why(dasheng_package)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_are_reported(dasheng_package: Path) -> None:
    torch.save({"model": {"norm.weight": torch.ones(8)}, "config": {}}, dasheng_package)
    assert "cannot be loaded" in why(dasheng_package)


@pytest.mark.parametrize("which", ["huge", "", "/no/such/file.pt"])
def test_a_size_that_is_not_there_is_reported(which: str) -> None:
    assert "base, 0.6b, 1.2b" in why(which)


@pytest.mark.parametrize("missing", ["dasheng", "torchaudio"])
def test_without_the_package_or_torchaudio_one_line_names_the_remedy(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "dasheng"]:
        monkeypatch.delitem(sys.modules, name)
    if missing == "dasheng":
        monkeypatch.setitem(sys.modules, "dasheng", None)
    else:
        (tmp_path / "dasheng").mkdir()
        (tmp_path / "dasheng/__init__.py").write_text("import torchaudio.transforms\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, "torchaudio", None)
    message = why("base")
    assert missing in message
    assert "torchaudio" in message
    assert "featstore[dasheng]" in message

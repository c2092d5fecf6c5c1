"""``dasheng:`` specs, against a package of the shape of the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from featstore.encoders import load_encoder
from featstore.errors import EncoderError


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
    assert by_path.name == "my-dasheng"
    assert by_path.identity == load_encoder("dasheng:base").identity


def test_what_the_configuration_leaves_out_is_seen_from_the_weights(dasheng_package: Path) -> None:
    dump = torch.load(dasheng_package, weights_only=True)
    torch.save({**dump, "config": {"num_heads": 2}}, dasheng_package)
    assert load_encoder("dasheng:base").facts.dim == 8


@pytest.mark.parametrize("change", [{"num_heads": 4}, {"hop_size": 80}])
def test_a_setting_that_is_no_weight_changes_the_fingerprint(change: dict[str, int], dasheng_package: Path) -> None:
    before = load_encoder("dasheng:base").identity
    dump = torch.load(dasheng_package, weights_only=True)
    torch.save({**dump, "config": {**dump["config"], **change}}, dasheng_package)
    assert load_encoder("dasheng:base").identity != before


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


def test_weights_of_another_model_are_told(dasheng_package: Path) -> None:
    torch.save({"model": {"norm.weight": torch.ones(8)}, "config": {}}, dasheng_package)
    assert "cannot be loaded" in why(dasheng_package)


@pytest.mark.parametrize("which", ["huge", "", "/no/such/file.pt"])
def test_a_size_that_is_not_there_is_told(which: str) -> None:
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
    assert f"not usable: {missing}" in message
    assert "torchaudio that fits torch" in message
    assert "featstore[dasheng]" in message

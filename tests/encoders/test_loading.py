"""Encoders by spec: files, modules, built-ins; and the errors for missing ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from featstore.encoders import load_encoder
from featstore.errors import EncoderContractError, EncoderError
from handmade import XARES_ENCODER


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_encoder.py"
    path.write_text(XARES_ENCODER)
    return path


def why(spec: str | Path, kind: type[EncoderError] = EncoderError, **arguments: object) -> str:
    with pytest.raises(kind) as caught:
        load_encoder(str(spec), arguments=arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("spec", ["logmel", "mfcc"])
def test_built_ins_are_loaded_by_name(spec: str) -> None:
    encoder = load_encoder(spec)
    assert encoder.name == spec
    assert not encoder.has_weights


def test_an_xares_encoder_file_works_unchanged(encoder_file: Path) -> None:
    encoder = load_encoder(str(encoder_file))
    assert (encoder.name, encoder.facts.dim, encoder.facts.hop_seconds) == ("MyEncoder", 12, 0.02)
    assert encoder.has_weights
    assert not encoder.module.training


def test_an_encoder_is_light_by_its_parameters(encoder_file: Path) -> None:
    assert load_encoder("logmel").is_light
    assert load_encoder(str(encoder_file), arguments={"width": 50}).is_light  # 20,000
    assert not load_encoder(str(encoder_file), arguments={"width": 51}).is_light


def test_a_class_of_a_file_is_chosen_by_name(encoder_file: Path) -> None:
    encoder_file.write_text(XARES_ENCODER + "\n\nclass Other(MyEncoder):\n    pass\n")
    assert load_encoder(f"{encoder_file}:Other").name == "Other"


def test_a_class_of_a_module_is_found_by_import(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "handmade_encoders"
    package.mkdir()
    (package / "__init__.py").touch()
    encoder_file.rename(package / "conv.py")
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder("handmade_encoders.conv:MyEncoder")
    assert encoder.name == "MyEncoder"
    assert str(tmp_path) not in sys.path


def test_constructor_arguments_reach_the_class_and_the_identity(encoder_file: Path) -> None:
    encoder = load_encoder(str(encoder_file), arguments={"width": 5})
    assert encoder.facts.dim == 5
    assert encoder.identity["arguments"] == {"width": 5}


def test_a_file_may_import_the_files_beside_it_when_it_is_imported_and_when_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "beside_one.py").write_text("WIDTH = 3\n")
    (tmp_path / "beside_two.py").write_text("SEED = 1\n")
    source = XARES_ENCODER.replace("import torch", "import torch\nfrom beside_one import WIDTH", 1)
    source = source.replace("super().__init__()", "super().__init__()\n        from beside_two import SEED")
    (tmp_path / "two.py").write_text(source.replace("width: int = 12", "width: int = WIDTH"))
    assert load_encoder(str(tmp_path / "two.py")).facts.dim == 3


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("logmell", ["'logmell'", "logmel?"]),
        ("", ["''"]),
        ("nowhere.py", ["nowhere.py", "path"]),
        ("no_such_module_here:Encoder", ["no_such_module_here", "ModuleNotFoundError"]),
        ("json:Encoder", ["json", "Encoder"]),
        ("json:JSONEncoder", ["torch.nn.Module"]),
        ("../up:Encoder", ["../up:Encoder"]),
    ],
)
def test_a_spec_that_names_no_encoder_is_one_line(spec: str, parts: list[str]) -> None:
    message = why(spec)
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("def broken(:\n", ["SyntaxError"]),
        ("raise ValueError('no\\nweights')", ["ValueError: no weights"]),
        ("import sys\nsys.exit(3)", ["SystemExit"]),
        ("x = 1", ["name ends in Encoder"]),
        (f"{XARES_ENCODER}\nclass YourEncoder(MyEncoder): pass\n", ["several", "MyEncoder", "YourEncoder"]),
        ("class MyEncoder:\n    pass", ["torch.nn.Module"]),
        ("import torch\nclass MyEncoder(torch.nn.Module):\n    def __init__(self): raise OSError('disk')", ["disk"]),
    ],
    ids=["syntax", "raises", "exits", "no encoder", "two encoders", "no module", "constructor raises"],
)
def test_a_file_that_holds_no_encoder_is_reported_in_one_line(source: str, parts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(source)
    message = why(path)
    assert all(part in message for part in parts)


def test_a_file_that_is_edited_within_a_second_is_run_as_it_reads(
    encoder_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    encoder_file.write_text(XARES_ENCODER)
    before, written = load_encoder(str(encoder_file)), encoder_file.stat().st_mtime_ns
    encoder_file.write_text(XARES_ENCODER.replace("/ 20", "/ 21"))
    os.utime(encoder_file, ns=(written, written))
    after = load_encoder(str(encoder_file))
    assert after.identity["state_sha256"] != before.identity["state_sha256"]


def test_an_argument_that_the_class_does_not_take_is_reported(encoder_file: Path) -> None:
    assert "depth" in why(encoder_file, depth=3)


def test_an_argument_that_cannot_be_hashed_is_reported() -> None:
    assert "JSON" in why("logmel", mels=float("nan"))
    assert "JSON" in why("logmel", mels=object())


def test_an_encoder_that_returns_nan_is_found_when_it_is_loaded(encoder_file: Path) -> None:
    encoder_file.write_text(XARES_ENCODER.replace(".tanh()", ".log()"))
    assert "NaN" in why(encoder_file, EncoderContractError)


def test_loading_leaves_the_global_generator_alone(encoder_file: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_encoder(str(encoder_file))
    assert torch.equal(torch.rand(3), expected)

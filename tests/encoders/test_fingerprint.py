"""The fingerprint of a recipe changes with whatever decides the numbers, and with nothing else."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.fingerprint import state_sha256
from featstore.extract import ExtractOptions
from featstore.records import Recipe
from handmade import XARES_ENCODER, clip, extract, noise, write_split
from tiny import task

SETTINGS = {"padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ"}


def recipe(encoder: Encoder, **changes: str) -> Recipe:
    return encoder.recipe(**{**SETTINGS, **changes}, format_version=1)


def from_file(folder: Path, source: str = XARES_ENCODER, **arguments: object) -> Encoder:
    folder.mkdir(exist_ok=True)
    path = folder / "my_encoder.py"
    path.write_text(source)
    return load_encoder(str(path), arguments=arguments)


@pytest.fixture
def fingerprint(tmp_path: Path) -> str:
    return recipe(from_file(tmp_path / "here")).fingerprint


def test_it_is_the_same_whenever_and_wherever_the_same_encoder_is_loaded(tmp_path: Path, fingerprint: str) -> None:
    assert recipe(from_file(tmp_path / "there")).fingerprint == fingerprint
    shutil.copy(tmp_path / "here/my_encoder.py", tmp_path / "renamed.py")
    assert recipe(load_encoder(f"{tmp_path / 'renamed.py'}:MyEncoder")).fingerprint == fingerprint


def test_line_endings_are_no_part_of_it(tmp_path: Path, fingerprint: str) -> None:
    folder = tmp_path / "windows"
    folder.mkdir()
    (folder / "my_encoder.py").write_bytes(XARES_ENCODER.replace("\n", "\r\n").encode())
    assert recipe(load_encoder(str(folder / "my_encoder.py"))).fingerprint == fingerprint


def test_one_line_of_source_changes_it(tmp_path: Path, fingerprint: str) -> None:
    changed = XARES_ENCODER.replace(".tanh()", ".tanh().mul(1.0)")
    assert recipe(from_file(tmp_path / "here", changed)).fingerprint != fingerprint


def test_a_file_beside_it_that_it_imports_counts_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = XARES_ENCODER.replace("import torch", "import torch\nimport helper_of_a_test", 1)
    found = []
    for factor in (1.0, 1.0, 2.0):
        monkeypatch.delitem(sys.modules, "helper_of_a_test", raising=False)
        folder = tmp_path / f"copy-{len(found)}"
        folder.mkdir()
        (folder / "helper_of_a_test.py").write_text(f"FACTOR = {factor}\n")
        found.append(recipe(from_file(folder, source)).fingerprint)
    monkeypatch.delitem(sys.modules, "helper_of_a_test", raising=False)
    assert found[0] == found[1] != found[2]


def test_one_argument_changes_it(tmp_path: Path, fingerprint: str) -> None:
    same_width = recipe(from_file(tmp_path / "here", width=12)).fingerprint
    assert len({fingerprint, same_width, recipe(from_file(tmp_path / "here", width=13)).fingerprint}) == 3


def test_one_bit_of_one_weight_changes_it(tmp_path: Path) -> None:
    module = from_file(tmp_path / "here").module
    before = state_sha256(module)
    assert state_sha256(module) == before
    with torch.no_grad():
        weight = module.weight.view(-1)
        weight[7] = torch.nextafter(weight[7], weight[7] + 1)
    assert state_sha256(module) != before


def test_the_name_type_and_shape_of_a_weight_are_part_of_the_state() -> None:
    def state(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return state_sha256(module)

    zeros = torch.zeros(4)
    assert len({state(a=zeros), state(b=zeros), state(a=zeros.double()), state(a=zeros.view(2, 2)), state()}) == 5
    assert state(a=torch.tensor(3)) != state(a=torch.tensor(4))


def test_extra_state_that_is_no_tensor_is_hashed_too() -> None:
    class Extra(torch.nn.Module):
        def __init__(self, value: object) -> None:
            super().__init__()
            self.value = value

        def get_extra_state(self) -> object:
            return self.value

    assert state_sha256(Extra({"a": 1})) != state_sha256(Extra({"a": 2}))


@pytest.mark.parametrize(
    "change",
    [{"padding": "exact"}, {"precision": "bfloat16"}, {"frame_dtype": "float32"}, {"resampler": "other"}],
    ids=lambda change: next(iter(change)),
)
def test_each_setting_of_the_recipe_changes_it(change: dict[str, str], tmp_path: Path, fingerprint: str) -> None:
    assert recipe(from_file(tmp_path / "here"), **change).fingerprint != fingerprint


def test_batch_seconds_workers_and_device_are_no_part_of_it(tmp_path: Path) -> None:
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    found = {
        extract(task(), tmp_path / "data", tmp_path / "store", **options)[0].fingerprint
        for options in ({}, {"batch_seconds": 2.0}, {"workers": 1}, {"device": "cpu"}, {"max_clip_seconds": 9.0})
    }
    assert len(found) == 1


def test_every_option_is_either_in_the_recipe_or_named_here_as_not() -> None:
    in_recipe = {"precision", "frame_dtype", "padding", "max_window_seconds"}
    elsewhere = {
        "device",
        "frames",
        "batch_seconds",
        "check_shards",
        "workers",
        "max_clip_seconds",
        "prune",
        "allow_drift",
        "compiled",
        "profile_path",
    }
    assert set(ExtractOptions.__dataclass_fields__) == in_recipe | elsewhere

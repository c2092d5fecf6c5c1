"""What an extraction picks by itself, what it says of it, and what can be asked of it beside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import tiny
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output
from featstore.errors import UsageError
from featstore.extract import ExtractOptions, plan_recipe
from featstore.system import cores
from handmade import XARES_ENCODER, assert_equal_stores, build, clip, extract, noise, write_split
from layered import Layered


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = [clip(f"c{n:02d}", noise(0.2 + 0.1 * (n % 5), seed=n)) for n in range(20)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=2)
    return tmp_path / "data"


@pytest.fixture
def encoder_file(tmp_path: Path) -> str:
    path = tmp_path / "my_encoder.py"
    path.write_text(XARES_ENCODER)
    return str(path)


def test_a_record_says_what_was_picked(data: Path, tmp_path: Path, encoder_file: str) -> None:
    (light,) = extract(tiny.task(), data, tmp_path / "s", encoder=encoder_file, workers=3)
    assert light.settings == {
        "device": "cpu", "precision": "float32", "batch_seconds": 32.0, "workers": 3,
        "batch_fill": round(10 / 6 / 32, 3),  # 10 s with padding, of three padded lengths in each of two shards
    }  # fmt: skip
    wide = tmp_path / "wide_encoder.py"
    wide.write_text(XARES_ENCODER.replace("width: int = 12", "width: int = 1024"))
    (heavy,) = extract(tiny.task(), data, tmp_path / "s", encoder=str(wide))
    assert heavy.settings["batch_seconds"] == 16.0
    assert heavy.settings["workers"] == min(16, cores())
    assert 0 < heavy.seconds["busy"] <= heavy.seconds["total"]
    (again,) = extract(tiny.task(), data, tmp_path / "s", encoder=encoder_file)
    assert (again.settings["batch_seconds"], again.settings["batch_fill"]) == (None, None)
    assert again.shards_done == 0


def test_a_profile_is_a_trace_of_the_first_batches(data: Path, tmp_path: Path, encoder_file: str) -> None:
    trace = tmp_path / "trace.json"
    extract(tiny.task(), data, tmp_path / "s", encoder=encoder_file, profile_path=trace)
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::conv1d" in names


def test_a_profile_that_cannot_be_written_is_reported_before_anything_is_encoded(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "none"))):
        extract(tiny.task(), data, tmp_path / "s", profile_path=tmp_path / "none" / "trace.json")


def test_tf32_is_for_gpus(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tf32.*cpu"):
        extract(tiny.task(), data, tmp_path / "s", precision="tf32")


@pytest.mark.parametrize(
    ("device", "multiplies", "encoder", "precision"),
    [
        ("cuda", True, "weights", "bfloat16"),
        ("cuda:1", True, "weights", "bfloat16"),
        ("cuda", False, "weights", "float32"),
        ("cuda", True, "logmel", "float32"),
        ("cpu", True, "weights", "float32"),
    ],
)
def test_bfloat16_is_picked_for_weights_on_a_gpu_that_multiplies_in_it(
    device: str, *, multiplies: bool, encoder: str, precision: str, encoder_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featstore.encoders.devices.gpu_multiplies_bfloat16", lambda device: multiplies)
    loaded = load_encoder(encoder_file if encoder == "weights" else encoder)
    recipe = plan_recipe(loaded, loaded.outputs[0], device=device, options=ExtractOptions())
    assert recipe.precision == precision


def test_settings_of_torch_are_as_before_when_a_run_has_ended(data: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    extract(tiny.task(), data, tmp_path / "s")
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_encoder_gives_the_same_store(data: Path, tmp_path: Path) -> None:
    class Doubles(torch.nn.Module):
        sampling_rate, output_dim, hop_size_in_ms = 16_000, 4, 40

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            return 2.0 * audio[:, : audio.shape[1] // 640 * 640].reshape(len(audio), -1, 640)[:, :, :4]

    plain, compiled = build(Doubles()), build(Doubles())
    extract(tiny.task(), data, tmp_path / "plain", encoder=plain, frames="always")
    extract(tiny.task(), data, tmp_path / "compiled", encoder=compiled, frames="always", compiled=True)
    assert compiled.module._compiled_call_impl is not None
    assert_equal_stores(tmp_path / "plain", tmp_path / "compiled")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_layers_of_a_compiled_encoder_give_the_same_store(data: Path, tmp_path: Path) -> None:
    outputs = (Output(layer=1), Output(layer=2, pool="std"), Output())
    for name, compiled in (("plain", False), ("compiled", True)):
        encoder = Encoder(module=Layered().eval(), name="layered", spec="layered", identity={}, outputs=outputs)
        extract(tiny.task(), data, tmp_path / name, encoder=encoder, compiled=compiled)
    assert_equal_stores(tmp_path / "plain", tmp_path / "compiled")

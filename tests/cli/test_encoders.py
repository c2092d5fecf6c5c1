"""Models of transformers on the command line: layers and pools of one pass, and what is told."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from tiny_models import save

import tiny
from handmade import XARES_ENCODER, Run, clip, extract, noise, write_split


def test_layers_and_pools_of_one_extraction_are_probed_by_name(run: Run, folder: Path) -> None:
    save("wav2vec2-layer", folder / "models/wav2vec2-tiny")
    done = run(
        "extract", "tiny.toml", "--encoder", "hf:models/wav2vec2-tiny", "--layers", "2,last", "--pool", "mean,std",
        "--data", "data", "--store", "store",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (
        done.out.count("of which the device was busy; the run waited on") == 3
    )  # once a split, though it made four feature sets of each
    listed = json.loads(run("inspect", "--store", "store", "--split", "test", "--json").out)
    names = [f"wav2vec2-tiny{layer}{pool}" for layer in ("", ".layer2") for pool in ("", ".std")]
    assert sorted(record["encoder"] for record in listed) == sorted(names)
    scored = run("probe", "tiny.toml", "--store", "store", "--encoder", "wav2vec2-tiny.layer2.std", "--json")
    assert [record["encoder"] for record in json.loads(scored.out)] == ["wav2vec2-tiny.layer2.std"]


def test_a_long_run_on_a_cpu_that_has_bfloat16_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featstore.encoders import devices

    gains = import_module("featstore.cli.extract")._would_gain_from_bfloat16
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    encoder = tmp_path / "my_encoder.py"
    encoder.write_text(XARES_ENCODER)
    (short,) = extract(tiny.task(), tmp_path / "data", tmp_path / "store", encoder=str(encoder))
    long = replace(short, bottleneck="encode", seconds={**short.seconds, "encode": 60.0})
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: True)
    assert gains(long)
    assert not gains(short)
    assert not gains(replace(long, bottleneck="read"))
    assert not gains(replace(long, encoder="logmel"))
    assert not gains(replace(long, settings={**long.settings, "precision": "bfloat16"}))
    assert not gains(replace(long, settings={**long.settings, "device": "cuda"}))
    monkeypatch.setattr(devices, "cpu_multiplies_bfloat16", lambda: False)
    assert not gains(long)


def test_a_long_run_on_a_gpu_whose_batches_were_far_from_full_is_told_why(tmp_path: Path) -> None:
    gains = import_module("featstore.cli.extract")._would_gain_from_larger_shards
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    (short,) = extract(tiny.task(), tmp_path / "data", tmp_path / "store")
    on_gpu = {**short.settings, "device": "cuda", "batch_fill": 0.2}
    long = replace(short, bottleneck="encode", seconds={**short.seconds, "encode": 60.0}, settings=on_gpu)
    assert gains(long)
    assert not gains(replace(long, seconds=short.seconds))
    assert not gains(replace(long, bottleneck="decode"))
    assert not gains(replace(long, settings={**on_gpu, "device": "cpu"}))
    assert not gains(replace(long, settings={**on_gpu, "batch_fill": 0.8}))
    assert not gains(replace(long, settings={**on_gpu, "batch_fill": None}))


def test_a_long_run_on_one_gpu_of_several_is_told_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = import_module("featstore.cli.extract")._idle_gpus
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    (short,) = extract(tiny.task(), tmp_path / "data", tmp_path / "store")
    on_gpu = {**short.settings, "device": "cuda"}
    long = replace(short, seconds={**short.seconds, "encode": 60.0}, settings=on_gpu)
    assert idle(long) == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert idle(long) == 7
    assert idle(replace(long, seconds=short.seconds)) == 0
    assert idle(replace(long, workers=8)) == 0
    assert idle(replace(long, settings={**on_gpu, "device": "cuda:3"})) == 0
    assert idle(replace(long, settings=short.settings)) == 0


def test_the_table_counts_layers_as_people_do(run: Run, folder: Path) -> None:
    from featstore.cli.inspect import _natural

    names = ["a.layer10", "a.layer2.std", "a", "a.layer2", "b1"]
    assert sorted(names, key=_natural) == ["a", "a.layer2", "a.layer2.std", "a.layer10", "b1"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--layers", "1,x"], "layers such as 3,6,9,last"),
        (["--layers", "1,1"], "twice"),
        (["--layers", "1"], "logmel has no layers"),
        (["--pool", "median"], "mean, max, std"),
        (["--pool", "max,"], "different names"),
        (["--pool", "max", "--frames", "always"], "add mean to --pool"),
        (["--max-window-seconds", "0"], "x>=0.1"),
        (["--encoder", "hf:./nowhere"], "no model folder"),
        (["--encoder", "dasheng:huge"], "base, 0.6b, 1.2b"),
    ],
)
def test_what_makes_no_sense_is_one_line(options: list[str], part: str, run: Run, folder: Path) -> None:
    done = run("extract", "tiny.toml", "--encoder", "logmel", "--data", "data", "--store", "store", *options)
    assert done.code in (1, 2)
    assert part in done.error_lines[-1]
    assert len(done.error_lines) == 1

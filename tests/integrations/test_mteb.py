"""`CachedEncoder`: mteb's own evaluators score the same with and without it, and no clip is encoded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, DatasetDict
from mteb.mocks import MOCK_MAEB_TASK_GRID
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

import featstore as fs
import mteb_models
from featstore.cli import main
from featstore.encoders import load_encoder
from featstore.errors import EncoderChanged, EncoderContractError, EncoderError, UnusableClip, UsageError
from featstore.extract.single_file import encode_file
from featstore.integrations.mteb import CachedEncoder
from featstore.store import open_store
from fenced import ROOT, blocks
from handmade import environment, noise, run_cli
from mteb_models import DIM, SmallAudioModel, SmallEncoder
from speech_tasks import as_array, speech_tasks, synthetic_speech

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:The number of unique classes is greater than 50%:UserWarning"),
]

SPEECH = synthetic_speech()
KINDS = tuple(speech_tasks(SPEECH))
MOCKS = {task.metadata.name: type(task) for task in MOCK_MAEB_TASK_GRID if "Any2Any" in task.metadata.name}
"""Retrieval across modalities; `speech_tasks` has all other kinds."""
CANARY_PASSES = 4  # three signals, and the first once more


def scores(model: Any, task: Any, *, batch_size: int = 1) -> Any:
    result = mteb.evaluate(
        model, task, cache=None, show_progress_bar=False, encode_kwargs={"batch_size": batch_size}, co2_tracker=False
    )
    return json.loads(json.dumps(result.task_results[0].scores))


def main_score(found: Any) -> float:
    [[only]] = found.values()
    return float(only["main_score"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.zarr"


@pytest.fixture
def without_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb's mock tasks keep their arrays, which `datasets.Audio` would encode to files: that needs FFmpeg."""
    for kind in (Dataset, DatasetDict):
        monkeypatch.setattr(kind, "cast_column", lambda self, *_: self)


def loader(clips: Sequence[Any], *, batch_size: int = 1, **columns: list[Any]) -> Any:
    return torch.utils.data.DataLoader(
        Dataset.from_dict({"audio": list(clips), **columns}),
        batch_size=batch_size,
        collate_fn=lambda rows: {"audio": [row["audio"] for row in rows]},
    )


METADATA = speech_tasks(SPEECH)["classification"].metadata


def encode(model: Any, clips: Sequence[Any], *, batch_size: int = 1, **more: Any) -> np.ndarray:
    given = {"task_metadata": METADATA, "hf_split": "test", "hf_subset": "default", **more}
    found = model.encode(loader(clips, batch_size=batch_size), batch_size=batch_size, **given)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    return found


CLIPS = [as_array(noise(0.3 + 0.1 * number, seed=number)) for number in range(7)]


# --- mteb's evaluators ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_mteb_model_scores_the_same_with_the_cache_and_encodes_each_clip_once(kind: str, store: Path) -> None:
    plain, model = SmallAudioModel(), SmallAudioModel()
    expected = scores(plain, speech_tasks(SPEECH)[kind])
    assert scores(CachedEncoder(model, store=store), speech_tasks(SPEECH)[kind]) == expected
    clips = open_store(store).feature_sets()
    assert len(model.batches) == sum(each.n_clips for each in clips) + CANARY_PASSES
    assert set(model.batches) == {1}
    again = SmallAudioModel()
    assert scores(CachedEncoder(again, store=store), speech_tasks(SPEECH)[kind], batch_size=32) == expected
    assert again.batches == []


@pytest.mark.parametrize("name", sorted(MOCKS))
@pytest.mark.usefixtures("without_torchcodec")
def test_mock_tasks_of_mteb_score_the_same_with_the_cache(name: str, store: Path) -> None:
    expected = scores(SmallAudioModel(), MOCKS[name]())
    model = SmallAudioModel()
    assert scores(CachedEncoder(model, store=store), MOCKS[name]()) == expected
    n_passes = len(model.batches)
    assert n_passes > CANARY_PASSES
    assert scores(CachedEncoder(model, store=store), MOCKS[name]()) == expected
    assert len(model.batches) == n_passes


class OneByOne:
    """An mteb model that writes each clip to a file and encodes the file, as `featstore query` does."""

    def __init__(self, spec: str, folder: Path) -> None:
        self.encoder = load_encoder(spec)
        self.cached = CachedEncoder(self.encoder, store=folder / "unused.zarr")
        self.mteb_model_meta = self.cached.mteb_model_meta
        self.path = folder / "clip.wav"

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        recipe = self.cached._model.card.outputs[0].recipe  # type: ignore[union-attr]
        found = []
        for audio in (audio for batch in inputs for audio in batch["audio"]):
            soundfile.write(self.path, np.asarray(audio["array"], np.float32), audio["sampling_rate"], subtype="FLOAT")
            [vector] = encode_file(self.path, encoder=self.encoder, recipe=recipe, crop_seconds=None).utterance
            found.append(vector)
        return np.array(found)

    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_an_encoder_of_featstore_scores_as_its_vectors_of_single_files(kind: str, store: Path, tmp_path: Path) -> None:
    expected = main_score(scores(OneByOne("mfcc", tmp_path), speech_tasks(SPEECH)[kind]))
    first = scores(CachedEncoder("mfcc", store=store), speech_tasks(SPEECH)[kind], batch_size=8)
    assert main_score(first) == pytest.approx(expected, abs=0.02)  # batches differ, and so may last bits

    encoder, passes = load_encoder("mfcc"), []
    again = CachedEncoder(encoder, store=store)
    encoder.module.register_forward_hook(lambda *_: passes.append(1))
    assert scores(again, speech_tasks(SPEECH)[kind], batch_size=3) == first
    assert passes == []


def test_tasks_that_need_text_are_refused_for_an_encoder_without_text(store: Path) -> None:
    cached = CachedEncoder("mfcc", store=store)
    task = speech_tasks(SPEECH)["zero-shot"]
    with pytest.raises(ValueError, match="audio"):
        scores(cached, task)
    texts = torch.utils.data.DataLoader(Dataset.from_dict({"text": ["a", "b"]}), batch_size=2)
    with pytest.raises(UsageError):
        cached.encode(texts, task_metadata=task.metadata, hf_split="test", hf_subset="default")
    assert not store.exists()


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_vectors_do_not_depend_on_the_batch_where_those_of_the_model_do(store: Path, tmp_path: Path) -> None:
    alone, together = (encode(SmallAudioModel(), CLIPS, batch_size=size) for size in (1, len(CLIPS)))
    assert not np.allclose(alone, together, rtol=0.05)  # as users of mteb report
    assert np.array_equal(encode(CachedEncoder(SmallAudioModel(), store=store), CLIPS, batch_size=len(CLIPS)), alone)
    shuffled = CachedEncoder(SmallAudioModel(), store=tmp_path / "other.zarr")
    assert np.array_equal(encode(shuffled, CLIPS[::-1], batch_size=3)[::-1], alone)


@pytest.mark.parametrize("spec", ["logmel", "mfcc"])
def test_vectors_of_an_encoder_of_featstore_are_those_of_single_files(spec: str, store: Path, tmp_path: Path) -> None:
    alone = encode(OneByOne(spec, tmp_path), CLIPS)
    assert np.allclose(encode(CachedEncoder(spec, store=store), CLIPS, batch_size=4), alone, rtol=1e-5, atol=1e-5)


def test_a_long_clip_is_the_mean_of_its_windows(store: Path, tmp_path: Path) -> None:
    samples = noise(1.7)
    encoder = load_encoder("logmel")
    cached = CachedEncoder(encoder, store=store, max_window_seconds=0.5, padding="exact")
    [vector] = encode(cached, [as_array(samples)])
    [stored] = open_store(store).feature_sets()
    assert (stored.n_clips, len(stored)) == (1, 4)
    soundfile.write(tmp_path / "clip.wav", samples, 16_000, subtype="FLOAT")
    windows = encode_file(tmp_path / "clip.wav", encoder=encoder, recipe=stored.recipe, crop_seconds=None).utterance
    assert np.allclose(vector, np.average(windows, axis=0, weights=stored.seconds), atol=1e-5)
    assert np.array_equal(encode(CachedEncoder("logmel", store=store, max_window_seconds=0.5, padding="exact"),
                                 [as_array(samples)]), vector[None])  # fmt: skip


def test_audio_is_resampled_and_its_channels_averaged(store: Path, tmp_path: Path) -> None:
    samples = noise(0.8, rate=22_050, channels=2)
    cached = CachedEncoder("logmel", store=store)
    [vector] = encode(cached, [as_array(samples.T, rate=22_050)])
    soundfile.write(tmp_path / "clip.wav", samples, 22_050, subtype="FLOAT")
    [stored] = open_store(store).feature_sets()
    encoder = load_encoder("logmel")
    [expected] = encode_file(tmp_path / "clip.wav", encoder=encoder, recipe=stored.recipe, crop_seconds=None).utterance
    assert np.allclose(vector, expected, atol=1e-5)


def test_texts_are_passed_on_to_an_mteb_model(store: Path) -> None:
    texts = torch.utils.data.DataLoader(Dataset.from_dict({"text": ["ab", "c"]}), batch_size=2)
    given: dict[str, Any] = {"task_metadata": METADATA, "hf_split": "test", "hf_subset": "default"}
    found = CachedEncoder(SmallAudioModel(), store=store).encode(texts, **given)
    assert np.array_equal(found, SmallAudioModel().encode(texts, **given))
    assert not store.exists()


# --- the store --------------------------------------------------------------------------------------------------------


def test_a_clip_of_several_splits_and_tasks_is_stored_once(store: Path) -> None:
    model = SmallAudioModel()
    cached = CachedEncoder(model, store=store)
    encode(cached, [*CLIPS, *CLIPS], hf_split="train")
    encode(cached, CLIPS, hf_split="test", batch_size=4)
    as_doubles = [{**clip, "array": clip["array"].astype(np.float64)} for clip in CLIPS]
    encode(CachedEncoder(model, store=store), as_doubles, task_metadata=speech_tasks(SPEECH)["pairs"].metadata)
    assert len(model.batches) == len(CLIPS) + CANARY_PASSES
    [stored] = open_store(store).feature_sets()
    assert (stored.dataset, stored.split, len(stored)) == ("mteb-LocalAudioClassification", "train", len(CLIPS))
    other_rate = [{**clip, "sampling_rate": 8_000} for clip in CLIPS]
    encode(cached, other_rate, hf_split="test", hf_subset="ab/cd")
    assert [each.split for each in open_store(store).feature_sets()] == ["test-ab-cd", "train"]


def test_the_feature_sets_are_those_of_any_store(store: Path) -> None:
    for encoder in (SmallAudioModel(), "logmel"):
        scores(CachedEncoder(encoder, store=store, commit_seconds=0.0), speech_tasks(SPEECH)["classification"])
    opened = open_store(store)
    by_name = {f"{each.encoder}/{each.split}": each for each in opened.feature_sets()}
    assert set(by_name) == {"small-audio-model/train", "small-audio-model/test", "logmel/train", "logmel/test"}
    X, y = by_name["small-audio-model/test"].xy("label")
    assert X.shape == (20, DIM)
    assert sorted(set(y.tolist())) == [0, 1, 2, 3, 4]
    assert by_name["logmel/test"].meta[0]["task"] == "LocalAudioClassification"
    assert len(fs.health(store, encoder="small-audio-model", label="label")) == 2
    for command in ("verify", "inspect", "compact"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--store", str(store)])
        assert not ended.value.code
    again = SmallAudioModel()
    scores(CachedEncoder(again, store=store), speech_tasks(SPEECH)["classification"])
    assert again.batches == []


LONG_CLIPS = [as_array(noise(2.0, seed=number)) for number in range(40)]


def start_encoding(store: Path, *, pause_seconds: float) -> subprocess.Popen[bytes]:
    script = (
        "from test_mteb import *; "
        f"mteb_models.pause_seconds = {pause_seconds}; "
        f"encode(CachedEncoder(SmallAudioModel(), store={str(store)!r}, commit_seconds=0.0), LONG_CLIPS)"
    )
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", script], env=environment(PYTHONPATH=paths))


def stored_clips(store: Path) -> int:
    try:
        return sum(each.n_clips for each in open_store(store).feature_sets())
    except fs.errors.StoreError:
        return 0


def wait_for(process: subprocess.Popen[bytes], store: Path, *, clips: int) -> None:
    until = time.monotonic() + 300
    while stored_clips(store) < clips:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_after_a_kill_only_the_rest_is_encoded(store: Path) -> None:
    process = start_encoding(store, pause_seconds=0.1)
    wait_for(process, store, clips=16)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    committed = stored_clips(store)
    assert 16 <= committed < len(LONG_CLIPS)
    model = SmallAudioModel()
    found = encode(CachedEncoder(model, store=store), LONG_CLIPS)
    assert len(model.batches) == len(LONG_CLIPS) - committed + CANARY_PASSES
    assert np.array_equal(found, encode(SmallAudioModel(), LONG_CLIPS))
    assert stored_clips(store) == len(LONG_CLIPS)
    assert run_cli("verify", "--store", store).returncode == 0


@pytest.mark.slow
def test_two_processes_write_to_one_store_at_once(store: Path) -> None:
    process = start_encoding(store, pause_seconds=0.1)
    wait_for(process, store, clips=8)
    found = encode(CachedEncoder(SmallAudioModel(), store=store, commit_seconds=0.0), LONG_CLIPS)
    process.communicate()
    assert process.returncode == 0
    assert np.array_equal(found, encode(SmallAudioModel(), LONG_CLIPS))
    again = SmallAudioModel()
    assert np.array_equal(encode(CachedEncoder(again, store=store), LONG_CLIPS), found)
    assert again.batches == []
    assert run_cli("verify", "--store", store).returncode == 0


# --- the page ---------------------------------------------------------------------------------------------------------

ON_THE_PAGE = [block.text for block in blocks(ROOT / "docs/how-to/i-have.md") if "CachedEncoder" in block.text]


@pytest.mark.parametrize(("text", "kind"), list(zip(ON_THE_PAGE, ["zero-shot", "clustering"], strict=True)))
def test_the_code_on_the_page_runs(text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a task and a model that are here, in place of those of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: [speech_tasks(SPEECH)[kind]])
    monkeypatch.setattr(mteb, "get_model", lambda name: SmallAudioModel())
    monkeypatch.setattr(mteb, "evaluate", partial(mteb.evaluate, cache=None))
    exec(text, {})
    assert stored_clips(tmp_path / "embeddings.zarr") >= 20


# --- identity ---------------------------------------------------------------------------------------------------------


def recipes(store: Path) -> set[str]:
    return {recipe.group_name for recipe in open_store(store).encoders()}


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"gain": 2.0}, {"revision": "2"}], ids=["weights", "setting", "revision"]
)
def test_a_changed_model_has_another_recipe(change: dict[str, Any], store: Path) -> None:
    encode(CachedEncoder(SmallAudioModel(), store=store), CLIPS)
    changed = SmallAudioModel(**change)
    found = encode(CachedEncoder(changed, store=store), CLIPS)
    assert len(recipes(store)) == 2
    assert len(changed.batches) > len(CLIPS)
    assert np.array_equal(found, encode(SmallAudioModel(**change), CLIPS))


def test_a_model_that_may_read_instructions_is_cached_by_task_and_type_of_prompt(store: Path) -> None:
    model = SmallAudioModel(use_instructions=None)
    cached = CachedEncoder(model, store=store)
    encode(cached, CLIPS)
    encode(cached, CLIPS, prompt_type=mteb.types.PromptType.query)
    encode(cached, CLIPS, task_metadata=speech_tasks(SPEECH)["pairs"].metadata)
    encode(cached, CLIPS)
    assert len(recipes(store)) == 3
    assert len(model.batches) == 3 * (len(CLIPS) + CANARY_PASSES)


def test_arguments_of_encode_are_part_of_the_recipe(store: Path) -> None:
    cached = CachedEncoder(SmallAudioModel(), store=store)
    encode(cached, CLIPS)
    encode(cached, CLIPS, precision="int8")
    assert len(recipes(store)) == 2
    with pytest.raises(UsageError):
        encode(CachedEncoder("logmel", store=store), CLIPS, precision="int8")


@pytest.fixture
def drifted() -> Iterator[None]:
    yield
    mteb_models.hidden_gain = 1.0


@pytest.mark.usefixtures("drifted")
def test_a_model_whose_output_has_changed_is_found_by_its_canary(store: Path) -> None:
    encode(CachedEncoder(SmallAudioModel(), store=store), CLIPS[:4])
    mteb_models.hidden_gain = 1.5
    with pytest.raises(EncoderChanged):
        encode(CachedEncoder(SmallAudioModel(), store=store), CLIPS)
    assert stored_clips(store) == 4
    encode(CachedEncoder(SmallAudioModel(), store=store, allow_drift=True), CLIPS)
    assert stored_clips(store) == len(CLIPS)


def test_the_recipe_is_that_of_extraction(store: Path) -> None:
    module = SmallEncoder()
    cached = CachedEncoder(module, store=store)
    encode(cached, CLIPS)
    assert cached.mteb_model_meta.revision == cached._model.card.outputs[0].recipe.fingerprint  # type: ignore[union-attr]
    [stored] = open_store(store).feature_sets()
    assert stored.recipe == cached._model.card.outputs[0].recipe  # type: ignore[union-attr]
    assert stored.recipe.padding == "0.25"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_clips_that_are_no_audio_are_named_and_all_others_stored(store: Path) -> None:
    silent, broken = as_array(np.zeros(0)), as_array(np.full(8_000, np.nan))
    with pytest.raises(UnusableClip, match=r"2 of 9 .* input 1: it"):
        encode(CachedEncoder("logmel", store=store), [CLIPS[0], silent, broken, *CLIPS[1:]])
    assert stored_clips(store) == len(CLIPS)


class Failing(SmallAudioModel):
    """A model that fails on long clips, or returns what is no vector."""

    def __init__(self, output: Any = None) -> None:
        super().__init__()
        self.output = output

    def encode(self, inputs: Any, **given: Any) -> Any:
        if self.output is not None:
            return self.output
        if len(inputs.dataset[0]["audio"]["array"]) == 0.5 * 16_000:
            raise RuntimeError("out of luck")
        return super().encode(inputs, **given)


def test_a_failure_of_the_model_names_the_inputs_and_keeps_what_was_encoded(store: Path) -> None:
    clips = [*LONG_CLIPS[:8], as_array(noise(0.5)), *LONG_CLIPS[8:10]]
    with pytest.raises(EncoderError, match=r"out of luck.* inputs 8 to 10"):
        encode(CachedEncoder(Failing(), store=store), clips)
    assert stored_clips(store) == 8


def test_an_encoder_that_returns_nan_breaks_its_contract(store: Path) -> None:
    loud = as_array(np.full(8_000, 2.0))
    with pytest.raises(EncoderContractError, match=r"inputs 0 to 2 of mteb-LocalAudioClassification/test"):
        encode(CachedEncoder(NanForLoud(), store=store), [*CLIPS[:2], loud])
    assert stored_clips(store) == 0


class NanForLoud(SmallEncoder):
    """An encoder that fails on what no canary has."""

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return super().forward(audio) / (audio.abs().amax(dim=(1,), keepdim=True)[..., None] <= 1.5)


@pytest.mark.parametrize("output", [np.zeros((1, 2, 3)), np.full((1, 4), np.nan), np.zeros((9, 4))])
def test_output_that_is_not_one_finite_vector_per_clip_is_refused(output: np.ndarray, store: Path) -> None:
    with pytest.raises(EncoderError):
        encode(CachedEncoder(Failing(output), store=store), CLIPS[:1])
    assert stored_clips(store) == 0


@pytest.mark.parametrize(
    ("encoder", "settings", "error"),
    [
        (3, {}, EncoderError),
        ("no/such-model", {}, EncoderError),
        (torch.nn.Linear(2, 2), {}, EncoderContractError),
        (mteb.get_model_meta("mteb/baseline-random-cross-encoder"), {}, EncoderError),
        ("logmel", {"padding": "xares"}, UsageError),
        ("logmel", {"frames": "always"}, UsageError),
        ("logmel", {"colour": "red"}, UsageError),
        ("logmel", {"commit_seconds": -1.0}, UsageError),
        ("mteb/baseline-random-encoder", {"precision": "float32"}, UsageError),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(
    encoder: Any, settings: dict[str, Any], error: type[Exception], store: Path
) -> None:
    with pytest.raises(error):
        CachedEncoder(encoder, store=store, **settings)
    assert not store.exists()


def test_an_encoder_with_several_outputs_is_refused(store: Path) -> None:
    with pytest.raises(UsageError):
        CachedEncoder(load_encoder("logmel", pools=("mean", "max")), store=store)


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(UsageError, match=r"featstore\[mteb\]"):
        CachedEncoder("logmel", store=store)

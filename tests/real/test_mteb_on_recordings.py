"""mteb's tasks over recorded speech, decoded by mteb: the same scores with and without the cache."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import mteb
import pytest
import recordings
from corpus import ENCODERS
from datasets import Audio, Dataset
from ge2e import weights_file
from mteb.abstasks.abstask import AbsTask
from mteb.mocks import MOCK_MAEB_TASK_GRID

from featstore.encoders import load_encoder
from featstore.integrations.mteb import CachedEncoder
from featstore.store import open_store
from mteb_models import SmallAudioModel
from speech_tasks import Recording, speech_tasks, synthetic_speech

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

SPEAKERS, CLIPS = ("cs", "da", "en", "fr", "nl", "pt_BR"), 10
KINDS = tuple(speech_tasks(synthetic_speech(speakers=2, clips=4)))
MOCKS = {task.metadata.name: type(task) for task in MOCK_MAEB_TASK_GRID}


@pytest.fixture(scope="module", autouse=True)
def decoders() -> None:
    missing = [] if importlib.util.find_spec("torchcodec") else ["torchcodec"]
    missing += [] if shutil.which("ffmpeg") else ["ffmpeg"]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; see `make test-real`")


@pytest.fixture(scope="module")
def speech() -> list[Recording]:
    """One speaker's letters and syllables in each of a few languages."""
    if not recordings.KLETTRES.is_dir():
        pytest.skip("not installed: klettres-data; see `make test-real`")
    rows = recordings.languages()
    chosen = [[row for row in rows if row.speaker == speaker][:CLIPS] for speaker in SPEAKERS]
    return [
        Recording(audio=str(recordings.KLETTRES / row.path), speaker=row.speaker) for clips in chosen for row in clips
    ]


def decoded(columns: dict[str, list[Any]]) -> Dataset:
    """A data set of files, whose rows have decoders of torchcodec."""
    found = Dataset.from_dict(columns)
    for name in [name for name in columns if name.startswith("audio")]:
        found = found.cast_column(name, Audio())
    return found


def scores(model: Any, task: AbsTask) -> Any:
    given: Any = {"batch_size": 1}
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, encode_kwargs=given)
    return json.loads(json.dumps(result.task_results[0].scores))


@pytest.mark.parametrize("name", sorted(MOCKS))
def test_mock_tasks_score_the_same_where_mteb_decodes_their_audio(name: str, tmp_path: Path) -> None:
    expected = scores(SmallAudioModel(), MOCKS[name]())
    for _ in range(2):
        model = SmallAudioModel()
        assert scores(CachedEncoder(model, store=tmp_path / "s.zarr"), MOCKS[name]()) == expected
    assert model.batches == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_mteb_model_scores_the_same_on_recordings(kind: str, speech: list[Recording], tmp_path: Path) -> None:
    expected = scores(SmallAudioModel(), speech_tasks(speech, to_dataset=decoded)[kind])
    model = SmallAudioModel()
    assert (
        scores(CachedEncoder(model, store=tmp_path / "s.zarr"), speech_tasks(speech, to_dataset=decoded)[kind])
        == expected
    )
    stored = sum(each.n_clips for each in open_store(tmp_path / "s.zarr").feature_sets())
    assert len(model.batches) == stored + 4  # and the canary
    again = SmallAudioModel()
    assert (
        scores(CachedEncoder(again, store=tmp_path / "s.zarr"), speech_tasks(speech, to_dataset=decoded)[kind])
        == expected
    )
    assert again.batches == []


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_a_trained_encoder_tells_speakers_apart_and_encodes_nothing_twice(
    kind: str, speech: list[Recording], tmp_path: Path
) -> None:
    if weights_file() is None:
        pytest.skip("not installed: the wheel of resemblyzer; see `make test-real`")
    first = scores(
        CachedEncoder(ENCODERS["Ge2eEncoder"], store=tmp_path / "s.zarr"),
        speech_tasks(speech, to_dataset=decoded)[kind],
    )
    [score] = first["test"]
    assert score["main_score"] > 0.8
    encoder, passes = load_encoder(ENCODERS["Ge2eEncoder"]), []
    again = CachedEncoder(encoder, store=tmp_path / "s.zarr")
    encoder.module.register_forward_hook(lambda *_: passes.append(1))
    assert scores(again, speech_tasks(speech, to_dataset=decoded)[kind]) == first
    assert passes == []

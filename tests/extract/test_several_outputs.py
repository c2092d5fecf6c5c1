"""Layers, pools and long clips, from shards to the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import save

import featstore
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output
from featstore.errors import UsageError
from featstore.store import open_store
from featstore.store.verify import verify_store
from handmade import assert_equal_stores, clip, extract, noise, write_split
from layered import Layered
from tiny import task

OUTPUTS = (Output(), Output(layer=0), Output(layer=2), Output(layer=2, pool="std"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = [clip(f"c{number}", noise(0.2 + number / 10, seed=number)) for number in range(6)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=3)
    return tmp_path / "data"


def layered(*outputs: Output, module: Layered | None = None) -> Encoder:
    return Encoder(module=module or Layered(), name="layered", spec="x", identity={"class": "x"}, outputs=outputs)


def feature_sets(store: Path) -> dict[str, Any]:
    return {fs.encoder: fs for fs in open_store(str(store)).feature_sets()}


def test_one_extraction_writes_a_feature_set_for_each_output(data: Path, tmp_path: Path) -> None:
    module = Layered()
    records = extract(task(), data, tmp_path / "store", encoder=layered(*OUTPUTS, module=module), frames="always")
    names = ["layered", "layered.layer0", "layered.layer2", "layered.layer2.std"]
    assert [record.encoder for record in records] == names
    assert [(record.shards_done, record.clips) for record in records] == [(3, 6)] * 4
    assert [record.frames for record in records][3] == 0
    found = feature_sets(tmp_path / "store")
    assert sorted(found) == names
    assert [found[name].recipe.dim for name in names] == [2, 4, 4, 4]
    np.testing.assert_allclose(found["layered.layer2"].utterance, 3 * found["layered.layer0"].utterance, rtol=1e-5)
    np.testing.assert_allclose(
        found["layered.layer2.std"].utterance[1], found["layered.layer2"].frames[1].std(0), rtol=1e-2
    )
    assert verify_store(str(tmp_path / "store")).sound


def test_each_output_is_bit_for_bit_what_an_extraction_of_it_alone_gives(data: Path, tmp_path: Path) -> None:
    extract(task(), data, tmp_path / "together", encoder=layered(*OUTPUTS), frames="auto")
    for output in OUTPUTS:
        extract(task(), data, tmp_path / "apart", encoder=layered(output), frames="auto")
    assert_equal_stores(tmp_path / "together", tmp_path / "apart")


def test_outputs_that_a_shard_has_are_not_written_again(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(task(), data, store, encoder=layered(OUTPUTS[1]))
    before = {path: path.stat().st_mtime_ns for path in (store).rglob("c/*") if path.is_file()}
    records = extract(task(), data, store, encoder=layered(*OUTPUTS))
    assert [(record.shards_done, record.shards_reused) for record in records] == [(3, 0), (0, 3), (3, 0), (3, 0)]
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())
    module = Layered()
    again = layered(*OUTPUTS, module=module)
    passes = module.passes
    records = extract(task(), data, store, encoder=again)
    assert [record.shards_done for record in records] == [0, 0, 0, 0]
    assert module.passes == passes


def test_a_run_that_ends_between_two_outputs_of_a_shard_goes_on_with_the_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featstore.extract.pipeline import ShardExtraction

    committed = ShardExtraction._commit_part
    calls = 0

    def breaks(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= 6:  # from the second output of the second shard on
            raise OSError("the machine went away")
        return committed(*given)

    monkeypatch.setattr(ShardExtraction, "_commit_part", breaks)
    with pytest.raises(OSError, match="went away"):
        extract(task(), data, tmp_path / "store", encoder=layered(*OUTPUTS))
    monkeypatch.undo()
    records = extract(task(), data, tmp_path / "store", encoder=layered(*OUTPUTS))
    assert [record.shards_done for record in records] == [1, 2, 2, 2]
    extract(task(), data, tmp_path / "whole", encoder=layered(*OUTPUTS))
    assert_equal_stores(tmp_path / "store", tmp_path / "whole")


def test_frames_that_no_output_would_keep_are_reported(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"frames.*--pool"):
        extract(task(), data, tmp_path / "store", encoder=layered(Output(pool="max")), frames="always")


def test_a_clip_longer_than_whisper_takes_is_cut_into_windows_of_one_length(tmp_path: Path) -> None:
    """Two seconds here, where the published ones take thirty: seventy would give three as these five do."""
    write_split(tmp_path / "data/tiny", "train", [clip("long", noise(5.0)), clip("short", noise(0.5))])
    encoder = load_encoder(f"hf:{save('whisper', tmp_path / 'whisper')}", layers=[1, None])
    extract(task(), tmp_path / "data", tmp_path / "store", encoder=encoder, frames="always")
    for fs in feature_sets(tmp_path / "store").values():
        assert list(fs.key) == ["long", "long#2", "long#3", "short"]
        np.testing.assert_allclose(fs.seconds, [5 / 3, 5 / 3, 5 / 3, 0.5], atol=1e-4)
        np.testing.assert_allclose(fs.start_seconds, [0, 5 / 3, 10 / 3, 0], atol=1e-4)
        assert [len(frames) for frames in fs.frames] == [84, 84, 84, 25]


def test_a_crop_shorter_than_the_limit_stays_what_it_is(tmp_path: Path) -> None:
    write_split(tmp_path / "data/tiny", "train", [clip("long", noise(2.5))])
    encoder = load_encoder(f"hf:{save('whisper', tmp_path / 'whisper')}")
    cropped = task(data={"dataset": "tiny", "crop_seconds": 1.0})
    extract(cropped, tmp_path / "data", tmp_path / "store", encoder=encoder)
    fs = featstore.open(str(tmp_path / "store")).select()
    np.testing.assert_allclose(fs.seconds, [1.0, 1.0, 0.5])


def test_windows_are_cut_where_it_is_asked_for_and_the_recipe_is_reported(data: Path, tmp_path: Path) -> None:
    plain, cut = (extract(task(), data, tmp_path / "store", max_window_seconds=seconds)[0] for seconds in (None, 0.3))
    assert plain.fingerprint != cut.fingerprint
    assert plain.audio_seconds == cut.audio_seconds
    sets = {fs.recipe.max_window_seconds: fs for fs in open_store(str(tmp_path / "store")).feature_sets()}
    assert len(sets[None]) == 6
    assert len(sets[0.3]) == 1 + 1 + 2 + 2 + 2 + 3
    assert sets[0.3].seconds.max() <= 0.3


@pytest.mark.parametrize("seconds", [0.0, 0.01, float("nan"), float("inf"), -1.0])
def test_a_limit_that_makes_no_sense_is_a_usage_error(seconds: float, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_window_seconds"):
        extract(task(), data, tmp_path / "store", max_window_seconds=seconds)

"""The demo's shards: every clip once, whole or not there, made again only where they must be."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import featstore.demo.shards as shards_module
from featstore.demo.shards import COLLECTIONS, Collection, make_shards, plan_shards, synthesise
from featstore.tasks import find_task, labels

TINY = (
    Collection(dataset="demo-instruments", clips={"train": 5, "test": 2}, shards={"train": 2, "test": 1}),
    Collection(dataset="demo-mixtures", clips={"valid": 3}, shards={"valid": 1}),
)


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.tar")}


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: collection.dataset)
def test_a_plan_holds_every_clip_once_in_shards_of_about_one_size(collection: Collection) -> None:
    plans = plan_shards(collection)
    for split, n_clips in collection.clips.items():
        of_split = [plan for plan in plans if plan.split == split]
        assert [index for plan in of_split for index in range(plan.first, plan.last)] == list(range(n_clips))
        sizes = [plan.last - plan.first for plan in of_split]
        assert max(sizes) - min(sizes) <= 1
        assert len({plan.name for plan in of_split}) == collection.shards[split]


@pytest.mark.parametrize("collection", COLLECTIONS, ids=lambda collection: collection.dataset)
def test_the_built_in_manifest_finds_each_planned_shard_in_one_split(collection: Collection) -> None:
    manifest = find_task(collection.dataset)
    assert manifest.data.dataset == collection.dataset
    assert list(manifest.patterns) == list(collection.clips)
    for plan in plan_shards(collection):
        assert [split for split, pattern in manifest.patterns.items() if Path(plan.name).match(pattern)] == [plan.split]


def test_the_built_in_manifests_read_the_labels_of_the_clips() -> None:
    for collection in COLLECTIONS:
        manifest = find_task(collection.dataset)
        split = next(iter(collection.clips))
        samples = [synthesise(collection.dataset, split, index) for index in range(4)]
        keys, metas = [sample.key for sample in samples], [json.dumps(sample.meta) for sample in samples]
        if manifest.kind == "multilabel":
            wanted = [frozenset(event["label"] for event in sample.meta["events"]) for sample in samples]
            assert labels.field_sets(manifest, keys, metas) == wanted
        else:
            field = collection.dataset.removeprefix("demo-").removesuffix("s")
            assert list(labels.field_values(manifest, keys, metas)) == [sample.meta[field] for sample in samples]


def test_a_tests_weight_is_its_number_of_clips() -> None:
    for collection in COLLECTIONS:
        n_test = collection.clips.get("test", sum(collection.clips.values()))
        assert find_task(collection.dataset).eval_weight == n_test


def test_a_shard_holds_the_clips_as_flac_and_json(tmp_path: Path) -> None:
    import soundfile

    make_shards(tmp_path, collections=TINY)
    members = _members(tmp_path / "demo-instruments" / "train-000001.tar")
    samples = [synthesise("demo-instruments", "train", index) for index in (2, 3, 4)]
    assert list(members) == [f"{sample.key}.{kind}" for sample in samples for kind in ("flac", "json")]
    for sample in samples:
        wave, rate = soundfile.read(io.BytesIO(members[f"{sample.key}.flac"]), dtype="float32")
        assert rate == sample.sample_rate_hz
        np.testing.assert_allclose(wave, sample.waveform, atol=1 / 32768)
        assert json.loads(members[f"{sample.key}.json"]) == sample.meta


def test_the_same_shards_have_the_same_bytes_wherever_they_are_made(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "one", collections=TINY)
    make_shards(tmp_path / "other", collections=TINY)
    assert _contents(tmp_path / "one") == _contents(tmp_path / "other")
    assert (made.made, made.reused, made.clips) == (4, 0, 10)
    assert made.bytes_written == sum(map(len, _contents(tmp_path / "one").values()))


def test_shards_that_are_there_are_used_again_and_only_a_missing_one_is_made(tmp_path: Path) -> None:
    make_shards(tmp_path, collections=TINY)
    before = _contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    again = make_shards(tmp_path, collections=TINY)
    assert (again.made, again.reused, again.clips, again.audio_seconds, again.bytes_written) == (0, 4, 0, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")} == times
    (tmp_path / "demo-instruments" / "train-000000.tar").unlink()
    assert make_shards(tmp_path, collections=TINY).made == 1
    assert _contents(tmp_path) == before


def test_another_synthesis_makes_its_shards_again_and_leaves_other_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shards(tmp_path, collections=TINY)
    theirs = tmp_path / "demo-instruments" / "my-recordings.tar"
    theirs.write_bytes(b"mine")
    monkeypatch.setattr(shards_module, "SYNTHESIS_VERSION", 0)
    assert make_shards(tmp_path, collections=TINY).made == 4
    fewer = Collection(dataset="demo-instruments", clips={"train": 3, "test": 2}, shards={"train": 1, "test": 1})
    assert make_shards(tmp_path, collections=(fewer,)).made == 2
    assert theirs.read_bytes() == b"mine"
    assert not (tmp_path / "demo-instruments" / "train-000001.tar").exists()


def test_a_run_that_breaks_off_leaves_no_half_shard_and_the_next_one_ends_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(dataset: str, split: str, index: int) -> object:
        if split == "train" and index == 4:
            raise KeyboardInterrupt
        return synthesise(dataset, split, index)

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "synthesise", broken)
        with pytest.raises(KeyboardInterrupt):
            make_shards(tmp_path / "broken", collections=TINY)
    assert not (tmp_path / "broken" / "demo-instruments" / "train-000001.tar").exists()
    assert make_shards(tmp_path / "broken", collections=TINY).made >= 1
    make_shards(tmp_path / "whole", collections=TINY)
    assert _contents(tmp_path / "broken") == _contents(tmp_path / "whole")

"""Which clips a score is made of: the shards that the manifest's patterns name, whatever else the store holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

import tiny
from featstore.errors import DataError, UnknownFeatureSet
from featstore.evaluation import load_frame_task, load_task
from featstore.probe import probe_task
from featstore.retrieve import retrieve_task
from featstore.shard_patterns import ShardPattern
from featstore.store import EmbeddedWindow, Member, ShardIdentity, open_split_writer, open_store

CLIPS = {name: tiny.clips(name, 9, windows=2, spread=4.0) for name in "abcdef"}
ONE = {"train": "{a,b,c}.tar", "valid": "d.tar", "test": "{e,f}.tar"}
OTHER = {"train": "{a,b}.tar", "valid": "d.tar", "test": "{c,e,f}.tar"}


def write(
    url: Path,
    split: str,
    shards: Mapping[str, Sequence[tiny.Clip]],
    *,
    crop_seconds: float | None = None,
    frames: bool = False,
    sha256: str = "",
) -> None:
    """One part for each shard, by featstore's writer alone."""
    writer = open_split_writer(
        str(url), recipe=tiny.recipe(dim=8), spec="tiny", dataset="tiny", crop_seconds=crop_seconds, split=split
    )
    for name, clips in shards.items():
        with writer.begin_part(name) as part:
            for clip in clips:
                starts = np.r_[0.0, np.cumsum(clip.seconds)[:-1]]
                for at, (start, seconds) in enumerate(zip(starts, clip.seconds, strict=True)):
                    part.add(
                        EmbeddedWindow(
                            key=clip.key if at == 0 else f"{clip.key}#{at + 1}",
                            meta=f'{{"label": "{clip.label}", "events": []}}',
                            start_seconds=float(start),
                            seconds=float(seconds),
                            utterance=clip.vectors[at].astype(np.float32),
                            frames=np.repeat(clip.vectors[at : at + 1], 3, axis=0).astype(np.float16)
                            if frames
                            else None,
                        )
                    )
            member = Member(
                shard=ShardIdentity(name=name, size=1, sha256=sha256),
                clips=len(clips),
                windows=part.windows,
                frames=part.frames,
                audio_seconds=1.0,
                skipped=(),
            )
            part.commit([member], frames_stored=frames, versions={})


def write_as(url: Path, patterns: Mapping[str, str]) -> None:
    for split, pattern in patterns.items():
        named = [f"{name}.tar" for name in CLIPS if ShardPattern(pattern).matches(f"{name}.tar")]
        write(url, split, {name: CLIPS[name.removesuffix(".tar")] for name in named})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that a manifest with the splits `ONE` was extracted into."""
    write_as(tmp_path / "s.zarr", ONE)
    return tmp_path / "s.zarr"


def clips_of(task, clips) -> set[str]:
    return {task.clip_id[clip].partition("/")[2].partition("-")[0] for clip in clips}


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_a_manifest_that_assigns_a_shard_to_another_split_tests_on_its_own_shards(store: Path, protocol: str) -> None:
    one, other = (
        load_task(open_store(str(store)), tiny.task(splits=splits), encoder=None, protocol=protocol)
        for splits in (ONE, OTHER)
    )
    assert clips_of(one, one.rounds[0].train) == {"a", "b", "c"}
    assert clips_of(one, one.rounds[0].test) == {"e", "f"}
    assert clips_of(other, other.rounds[0].train) == {"a", "b"}
    assert clips_of(other, other.rounds[0].test) == {"c", "e", "f"}


def test_after_both_manifests_were_extracted_neither_sees_the_others_shards(store: Path) -> None:
    """The audit's case: the test group then holds c, e and f, and c is among the first manifest's training clips."""
    write(store, "test", {"c.tar": CLIPS["c"]})
    task = load_task(open_store(str(store)), tiny.task(splits=ONE), encoder=None, protocol="strict")
    assert clips_of(task, task.rounds[0].test) == {"e", "f"}
    alone = store.with_name("alone.zarr")
    write_as(alone, ONE)
    for score in (probe_task, retrieve_task):
        mixed, sound = (score(open_store(str(url)), tiny.task(splits=ONE)) for url in (store, alone))
        assert (mixed.value, mixed.n_test, mixed.features) == (sound.value, sound.n_test, sound.features)


def test_folds_that_were_extracted_as_splits_are_scored_without_another_extraction(store: Path) -> None:
    folds = {"1": "{a,b}.tar", "2": "{c,d}.tar", "3": "[ef].tar"}
    task = load_task(open_store(str(store)), tiny.task(splits=None, folds=folds), encoder=None, protocol="strict")
    assert [clips_of(task, each.test) for each in task.rounds] == [{"a", "b"}, {"c", "d"}, {"e", "f"}]


def test_a_view_reads_what_plain_zarr_reads_of_each_shards_part(store: Path) -> None:
    view = open_store(str(store)).view(encoder="tiny", dataset="tiny", split="test", pattern="{c,e,f}.tar")
    parts = [next(store.glob(f"tiny@*/tiny/*/{name}.*")).relative_to(store) for name in "cef"]
    stored = [zarr.open_array(store, path=f"{part}/utterance", mode="r")[...] for part in parts]
    np.testing.assert_array_equal(view.utterance, np.concatenate(stored))
    keys = [zarr.open_array(store, path=f"{part}/key", mode="r")[...] for part in parts]
    assert view.key.tolist() == np.concatenate(keys).tolist()
    assert (view.n_clips, len(view), view.split) == (27, 54, "test")
    assert [commit.part for commit in view.commits()] == [part.name for part in parts]
    piece = view.utterance_rows.slice(0, 18)
    assert not piece.flags.owndata, "rows of one part are a view of the file"


def test_a_shard_in_several_groups_is_taken_from_the_splits_own_then_from_the_newest(store: Path) -> None:
    changed = {name: [replace(clip, vectors=clip.vectors + at) for clip in CLIPS["c"]] for at, name in enumerate("xyz")}
    write(store, "other", {"c.tar": changed["y"]})
    write(store, "another", {"c.tar": changed["z"]})
    opened = open_store(str(store))
    for split, wanted in (("train", CLIPS["c"]), ("other", changed["y"]), ("test", changed["z"])):
        view = opened.view(encoder="tiny", dataset="tiny", split=split, pattern="c.tar")
        vectors = np.concatenate([clip.vectors for clip in wanted]).astype(np.float32)
        np.testing.assert_array_equal(view.utterance, vectors)


def test_the_content_hash_is_of_the_rows_that_were_used(store: Path) -> None:
    alone = store.with_name("alone.zarr")
    write_as(alone, {"train": "a.tar", "test": "[bc].tar"})
    opened = open_store(str(store))
    part = opened.view(encoder="tiny", dataset="tiny", split="train", pattern="a.tar")
    whole = opened.view(encoder="tiny", dataset="tiny", split="train", pattern=ONE["train"])
    assert part.content_hash == open_store(str(alone)).select(split="train").content_hash
    assert whole.content_hash == opened.select(split="train").content_hash != part.content_hash


def test_the_shards_of_a_crop_are_not_those_of_whole_clips(store: Path) -> None:
    write(store, "test", {"e.tar": CLIPS["a"]}, crop_seconds=5.0)
    opened = open_store(str(store))
    cropped = opened.view(encoder="tiny", dataset="tiny+crop5s", split="test", pattern="*.tar")
    assert set(cropped.clip_key) == {clip.key for clip in CLIPS["a"]}
    with pytest.raises(UnknownFeatureSet):
        opened.view(encoder="tiny", dataset="tiny+crop5s", split="train", pattern="a.tar")


def test_shards_that_a_pattern_lists_and_the_store_lacks_are_counted_with_what_to_run(store: Path) -> None:
    splits = {"train": "{a,b,c,x}.tar", "valid": "d.tar", "test": "{e,f,y,z}.tar"}
    with pytest.raises(UnknownFeatureSet) as caught:
        load_task(open_store(str(store)), tiny.task(splits=splits), encoder=None, protocol="xares")
    for said in ("3 shards", "x.tar", "featstore extract MANIFEST --split train --split test --encoder tiny"):
        assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    globs = {"train": "[abcx].tar", "valid": "d.tar", "test": "[efyz].tar"}  # what these lack cannot be known
    assert load_task(open_store(str(store)), tiny.task(splits=globs), encoder=None, protocol="strict")


OVERLAPPING = {"train": "[abc].tar", "valid": "d.tar", "test": "[cef].tar"}


@pytest.mark.parametrize("changes", [{"splits": OVERLAPPING}, {"splits": None, "folds": OVERLAPPING}], ids=str)
def test_a_shard_on_both_sides_is_an_error_under_strict_and_a_warning_under_xares(store: Path, changes) -> None:
    task = tiny.task(**changes)
    for score in (probe_task, retrieve_task):
        with pytest.raises(DataError) as caught:
            score(open_store(str(store)), task)
        assert re.search(r"\b1\b", str(caught.value))
        assert "c.tar" in str(caught.value)
        assert "\n" not in str(caught.value)
    warnings = {
        each["kind"]: each for each in probe_task(open_store(str(store)), task, protocol="xares").details["warnings"]
    }
    assert warnings["shards_on_both_sides"]["count"] == 1
    assert warnings["keys_on_both_sides"]["count"] == 9
    assert warnings["exact_duplicates"]["count"] == 9 if task.splits else 18


def test_a_key_on_both_sides_is_an_error_under_strict_and_a_warning_under_xares(store: Path) -> None:
    copies = [replace(clip, vectors=clip.vectors + 1) for clip in (*CLIPS["a"][:2], *CLIPS["d"][:1])]
    write(store, "test", {"copies.tar": copies})
    splits = {**ONE, "test": "{e,f,copies}.tar"}
    with pytest.raises(DataError, match=r"\b3\b") as caught:
        load_task(open_store(str(store)), tiny.task(splits=splits), encoder=None, protocol="strict")
    assert any(repr(clip.key) in str(caught.value) for clip in copies)
    record = probe_task(open_store(str(store)), tiny.task(splits=splits), protocol="xares")
    [found] = [each for each in record.details["warnings"] if each["kind"] == "keys_on_both_sides"]
    assert found["count"] == 3


def test_frames_are_read_from_the_group_that_holds_a_shard(tmp_path: Path) -> None:
    for split, pattern in ONE.items():
        named = [name for name in CLIPS if ShardPattern(pattern).matches(f"{name}.tar")]
        write(tmp_path / "f.zarr", split, {f"{name}.tar": CLIPS[name] for name in named}, frames=True)
    view = open_store(str(tmp_path / "f.zarr")).view(
        encoder="tiny", dataset="tiny", split="test", pattern="{c,e,f}.tar"
    )
    for at, frames in enumerate(view.frames):
        np.testing.assert_array_equal(frames, np.repeat(view.utterance[at : at + 1], 3, axis=0).astype(np.float16))
    with pytest.raises(DataError, match=r"c\.tar"):
        load_frame_task(
            open_store(str(tmp_path / "f.zarr")),
            tiny.task(kind="frame", metric="segment_f1_macro", splits=OVERLAPPING,
                      label={"events": "events", "field": "label", "classes": ["x"]}),
            encoder=None,
            protocol="strict",
        )  # fmt: skip


def test_a_set_that_is_trained_and_tested_on_by_declaration_is_separated_and_no_error(store: Path) -> None:
    splits = dict.fromkeys(("train", "valid", "test"), "{a,b,c}.tar")
    task = load_task(open_store(str(store)), tiny.task(splits=splits), encoder=None, protocol="strict")
    assert len(task.rounds) == 5

"""`featstore verify` advises what helps, and only that."""

from __future__ import annotations

import shutil
from pathlib import Path

import tiny
from handmade import Run, clip, extract, noise, write_split


def test_clips_that_stand_in_two_shards_are_reported_with_what_to_do_and_no_repair_is_advised(
    tmp_path: Path, run: Run
) -> None:
    data = tmp_path / "data/tiny"
    write_split(data, "train", [clip("a", noise(0.3))])
    [shard] = data.glob("*.tar")
    again = data / shard.name.replace("0", "1", 1)
    shutil.copy(shard, again)
    extract(tiny.task(), tmp_path / "data", tmp_path / "store")
    outcome = run("verify", "--store", tmp_path / "store")
    assert outcome.code == 1
    assert "extract --prune" in outcome.out
    assert "--repair" not in outcome.out
    again.unlink()
    extract(tiny.task(), tmp_path / "data", tmp_path / "store", prune=True)
    assert run("verify", "--store", tmp_path / "store").code == 0


def test_a_damaged_part_is_reported_with_the_repair(tmp_path: Path, run: Run) -> None:
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    extract(tiny.task(), tmp_path / "data", tmp_path / "store")
    [vectors] = (tmp_path / "store").glob("*/*/*/*/utterance/c/0/0")
    vectors.write_bytes(vectors.read_bytes()[:-1])
    outcome = run("verify", "--store", tmp_path / "store")
    assert outcome.code == 1
    assert f"`featstore verify --store {tmp_path / 'store'} --repair`" in outcome.out


def test_a_folder_that_is_no_store_is_reported_as_such_and_a_repair_deletes_nothing_of_it(
    tmp_path: Path, run: Run
) -> None:
    for name in ("a/b/c/precious.csv", "a/b/c/d/e/precious.csv", "x.wav"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("")
    before = sorted((tmp_path / "mine").rglob("*"))
    outcome = run("verify", "--store", tmp_path / "mine", "--repair")
    assert outcome.code == 1
    assert outcome.out == ""
    assert str(tmp_path / "mine") in outcome.err
    assert sorted((tmp_path / "mine").rglob("*")) == before

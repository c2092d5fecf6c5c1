"""What featstore did not write is left alone and listed, wherever in a store it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from stores import make_store, shard_windows, split_writer, write_part, writing

import featstore
from featstore.cli import cli
from featstore.errors import StoreError
from featstore.store.copy import copy_store
from featstore.store.filesystem import is_temporary
from featstore.store.format import DamagedDocument, seal, unseal
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.repair import repair_store
from featstore.store.verify import verify_store


@pytest.fixture
def store(tmp_path):
    make_store(tmp_path / "s.zarr")
    return tmp_path / "s.zarr"


def split_of(store: Path) -> Path:
    return store / split_writer(store).path


def put_things_of_mine(store: Path) -> dict[str, bytes]:
    """A folder, a file, a Zarr group with attributes, an array and one that is called as a part."""
    split = split_of(store)
    for name in ("notes", "mine.00000000"):
        (split / name / "deep").mkdir(parents=True)
        (split / name / "deep" / "list.txt").write_text("mine")
    (split / "utterance.00000001" / "key").mkdir(parents=True)
    (split / "utterance.00000001" / "key" / "list.txt").write_text("mine")
    (split / "read.me").write_text("mine")
    shutil.copytree(next(split.glob("a.*")), split / "backup")
    for where in (store, split.parent.parent, split.parent, split):
        zarr.create_group(where / "group", attributes={"mine": 1}, zarr_format=3)
        zarr.create_array(where / "array.0000000a", data=np.ones(3), zarr_format=3)
        (where / "bare").mkdir()
    zarr.create_group(split / "group.00000002", attributes={"mine": 1}, zarr_format=3)
    (split / "old").mkdir()
    (split / "old" / "zarr.json").write_text("{not json")
    mine = {path: path for path in store.rglob("*") if path.is_file()}
    return {str(path): path.read_bytes() for path in mine if not path.is_relative_to(next(split.glob("a.*")))}


IN_THE_SPLIT = ["array.0000000a", "backup", "bare", "group", "group.00000002", "mine.00000000", "notes", "old"]
IN_THE_SPLIT += ["read.me", "utterance.00000001"]


def test_extraction_upkeep_and_copies_leave_what_is_not_theirs(store, tmp_path):
    keys = featstore.open(str(store)).select().key.tolist()
    mine = put_things_of_mine(store)
    assert featstore.open(str(store)).select().key.tolist() == keys
    split_writer(store).begin_run()
    write_part(split_writer(store), "b.tar", shard_windows("b.tar"))
    [record] = gc_store(str(store))
    assert len(record.deleted) == 1
    assert list(record.left) == IN_THE_SPLIT
    compact_store(str(store), part_bytes=1 << 20)
    make_store(tmp_path / "other.zarr", shards=("z.tar",))
    copy_store(str(tmp_path / "other.zarr"), str(store), only="everything", encoder=None, dataset=None, split=None)
    repair_store(str(store))
    [record] = gc_store(str(store))
    assert (record.deleted, list(record.left)) == ((), IN_THE_SPLIT)
    assert len(featstore.open(str(store)).select()) == 20
    documents = {str(path) for path in store.glob("*/*/*/*/zarr.json")}
    kept = {name: raw for name, raw in mine.items() if name not in documents or Path(name).exists()}
    for name, raw in kept.items():
        if "/bare/" in name or Path(name).parent.name in IN_THE_SPLIT or "deep" in name or "list.txt" in name:
            assert Path(name).read_bytes() == raw, name
    assert all((split_of(store) / name).exists() for name in IN_THE_SPLIT)


def test_verify_lists_it_without_a_remedy(store):
    put_things_of_mine(store)
    report = verify_store(str(store))
    assert {finding.remedy for finding in report.findings} == {"none"}
    split = split_of(store).relative_to(store)
    where = {finding.where for finding in report.findings}
    assert {f"{split}/{name}" for name in IN_THE_SPLIT if name != "bare"} <= where
    above = [split.parent.parent, split.parent]
    assert {"group", "array.0000000a", *(f"{each}/group" for each in above)} <= where


def test_the_command_lists_what_it_left(store):
    (split_of(store) / "notes").mkdir()
    outcome = CliRunner().invoke(cli, ["gc", "--store", str(store)], catch_exceptions=False)
    assert f"{split_writer(store).path}/notes" in outcome.output
    [record] = json.loads(CliRunner().invoke(cli, ["gc", "--store", str(store), "--json"]).output)
    assert record == {"path": split_writer(store).path, "deleted": [], "left": ["notes"]}


def test_a_store_names_everything_that_is_foreign_and_inspect_shows_it(store):
    assert featstore.open(store).foreign() == ()
    assert "not of featstore" not in CliRunner().invoke(cli, ["inspect", "--store", str(store)]).output
    split = split_writer(store).path
    (store / split / "b.00000001").mkdir()
    (store / split / "b.00000001" / "zarr.json").write_bytes(writing())
    put_things_of_mine(store)
    (store / "damaged").mkdir()
    (store / "damaged" / "zarr.json").write_text("{not json")  # of which `verify` tells
    above = ("", f"{split.split('/')[0]}/", f"{split.rpartition('/')[0]}/")
    expected = {f"{prefix}{name}" for prefix in above for name in ("array.0000000a", "bare", "group")}
    inside = {f"{split}/{name}" for name in IN_THE_SPLIT if name not in ("bare", "old")}
    found = set(featstore.open(store).foreign())
    assert expected | inside <= found <= expected | inside | {f"{split}/bare", f"{split}/old"}
    shown = CliRunner().invoke(cli, ["inspect", "--store", str(store)], catch_exceptions=False)
    assert (shown.exit_code, "array.0000000a" in shown.output) == (0, True)
    assert isinstance(json.loads(CliRunner().invoke(cli, ["inspect", "--store", str(store), "--json"]).output), list)


def test_a_group_of_other_software_is_not_written_over(store, tmp_path):
    group = tmp_path / "new.zarr" / split_writer(store).path
    shutil.copytree(store, tmp_path / "new.zarr", ignore=lambda *_: ["train"])
    zarr.create_group(group, attributes={"mine": 1}, zarr_format=3)
    before = (group / "zarr.json").read_bytes()
    with pytest.raises(StoreError):
        split_writer(tmp_path / "new.zarr")
    assert (group / "zarr.json").read_bytes() == before


def test_what_a_killed_deletion_left_is_recognised_and_deleted(store):
    """Arrays without a document, as older versions and object stores leave them; and a folder that was hidden."""
    split = split_of(store)
    write_part(split_writer(store), "b.tar", shard_windows("b.tar", seed=1), size=2)
    arrays, hidden = sorted(split.glob("b.*"))[0], split / f".b.00000000.{uuid4().hex}"
    writer = split_writer(store)
    if writer.committed()["b.tar"].commit.part == arrays.name:
        arrays = sorted(split.glob("b.*"))[1]
    writer.write_catalogue(without=[arrays.name])
    (arrays / "zarr.json").unlink()
    shutil.rmtree(arrays / "key")
    shutil.copytree(arrays, hidden)
    assert set(split_writer(store).sweep()) == {arrays.name, hidden.name}
    assert not arrays.exists()
    assert not hidden.exists()
    assert verify_store(str(store)).sound


def test_the_temporary_file_of_a_writer_killed_at_its_first_document_is_not_foreign(store):
    begun = split_of(store) / "b.00000001"
    begun.mkdir()
    (begun / f".zarr.json.{uuid4().hex}").write_bytes(b"{")
    assert verify_store(str(store)).sound
    assert gc_store(str(store)) == ()  # it may be a live writer's
    assert begun.exists()


@pytest.mark.parametrize("document", ['{"zarr_format":3,"node_type":"group","attributes":{"mine":{"a":1}}}',
    '{"zarr_format":3,"node_type":"group"}', '{"zarr_format":3,"node_type":"array","shape":[1]}', "{}"])  # fmt: skip
def test_a_document_of_other_software_is_distinguished_from_a_damaged_one(document):
    assert unseal(document.encode()) is None
    ours = seal({"format": 1})
    for at in range(len(ours)):
        for bit in range(8):
            raw = bytearray(ours)
            raw[at] ^= 1 << bit
            try:
                assert unseal(bytes(raw)) == {"format": 1}  # white space became other white space, if anything
            except DamagedDocument:
                continue


def test_gc_deletes_old_temporary_files_of_any_name_anywhere_by_the_store_s_own_clock(store, monkeypatch):
    split = split_of(store)
    part = next(split.glob("a.*"))
    old = [folder / f".{name}.{uuid4().hex}" for folder in (store, split, part) for name in ("zarr.json", "x.npz")]
    new, mine, hidden = store / f".zarr.json.{uuid4().hex}", store / ".gitignore", split / ".notes"
    for path in (*old, new, mine, hidden):
        path.write_bytes(b"{")
    empty, of_mine = split / "d.00000000" / "key", store / "mine" / "empty"
    for path in (empty, of_mine):
        path.mkdir(parents=True)
    for path in (*old, mine, hidden, empty, empty.parent, of_mine):
        os.utime(path, (0, 0))
    monkeypatch.setattr("time.time", lambda: 0.0)  # the clock of this machine is not used
    [record] = [each for each in gc_store(str(store)) if each.path == ""]
    assert {str(store / name) for name in record.deleted} >= {str(path) for path in (*old, empty)}
    assert not any(path.exists() for path in (*old, empty))
    assert all(path.exists() for path in (new, mine, hidden, of_mine))
    assert [path for path in store.rglob(".*") if is_temporary(path.name)] == [new]

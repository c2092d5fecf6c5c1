"""A store that somebody else made may say anything: nothing outside its folder is read, written or deleted."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import make_store, shard_windows, split_writer, write_part

import featstore
from featstore.errors import DamagedPart, FeatstoreError, StoreError
from featstore.store.copy import copy_store
from featstore.store.filesystem import ForeignFile, LocalObjects
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.repair import repair_store
from featstore.store.summary import examine
from featstore.store.verify import verify_store


def content_of(document: Path) -> dict[str, Any]:
    return json.loads(document.read_text())["attributes"]["featstore"]


def forge(document: Path, content: object) -> None:
    """Write a group document whose hash is right, as anybody can who has read the format's page."""
    words = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    attributes = {"featstore": content, "featstore_sha256": hashlib.sha256(words.encode()).hexdigest()}
    document.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))


def split_of(store: Path) -> Path:
    return next(path for path in store.glob("*/*/*") if path.is_dir())


def parts_of(store: Path) -> list[Path]:
    return sorted(path for path in split_of(store).iterdir() if path.is_dir())


@pytest.fixture
def store(tmp_path) -> Path:
    """A store in a folder of its own, beside which lies what an attacker is after."""
    make_store(tmp_path / "inner" / "s.zarr")
    for victim in (tmp_path / "precious", tmp_path / "inner" / "precious"):
        victim.mkdir()
        (victim / "thesis.txt").write_text("years of work")
    return tmp_path / "inner" / "s.zarr"


@pytest.fixture
def nothing_outside_changes(store, tmp_path) -> Iterator[None]:
    def outside() -> dict[str, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file() and store not in path.parents)
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files if "target" not in path.parts}

    before = outside()
    yield
    assert outside() == before


OPERATIONS: dict[str, Callable[[Path, Path], object]] = {
    "inspect": lambda store, _: repr(featstore.open(store)),
    "examine": lambda store, _: [examine(fs).as_json() for fs in featstore.open(store).feature_sets()],
    "read": lambda store, _: [
        (fs.utterance.sum(), fs.key, fs.meta_json, fs.frames.lengths) for fs in featstore.open(store).feature_sets()
    ],
    "verify": lambda store, _: verify_store(str(store)).as_json(),
    "gc": lambda store, _: gc_store(str(store)),
    "compact": lambda store, _: compact_store(str(store), part_bytes=1 << 20),
    "copy": lambda store, target: copy_store(
        str(store), str(target), only="everything", encoder=None, dataset=None, split=None
    ),
    "copy of vectors": lambda store, target: copy_store(
        str(store), str(target), only="utterance", encoder=None, dataset=None, split=None
    ),
    "repair": lambda store, _: repair_store(str(store)),
}


@pytest.mark.usefixtures("nothing_outside_changes")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split", "../../.."),
        ("split", "../../../../precious"),
        ("dataset", "../../precious"),
        ("dataset", "/etc"),
        ("recipe", {"encoder": "../precious"}),
        ("split", "train/../../../.."),
    ],
)
def test_a_split_that_claims_to_be_elsewhere_is_damaged(store, tmp_path, operation, field, value):
    document = split_of(store) / "zarr.json"
    content = content_of(document)
    content[field] = content["recipe"] | value if isinstance(value, dict) else value
    forge(document, content)
    run_an_operation(operation, store, tmp_path)
    if operation in ("read", "gc", "compact"):
        with pytest.raises(DamagedPart):
            OPERATIONS[operation](store, tmp_path / "target")


@pytest.mark.usefixtures("nothing_outside_changes")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("where", ["record", "catalogue"])
def test_a_part_that_claims_to_be_elsewhere_is_damaged(store, tmp_path, operation, where):
    if where == "record":
        document = parts_of(store)[0] / "zarr.json"
        commit = content_of(document)["commit"]
        forge(document, {"commit": commit | {"part": "../../../../../precious"}})
        split = split_of(store) / "zarr.json"
        forge(split, content_of(split) | {"catalogue": []})
    else:
        split = split_of(store) / "zarr.json"
        content = content_of(split)
        content["catalogue"][0]["part"] = "../../../../../precious"
        forge(split, content)
    run_an_operation(operation, store, tmp_path)


@pytest.mark.usefixtures("nothing_outside_changes")
@pytest.mark.parametrize("operation", ["copy", "copy of vectors", "verify", "read", "examine"])
@pytest.mark.parametrize("name", ["key/../../../../.bashrc", "/tmp/.bashrc", "key", "key/c/0/../../../x", "notes.txt"])
def test_a_part_names_no_object_but_those_of_its_arrays(store, tmp_path, operation, name):
    document = parts_of(store)[0] / "zarr.json"
    commit = content_of(document)["commit"]
    commit["objects"][name] = [13, 0]
    forge(document, {"commit": commit})
    run_an_operation(operation, store, tmp_path)
    if operation == "copy":
        with pytest.raises(DamagedPart):
            OPERATIONS[operation](store, tmp_path / "target")
        assert not list(tmp_path.rglob(".bashrc"))


def run_an_operation(operation: str, store: Path, tmp_path: Path) -> None:
    """Run it: the result is a value or an error of one line."""
    problem = ""
    try:
        OPERATIONS[operation](store, tmp_path / "target" / "t.zarr")
    except FeatstoreError as error:
        problem = str(error)
    assert "\n" not in problem


# --- links, pipes and devices -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["gc", "compact", "repair", "copy", "read"])
@pytest.mark.parametrize("depth", ["encoder", "dataset", "split", "part", "array"])
def test_links_below_the_root_are_not_followed(store, tmp_path, operation, depth):
    part = parts_of(store)[0]
    shutil.copytree(part / "utterance", part.parent / "a.00000000" / "utterance")  # gc deletes what a deletion left
    link = {"array": part / "utterance", "part": part, "split": part.parent,
            "dataset": part.parent.parent, "encoder": part.parent.parent.parent}[depth]  # fmt: skip
    moved = tmp_path / "precious" / "moved"
    shutil.move(link, moved)
    link.symlink_to(moved)
    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    run_an_operation(operation, store, tmp_path)
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before


def test_a_link_to_a_feature_set_is_refused_with_its_place(store, tmp_path):
    split = split_of(store)
    shutil.move(split, tmp_path / "elsewhere")
    split.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ForeignFile) as caught:
        featstore.open(store).feature_sets()
    assert str(split) in str(caught.value)


def test_the_root_itself_may_be_a_link(store, tmp_path):
    (tmp_path / "link.zarr").symlink_to(store)
    assert len(featstore.open(tmp_path / "link.zarr").select()) == 15


def test_a_pipe_blocks_no_reader(store):
    part = parts_of(store)[0]
    for file in (part / "utterance" / "c" / "0" / "0", part / "key" / "c" / "0"):
        file.unlink()
        os.mkfifo(file)
    fs = featstore.open(store).select()
    with pytest.raises(StoreError):
        _ = fs.utterance
    with pytest.raises(StoreError):
        _ = fs.key
    problems = [finding.problem for finding in verify_store(str(store)).findings]
    assert len([problem for problem in problems if "not a regular file" in problem]) == 2


def test_a_link_to_a_device_fills_no_memory(store):
    chunk = parts_of(store)[0] / "meta" / "c" / "0"
    chunk.unlink()
    chunk.symlink_to("/dev/zero")
    with pytest.raises(ForeignFile):
        _ = featstore.open(store).select().meta_json
    assert not verify_store(str(store)).sound


def test_a_pipe_or_a_link_beside_the_groups_is_listed_and_left_alone(store, tmp_path):
    os.mkfifo(store / "pipe")
    (store / "link").symlink_to(tmp_path / "precious" / "thesis.txt")
    (store / "my notes.txt").write_text("mine")
    assert len(featstore.open(store).select()) == 15
    assert gc_store(str(store)) == ()
    findings = repair_store(str(store)).findings
    assert sorted(finding.where for finding in findings) == ["link", "my notes.txt", "pipe"]
    assert not any(finding.repaired for finding in findings)
    assert {"link", "my notes.txt", "pipe"} <= {path.name for path in store.iterdir()}


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\\..\\b", "a\0b"])
def test_no_key_leads_out_of_the_folder(tmp_path, key):
    objects = LocalObjects(tmp_path / "s.zarr")
    for call in (objects.read, objects.children, objects.sizes, objects.remove, objects.delete, objects.sync):
        with pytest.raises(StoreError):
            call(key)
    for write in (lambda: objects.write(key, b""), lambda: objects.put(key, [b""])):
        with pytest.raises(StoreError):
            write()
    assert list(tmp_path.iterdir()) == []


# --- fields of the wrong type -----------------------------------------------------------------------------------------

_NUMBERS = (True, -1, 0, 2**63, 10**30, 1.5, float("nan"), float("inf"))
_VALUES = (None, *_NUMBERS, "", "x", "..", "\ud800", [], [[]], {}, {"a": 1})


def mutated(content: Any, rng: random.Random) -> Any:
    """A copy with one value, somewhere, replaced, removed, or given to another name."""
    content = copy.deepcopy(content)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for at in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, at))
            walk(node[at])

    walk(content)
    node, at = rng.choice(places)
    what = rng.random()
    if what < 0.7:
        node[at] = rng.choice(_VALUES)
    elif what < 0.9:
        del node[at]
    elif isinstance(node, dict):
        node["unknown"] = node.pop(at)
    else:
        node.append(rng.choice(_VALUES))
    return content


def attack_with_mutants(tmp_path: Path, *, seeds: range) -> None:
    pristine, store = tmp_path / "pristine.zarr", tmp_path / "s.zarr"
    make_store(pristine, shards=("a.tar",), n=2)
    documents = sorted(path.relative_to(pristine) for path in pristine.rglob("zarr.json")
                       if "attributes" in (text := path.read_text()) and '"featstore"' in text)  # fmt: skip
    contents = {path: content_of(pristine / path) for path in documents}
    for seed in seeds:
        rng = random.Random(seed)
        document = rng.choice(documents)
        content = mutated(contents[document], rng)
        shutil.rmtree(store, ignore_errors=True)  # a mutant may describe a part that gc rightly deletes
        shutil.copytree(pristine, store)
        try:
            forge(store / document, content)
        except UnicodeEncodeError:
            continue
        for operation in ("examine", "read", "verify", "copy", "gc"):
            shutil.rmtree(tmp_path / "target", ignore_errors=True)
            try:
                run_an_operation(operation, store, tmp_path)
            except Exception as error:
                raise AssertionError(f"mutant {seed} of {document}: {operation}") from error


def test_a_document_with_a_field_of_another_type_gives_one_line(tmp_path):
    attack_with_mutants(tmp_path, seeds=range(60))


@pytest.mark.slow
def test_two_thousand_such_documents_give_one_line_each(tmp_path):
    attack_with_mutants(tmp_path, seeds=range(60, 2060))


def test_a_long_shard_name_makes_a_part_that_is_seen(tmp_path):
    shard = "a" * 5 + "." + "b" * 79 + ".tar"  # its last eighty characters begin with a dot, as temporary files do
    writer = split_writer(tmp_path / "s.zarr")
    write_part(writer, shard, shard_windows(shard))
    assert len(featstore.open(tmp_path / "s.zarr").select()) == 5


def test_a_reader_looks_at_each_folder_once_and_at_each_file_when_it_opens_it(tmp_path, monkeypatch):
    objects = LocalObjects(tmp_path)
    for name in ("a", "b"):
        objects.write(f"deep/deeper/{name}", b"x" * 9)
    seen: list[str] = []
    lstat = os.lstat
    monkeypatch.setattr("featstore.store.filesystem.os.lstat", lambda path: seen.append(str(path)) or lstat(path))
    assert [objects.read(f"deep/deeper/{name}", most_bytes=4) for name in "aba"] == [b"xxxxx"] * 3
    assert seen == [f"{tmp_path}/{key}" for key in ("deep", "deep/deeper", *(f"deep/deeper/{name}" for name in "aba"))]
    (tmp_path / "deep/deeper/b").unlink()
    (tmp_path / "deep/deeper/b").symlink_to(tmp_path / "deep/deeper/a")
    with pytest.raises(ForeignFile):
        objects.read("deep/deeper/b")

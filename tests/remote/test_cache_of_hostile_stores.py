"""A cache never lies: what it holds of one store is never read for another, nor anything else in its folder touched."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import make_store

import featstore
from featstore.errors import DamagedPart, FeatstoreError, StoreError
from featstore.store import codecs
from featstore.store.cache import CachedPart, PartCache
from featstore.store.catalogue import read_commit
from featstore.store.filesystem import LocalObjects, open_objects
from featstore.store.format import GROUP_DOCUMENT, Commit, DamagedDocument, ObjectSeal, seal
from featstore.store.verify import verify_store
from servers import web_server


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> PartCache:
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    return PartCache.from_environment()


def change_numbers(store: Path, path: str, *, sealed: bool) -> None:
    """Other utterance vectors in a part; its record is the same, or names their seals."""
    objects = LocalObjects(store)
    key = f"{path}/utterance/c/0/0"
    flat = np.frombuffer(objects.read(key)[:-4], "<f4") + 1
    data = flat.tobytes() + codecs.crc32c(flat).to_bytes(4, "little")
    objects.write(key, data)
    if sealed:
        commit = read_commit(objects, *path.rsplit("/", 1))
        seals = {**commit.objects, "utterance/c/0/0": ObjectSeal(len(data), codecs.seal_crc32c([data]))}
        objects.write(f"{path}/{GROUP_DOCUMENT}", seal({"commit": replace(commit, objects=seals).as_json()}))


@pytest.fixture
def stores(tmp_path) -> tuple[Path, Path, np.ndarray]:
    """A good store, and one that repeats its records with other numbers, which its own seals vouch for."""
    good, bad = tmp_path / "web" / "good.zarr", tmp_path / "web" / "bad.zarr"
    make_store(good, shards=["a.tar"])
    shutil.copytree(good, bad)
    [path] = [each.parent.relative_to(bad).as_posix() for each in bad.glob("*/*/*/*/zarr.json")]
    change_numbers(bad, path, sealed=True)
    return good, bad, np.array(featstore.open(str(good)).select().utterance)


def test_the_numbers_of_a_store_that_repeats_anothers_records_are_not_read_for_the_other(stores, tmp_path):
    good, bad, numbers = stores
    with web_server(tmp_path / "web", ranges=True) as (url, requests):
        wrong = featstore.open(f"{url}/{bad.name}").select().utterance
        assert (wrong != numbers).all()
        np.testing.assert_array_equal(featstore.open(f"{url}/{good.name}").select().utterance, numbers)
        requests.clear()
        assert verify_store(f"{url}/{good.name}").sound
        assert [each for each in requests if each.startswith("GET") and "good.zarr" in each and "utterance/c" in each]
        # in the other order too
        assert (featstore.open(f"{url}/{bad.name}").select().utterance != numbers).all()


def test_what_a_url_gave_once_is_not_read_when_it_gives_something_else(stores, tmp_path):
    """The same URL, behind which one store takes the place of another with the same catalogue."""
    good, bad, numbers = stores
    with web_server(tmp_path / "web", ranges=True) as (url, _):
        assert (featstore.open(f"{url}/bad.zarr").select().utterance != numbers).all()
        shutil.rmtree(bad)
        shutil.copytree(good, bad)
        np.testing.assert_array_equal(featstore.open(f"{url}/bad.zarr").select().utterance, numbers)


def test_copies_that_forge_the_checksum_of_anothers_record_are_kept_apart(stores, tmp_path):
    """CRC-32C is no secret: a hostile store can keep even the seals. Its place is what tells it from another."""
    good, bad, _ = stores
    shutil.rmtree(bad)
    shutil.copytree(good, bad)
    commits = {}
    for name in ("good", "bad"):
        objects = LocalObjects(tmp_path / "web" / f"{name}.zarr")
        [path] = [each.parent.relative_to(objects.root).as_posix() for each in objects.root.glob("*/*/*/*/zarr.json")]
        commits[name] = read_commit(objects, *path.rsplit("/", 1))
    assert commits["good"] == commits["bad"]
    cache = PartCache.from_environment()
    with web_server(tmp_path / "web", ranges=True) as (url, _):
        folders = {cache.folder_of(open_objects(f"{url}/{name}.zarr"), path, commits[name]) for name in commits}
        folders |= {
            cache.folder_of(open_objects(f"{url}/good.zarr{query}"), path, commits["good"])
            for query in ("?v=1", "?v=2")
        }
        assert len(folders) == 4
        with_user = open_objects(f"{url}/good.zarr".replace("://", "://user:pw@"))
        assert cache.folder_of(with_user, path, commits["good"]) in folders  # who asks is no other place


def test_a_record_that_is_not_what_the_catalogue_lists_is_damaged(stores, tmp_path):
    good, _, _ = stores
    objects = LocalObjects(good)
    [path] = [each.parent.relative_to(good).as_posix() for each in good.glob("*/*/*/*/zarr.json")]
    commit = read_commit(objects, *path.rsplit("/", 1))
    objects.write(f"{path}/{GROUP_DOCUMENT}", seal({"commit": replace(commit, seconds=1e9).as_json()}))
    with (
        web_server(tmp_path / "web", ranges=True) as (url, _),
        pytest.raises(DamagedPart, match="commit record"),
    ):
        featstore.open(f"{url}/good.zarr").select().utterance  # noqa: B018


def test_a_copy_that_was_changed_on_this_machine_is_held_against_the_stores_own_seals(stores, tmp_path, cache):
    _, _, numbers = stores
    with web_server(tmp_path / "web", ranges=True) as (url, _):
        featstore.open(f"{url}/good.zarr").select().utterance.sum()
        [folder] = [path for path in cache.parts.iterdir() if path.is_dir()]
        changed = LocalObjects(folder.parent)
        change_numbers(folder.parent, folder.name, sealed=False)
        record = json.loads((folder / GROUP_DOCUMENT).read_bytes())["attributes"]["featstore"]["commit"]
        data = changed.read(f"{folder.name}/utterance/c/0/0")
        record["objects"]["utterance/c/0/0"] = [len(data), codecs.seal_crc32c([data])]
        (folder / GROUP_DOCUMENT).write_bytes(seal({"commit": record}))
        np.testing.assert_array_equal(featstore.open(f"{url}/good.zarr").select().utterance, numbers)


HOSTILE_NAMES = (
    "key/../../../../escaped", "key//escaped", "/tmp/escaped", "key/..", "key\\..\\escaped", "key/.hidden", "key/c/0\n",
    "key/C:/escaped", "key/\0", "",
)  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_of_an_object_leads_out_of_the_cache(name, stores, tmp_path, cache):
    good, _, _ = stores
    objects = LocalObjects(good)
    [path] = [each.parent.relative_to(good).as_posix() for each in good.glob("*/*/*/*/zarr.json")]
    commit = read_commit(objects, *path.rsplit("/", 1))
    data = b"escaped"
    hostile = replace(commit, objects={**commit.objects, name: ObjectSeal(len(data), codecs.seal_crc32c([data]))})

    class Serving(LocalObjects):
        def read(self, key: str, *, most_bytes: int | None = None) -> bytes | None:
            return data if key == f"{path}/{name}" else super().read(key, most_bytes=most_bytes)

    part = CachedPart(Serving(good), path, hostile)
    part.__dict__["commit"] = hostile  # past what validates the record
    before = everything(tmp_path)
    with suppress(StoreError):
        part.fetch("key")
    with suppress(StoreError):
        part._put(name, data)
    with pytest.raises(DamagedDocument):
        Commit.from_json(hostile.as_json())
    assert {each for each in everything(tmp_path) - before if not each.startswith("cache/featstore-parts")} <= {"cache"}
    assert not Path("/tmp/escaped").exists()


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_links_in_the_cache_are_not_followed(stores, tmp_path, cache, monkeypatch):
    with web_server(tmp_path / "web", ranges=True) as (url, _):
        featstore.open(f"{url}/good.zarr").select().utterance.sum()
        [folder] = [path for path in cache.parts.iterdir() if path.is_dir()]
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        (theirs / "precious").write_text("x" * 10_000)
        shutil.rmtree(folder / "utterance")
        (folder / "utterance").symlink_to(theirs)
        with pytest.raises(FeatstoreError, match="symbolic link"):
            featstore.open(f"{url}/good.zarr").select().utterance  # noqa: B018
        (folder / "utterance").unlink()
        (folder / "utterance/c/0").mkdir(parents=True)
        os.mkfifo(folder / "utterance/c/0/0")  # which a reader would wait at for ever
        with pytest.raises(FeatstoreError, match="regular file"):
            featstore.open(f"{url}/good.zarr").select().utterance  # noqa: B018
    (cache.parts / ("f" * 40)).symlink_to(theirs)
    (folder / "more").symlink_to(theirs)
    PartCache(cache.folder, most_bytes=0).trim(keep_since=float("inf"))
    assert (theirs / "precious").exists()
    assert not folder.exists()
    assert (cache.parts / ("f" * 40)).is_symlink()


def test_of_a_users_own_folder_nothing_is_deleted(stores, tmp_path, cache, monkeypatch):
    """FEATSTORE_CACHE names a folder full of other things, the names of older caches among them."""
    own = [
        "thesis.tex", "parts/a.0123456789abcdef/zarr.json", "parts/photos/1.jpg", f"{'a' * 40}/x",
        "featstore/parts/b/c",
    ]  # fmt: skip
    for name in own:
        (cache.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (cache.folder / name).write_bytes(b"precious" * 1000)
        os.utime(cache.folder / name, (1000, 1000))
    monkeypatch.setenv("FEATSTORE_CACHE_GB", "0")
    before = everything(cache.folder)
    with web_server(tmp_path / "web", ranges=True) as (url, _):
        featstore.open(f"{url}/good.zarr").select().utterance.sum()
    kept = {"notes.txt", "a.0123456789abcdef/x", f"{'b' * 39}/x", f"{'B' * 40}/x"}  # in our own folder, of other names
    for name in kept:
        (cache.parts / name).parent.mkdir(parents=True, exist_ok=True)
        (cache.parts / name).write_bytes(b"precious")
    PartCache(cache.folder, most_bytes=0).trim(keep_since=float("inf"))
    after = everything(cache.folder)
    assert before <= after
    assert {f"featstore-parts/{name}" for name in kept} <= after
    assert not [path for path in cache.parts.iterdir() if len(path.name) == 40 and path.name.islower()][1:]


def test_a_folder_of_that_name_that_featstore_did_not_make_is_left_alone(stores, tmp_path, cache):
    theirs = cache.parts / ("a" * 40)
    theirs.mkdir(parents=True)
    (theirs / "precious").write_bytes(b"x")
    PartCache(cache.folder, most_bytes=0).trim(keep_since=float("inf"))
    with (
        web_server(tmp_path / "web", ranges=True) as (url, _),
        pytest.raises(StoreError, match="FEATSTORE_CACHE"),
    ):
        featstore.open(f"{url}/good.zarr").select().utterance  # noqa: B018
    ours = f"featstore-parts/{'a' * 40}"
    assert everything(cache.folder) == {"featstore-parts", ours, f"{ours}/precious"}


def test_processes_that_make_the_folder_at_once_make_one(cache):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: cache.make(), range(16)))
    assert everything(cache.folder) == {"featstore-parts", "featstore-parts/.featstore-cache"}


def test_opening_costs_one_record_for_each_part(tmp_path):
    make_store(tmp_path / "web" / "x.zarr", shards=[f"{letter}.tar" for letter in "abcde"])
    with web_server(tmp_path / "web", ranges=True) as (url, requests):
        first = featstore.open(f"{url}/x.zarr").select()
        assert len(first.utterance) == len(first.key) == len(first.meta_json) == 25
        requests.clear()
        store = featstore.open(f"{url}/x.zarr")
        fs = store.select()
        assert len(requests) <= 6  # documents and listings: none of a part
        fs.utterance.sum()
        fs.key.tolist()
        fs.meta_json.tolist()
        assert len(requests) <= 6 + 5

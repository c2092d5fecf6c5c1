from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from stores import split_writer

import featstore
import handmade
import tiny
from featstore.errors import DataError, StoreError, UsageError
from featstore.records import Recipe
from featstore.retrieve import index as faiss_indexes
from featstore.retrieve import open_index, retrieve_task
from featstore.retrieve.index_files import (
    UnusableIndex,
    index_folders,
    key_path,
    signature,
    sizes_and_checksums,
    usable_record,
    write_record,
)
from featstore.retrieve.index_plan import plan_ivf
from featstore.store import FeatureSet, Member, ShardIdentity, WindowBlock, open_split_writer
from featstore.store.filesystem import open_objects

DIM, ROWS = 24, 3000


def vectors(n: int, *, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Rows around centres, in a few of their directions, of any length."""
    rng = np.random.default_rng(seed)
    plane = np.random.default_rng(99).standard_normal((6, dim))
    around = np.random.default_rng(98).standard_normal((40, 6))
    rows = (around[rng.integers(40, size=n)] + 0.4 * rng.standard_normal((n, 6))) @ plane
    return (rows * rng.uniform(0.2, 5, (n, 1))).astype(np.float32)


def write(
    url: str | Path, rows: np.ndarray, *, shards: int = 2, split: str = "train", recipe: Recipe | None = None
) -> None:
    """Rows as the windows of some shards; a shard's hash is of its rows, so that other rows are another content."""
    if recipe is None:
        writer = split_writer(url, split=split, dim=rows.shape[1])
    else:
        writer = open_split_writer(str(url), recipe=recipe, spec="tiny", dataset="tiny", crop_seconds=None, split=split)
    for number, some in enumerate(np.array_split(rows, shards)):
        n, name = len(some), f"{split}-{number}.tar"
        with writer.begin_part(name) as part:
            part.add_block(
                WindowBlock(
                    keys=[f"{split}-{number}-{at}" for at in range(n)],
                    metas=[json.dumps({"label": f"class-{int(row[0] > 0)}"}) for row in some],
                    start_seconds=np.zeros(n),
                    seconds=np.ones(n),
                    utterance=some,
                    frames=None,
                    frame_counts=None,
                )
            )
            shard = ShardIdentity(name=name, size=n, sha256=str(hash(some.tobytes())))
            member = Member(shard=shard, clips=n, windows=n, frames=0, audio_seconds=n, skipped=())
            part.commit([member], frames_stored=False, versions={})
    writer.write_catalogue()
    writer.sweep()


def feature_set(url: str | Path, **selection: str) -> FeatureSet:
    return featstore.open(str(url)).select(**selection)


def cosines(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    unit = [each.astype(np.float64) / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, rows)]
    return unit[0] @ unit[1].T


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    url = tmp_path_factory.mktemp("saved") / "s.zarr"
    write(url, vectors(ROWS))
    return url


@pytest.fixture(scope="module")
def indexed_once(tmp_path_factory) -> Path:
    url = tmp_path_factory.mktemp("indexed") / "s.zarr"
    write(url, vectors(300))
    open_index(feature_set(url))
    return url


@pytest.fixture
def indexed(indexed_once, tmp_path) -> Path:
    """A store of 300 vectors with its index."""
    for path in (indexed_once, indexed_once.with_name("s.zarr.index")):
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / indexed_once.name


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_an_index_finds_the_nearest_by_cosine_and_is_made_once(store, kind):
    lines: list[str] = []
    index = open_index(feature_set(store), kind, notify=lines.append)
    assert index.folder == store.with_name("s.zarr.index") / feature_set(store).path / kind
    assert sorted(files_of(index.folder)) == ["index.faiss", "index.json", "lists.ivfdata"]
    assert [kind in line for line in lines] == [True]

    queries = vectors(50, seed=1)
    exact = cosines(queries, vectors(ROWS))
    found, sure = index.search(queries, 10), index.search_exactly(queries, 10)
    np.testing.assert_array_equal(sure.rows, np.argsort(-exact, axis=1)[:, :10])
    np.testing.assert_allclose(found.similarities, np.take_along_axis(exact, found.rows, axis=1), atol=1e-5)
    recall = np.mean([np.isin(one, other).mean() for one, other in zip(sure.rows, found.rows, strict=True)])
    assert index.recall >= 0.95
    assert recall > 0.85

    before = files_of(index.folder)
    again = open_index(feature_set(store), kind, notify=lines.append)
    np.testing.assert_array_equal(again.search(queries, 10).rows, found.rows)
    assert files_of(index.folder) == before
    assert len(lines) == 1


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_an_index_of_skewed_rows_has_the_lists_of_its_plan_and_leaves_the_threads_of_faiss_alone(kind):
    rows = np.r_[vectors(66_000), np.tile(vectors(1, seed=5), (6000, 1)), -vectors(3, seed=6)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    plan, threads = plan_ivf(len(rows), DIM, kind), faiss.omp_get_max_threads()
    index = faiss_indexes.train_index(plan, rows)
    assert (index.nlist, index.quantizer.ntotal, index.is_trained) == (plan.n_lists, plan.n_lists, True)
    assert faiss.omp_get_max_threads() == threads


def test_the_recall_it_tells_is_that_of_a_search_without_the_querys_own_row(store):
    index = open_index(feature_set(store), "ivf")
    record, rows = index.record, vectors(ROWS)
    own = np.unique(np.linspace(0, ROWS - 1, 200).astype(int))
    similarity = cosines(rows[own], rows)
    similarity[np.arange(len(own)), own] = -np.inf
    wanted = np.argsort(-similarity, axis=1)[:, :10]
    got = [row[row != at][:10] for at, row in zip(own, index.search(rows[own], 11).rows, strict=True)]
    recall = np.mean([np.isin(one, other).mean() for one, other in zip(wanted, got, strict=True)])
    assert record.recall == pytest.approx(recall, abs=0.002)
    assert (record.recall_k, record.n_probe) == (10, max(map(int, record.recall_by_probes)))


def test_more_neighbours_than_the_lists_hold_come_from_an_exact_search(store):
    index = open_index(feature_set(store), "ivf")
    for k, expected in ((ROWS, ROWS), (ROWS + 5, ROWS)):
        found = index.search(vectors(2, seed=2), k)
        assert [len(set(row)) for row in found.rows.tolist()] == [expected] * 2
    with pytest.raises(UsageError, match=r"k .* 0"):
        index.search(vectors(1), 0)


def test_an_index_of_what_the_set_held_before_is_never_used_and_goes(tmp_path):
    url = tmp_path / "s.zarr"
    write(url, vectors(600))
    stale = open_index(feature_set(url))
    write(url, vectors(600, seed=7))
    fresh = open_index(feature_set(url))
    assert fresh.folder == stale.folder
    assert fresh.record.content_hash != stale.record.content_hash
    queries = vectors(5, seed=3)
    np.testing.assert_allclose(
        fresh.search(queries, 1).similarities[:, 0], cosines(queries, vectors(600, seed=7)).max(axis=1), atol=0.05
    )
    assert [path.name for path in fresh.folder.parent.iterdir()] == ["ivf"]
    assert stale.search(queries, 1).rows.shape == (5, 1)  # a reader that has it open keeps it


def tell(folder: Path, **changes: object) -> None:
    """Write what stands beside an index anew."""
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**record, **changes}))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "lists.ivfdata").write_bytes(b"cut"), id="lists cut short"),
        pytest.param(lambda folder: (folder / "index.faiss").unlink(), id="a file gone"),
        pytest.param(lambda folder: (folder / "index.json").write_text("{"), id="record damaged"),
        pytest.param(lambda folder: (folder / "index.json").write_text('{"format": 9}'), id="another format"),
        pytest.param(lambda folder: tell(folder, plan={"kind": "ivf"}), id="the plan of another featstore"),
        pytest.param(
            lambda folder: (folder / "index.faiss").write_bytes(bytes((folder / "index.faiss").stat().st_size)),
            id="a file of nothing but zeros",
        ),
    ],
)
def test_an_index_that_is_damaged_is_not_opened(indexed, damage):
    folder = open_index(feature_set(indexed)).folder
    damage(folder)
    assert reason(folder, indexed)


def test_an_index_that_is_replaced_while_it_is_opened_is_not_taken_for_either(indexed, monkeypatch):
    opened: list[Path] = []
    read_lists = faiss_indexes.read_lists

    def replaced(folder: Path, *, dim: int) -> faiss.Index:
        index = read_lists(folder, dim=dim)
        opened.append(folder)
        if len(opened) == 1:
            tell(folder, seconds={"train": 9.0})  # as of another process's making
        return index

    monkeypatch.setattr(faiss_indexes, "read_lists", replaced)
    lines: list[str] = []
    open_index(feature_set(indexed), notify=lines.append)
    assert len(lines) == 1


def test_queries_of_another_width_are_reported_in_one_line(store):
    index = open_index(feature_set(store))
    for search in (index.search, index.search_exactly):
        with pytest.raises(UsageError, match=r"\(queries, 24\).*\(3, 7\)"):
            search(vectors(3, dim=7), 1)


def test_a_disk_that_fills_up_while_lists_are_joined_is_reported_in_one_line(tmp_path):
    plan = plan_ivf(300, DIM, "ivf")
    rows = vectors(300)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "gone"))):
        faiss_indexes.merge_blocks(faiss_indexes.train_index(plan, rows), tmp_path / "gone" / "index")


KILLED = """
import os, signal, sys
import featstore
from featstore.retrieve import index, index_files, open_index

def killed(*_, **options):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "measuring":
    index.read_lists = killed
else:
    index_files._replace = killed
open_index(featstore.open(sys.argv[1]).select())
"""


@pytest.mark.parametrize("when", ["measuring", "naming"])
def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_an_index_and_is_swept(tmp_path, when):
    url = tmp_path / "s.zarr"
    write(url, vectors(300))
    command = [sys.executable, "-c", KILLED, str(url), when]
    child = subprocess.run(command, env=handmade.environment(), capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child
    [folder, _] = index_folders(feature_set(url), "ivf")
    assert not folder.exists()
    assert len(list(folder.parent.iterdir())) == 1
    assert open_index(feature_set(url)).search(vectors(300)[:1], 1).rows.tolist() == [[0]]
    assert [path.name for path in folder.parent.iterdir()] == ["ivf"]


def test_stores_that_differ_in_what_a_url_hides_have_index_folders_of_their_own_without_a_secret(tmp_path):
    write(tmp_path / "s.zarr", vectors(20))
    [local] = featstore.open(str(tmp_path / "s.zarr"))._matching(None, None, None)

    def folder_of(url: str) -> Path:
        there = FeatureSet(open_objects(url), local)
        [folder] = index_folders(there, "ivf")
        return folder

    one, other = (folder_of(f"https://host/s.zarr?token=SECRET{number}") for number in (1, 2))
    assert one != other
    assert one == folder_of("https://host/s.zarr?token=SECRET1")
    assert folder_of("https://user:SECRET@host/s.zarr") == folder_of("https://host/s.zarr")  # one place
    assert "SECRET" not in f"{one}{other}"


def reason(folder: Path, url: Path, kind: str = "ivf") -> str:
    """Why an index is not opened; the test fails where it is."""
    with pytest.raises(UnusableIndex) as caught:
        usable_record(folder, feature_set(url), kind)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["ivf", "ivfpq"])
def test_no_flipped_bit_reaches_faiss(tmp_path, kind):
    url = tmp_path / "s.zarr"
    write(url, vectors(200))
    folder = open_index(feature_set(url), kind).folder
    rng = np.random.default_rng(5)
    opened: list[Path] = []
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in {0, len(whole) - 1, *rng.integers(len(whole), size=60).tolist()}:
            flipped = bytearray(whole)
            flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            try:
                usable_record(folder, feature_set(url), kind)
            except UnusableIndex:
                continue
            assert json.loads(flipped) == json.loads(whole), (path, at)  # white space of the record
            opened.append(path)
        path.write_bytes(whole)
    assert len(opened) < 5
    usable_record(folder, feature_set(url), kind)  # as it was, it is sound


def test_an_index_with_a_flipped_bit_is_made_again_in_one_line(indexed):
    queries = vectors(20, seed=4)
    index = open_index(feature_set(indexed))
    wanted = index.search(queries, 5)
    path = index.folder / "index.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    lines: list[str] = []
    again = open_index(feature_set(indexed), notify=lines.append)
    assert len(lines) == 1
    assert str(index.folder) in lines[0]
    np.testing.assert_array_equal(again.search(queries, 5).rows, wanted.rows)


def test_an_index_that_was_made_on_another_machine_is_made_again(tmp_path, monkeypatch):
    url = tmp_path / "s.zarr"
    write(url, vectors(300))
    with monkeypatch.context() as there:
        there.setenv("XDG_STATE_HOME", str(tmp_path / "there"))
        theirs = open_index(feature_set(url))
    before = files_of(theirs.folder)
    for _ in range(2):  # and without a key that lasts, too
        lines: list[str] = []
        mine = open_index(feature_set(url), notify=lines.append)
        assert len(lines) == 1
        assert str(mine.folder) in lines[0]
        assert files_of(mine.folder) != before
        open_index(feature_set(url), notify=lines.append)
        assert len(lines) == 1
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))


def test_an_index_of_padded_vectors_as_an_earlier_featstore_made_them_is_made_again(tmp_path):
    url, rows = tmp_path / "s.zarr", vectors(300, dim=13)
    write(url, rows)
    folder = open_index(feature_set(url), "ivfpq").folder
    record = usable_record(folder, feature_set(url), "ivfpq")
    wide = np.pad(rows / np.linalg.norm(rows, axis=1, keepdims=True), ((0, 0), (0, 3)))
    for path in folder.iterdir():
        path.unlink()
    index = faiss_indexes.train_index(plan_ivf(300, 16, "ivfpq"), wide)
    faiss_indexes.write_block(index, wide, first=0, folder=folder)
    faiss_indexes.merge_blocks(index, folder)
    sizes, checksums = sizes_and_checksums(folder)
    write_record(replace(record, files=sizes, checksums=checksums), folder)
    usable_record(folder, feature_set(url), "ivfpq")
    lines: list[str] = []
    assert open_index(feature_set(url), "ivfpq", notify=lines.append).search(rows[:9], 1).rows[:, 0].tolist() == [
        *range(9)
    ]
    assert len(lines) == 1


def test_an_index_of_other_content_is_made_again_though_it_was_made_here(tmp_path):
    rows, others = vectors(300), vectors(300, seed=7)
    write(tmp_path / "a.zarr", rows)
    write(tmp_path / "b.zarr", others)
    theirs = open_index(feature_set(tmp_path / "b.zarr")).folder
    [folder, _] = index_folders(feature_set(tmp_path / "a.zarr"), "ivf")
    shutil.copytree(theirs, folder)
    assert "content" in reason(folder, tmp_path / "a.zarr")
    assert open_index(feature_set(tmp_path / "a.zarr")).search(rows[:20], 1).rows[:, 0].tolist() == list(range(20))
    shutil.copytree(folder, folder.with_name("ivfpq"))
    assert "content" in reason(folder.with_name("ivfpq"), tmp_path / "a.zarr", "ivfpq")


def test_what_is_no_file_is_not_waited_for_and_links_are_not_followed(indexed, tmp_path):
    folder = open_index(feature_set(indexed)).folder
    (folder / "lists.ivfdata").rename(tmp_path / "lists")
    (folder / "lists.ivfdata").symlink_to(tmp_path / "lists")
    assert reason(folder, indexed)
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")
    assert reason(folder, indexed)
    shutil.rmtree(folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.rmtree(folder.parent)
    folder.parent.symlink_to(mine)
    assert open_index(feature_set(indexed)).folder != folder
    assert list(mine.iterdir()) == []


def test_the_key_is_this_users_alone_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    command = [sys.executable, "-c", "from featstore.retrieve.index_files import signature; print(signature({}))"]
    children = [subprocess.Popen(command, env=handmade.environment(), stdout=subprocess.PIPE) for _ in range(2)]
    assert len({child.communicate()[0] for child in children} | {f"{signature({})}\n".encode()}) == 1
    path = key_path()
    assert path.is_relative_to(tmp_path)
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, 32)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    path.chmod(0o644)  # others may have read it
    before = path.read_bytes()
    subprocess.run(command, env=handmade.environment(), check=True, capture_output=True)
    assert path.read_bytes() != before
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_hold_it_is_reported_in_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    url = tmp_path / "s.zarr"
    write(url, vectors(300))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StoreError, match=r"ivf.*[\d.]+ kB.*\b0 B\b"):
        open_index(feature_set(url))
    monkeypatch.undo()
    assert not list((tmp_path / "s.zarr.index").rglob("*.faiss"))
    shutil.rmtree(tmp_path / "s.zarr.index")
    (tmp_path / "s.zarr.index").write_text("in the way")
    with pytest.raises(StoreError, match=r"s\.zarr\.index.*FEATSTORE_CACHE"):
        open_index(feature_set(url))


def test_of_a_store_by_url_it_is_kept_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    url, rows = "memory://saved.zarr", vectors(200)
    write(url, rows)
    index = open_index(feature_set(url), "ivfpq")
    assert index.folder.is_relative_to(tmp_path / "cache" / "indexes")
    assert index.search(rows[:20], 1).rows[:, 0].tolist() == list(range(20))


def test_vectors_that_are_not_finite_and_kinds_that_are_not_there_are_reported(tmp_path):
    url, rows = tmp_path / "s.zarr", vectors(50)
    rows[7, 3] = np.nan
    write(url, rows)
    with pytest.raises(DataError, match=r"tiny@\w+/words/train.*`featstore verify"):
        open_index(feature_set(url))
    assert not list((tmp_path / "s.zarr.index").rglob("*.faiss"))
    with pytest.raises(UsageError, match=r"'tree'.*ivf.*ivfpq"):
        open_index(feature_set(url), "tree")


@pytest.mark.parametrize(("rows", "kind"), [(1, "ivf"), (2, "ivfpq")])
def test_a_set_of_hardly_any_rows_is_indexed_too(tmp_path, rows, kind):
    write(tmp_path / "s.zarr", vectors(rows, dim=13), shards=1)
    index = open_index(feature_set(tmp_path / "s.zarr"), kind)
    assert index.search(vectors(rows, dim=13), 1).rows[:, 0].tolist() == list(range(rows))


CHILD = """
import json, sys, threading
from pathlib import Path

import faiss
import numpy as np

import featstore
from featstore.retrieve.index_files import index_folders, usable_record
from featstore.retrieve.index_plan import plan_ivf
from featstore.retrieve.index_files import UnusableIndex, key_path, signature
from featstore.retrieve.saved_index import make_index

def own():  # what no file backs
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

faiss.omp_set_num_threads(1)
rng = np.random.default_rng(0)
warm = faiss.Kmeans(96, 64, niter=1)
warm.train(rng.standard_normal((8192, 96)).astype(np.float32))  # what libraries keep for themselves, whatever the rows
del warm

fs = featstore.open(sys.argv[1]).select()
plan = plan_ivf(len(fs), fs.recipe.dim, sys.argv[2], memory_bytes=int(sys.argv[3]))
before, peak, done = own(), [0], threading.Event()

def look():
    while not done.wait(0.002):
        peak[0] = max(peak[0], own() - before)

threading.Thread(target=look, daemon=True).start()
record = make_index(fs, plan, Path(sys.argv[4]))
done.set()
print(json.dumps([peak[0], record.recall, plan.n_blocks]))
"""


@pytest.mark.parametrize(
    ("kind", "rows"), [("ivf", 70_000), pytest.param("ivfpq", 150_000, marks=pytest.mark.slow)], ids=["ivf", "ivfpq"]
)
def test_an_index_is_made_in_the_memory_that_was_planned_whatever_the_rows(tmp_path, kind, rows):
    dim, planned = 96, 4 << 20
    # Whatever the rows, FAISS multiplies blocks of 4,096 x 1,024, and has 32,768 vectors twice to learn codes from.
    workspace = (16 << 20) + (2 * 4 * dim * 32_768 if kind == "ivfpq" else 0)
    url = tmp_path / "s.zarr"
    write(url, vectors(rows, dim=dim), shards=8)
    assert rows * dim * 4 > planned + workspace
    command = [sys.executable, "-c", CHILD, str(url), kind, str(planned), str(tmp_path / "index")]
    child = subprocess.run(command, env=handmade.environment(), capture_output=True, text=True, check=False)
    assert not child.returncode, child
    peak, recall, n_blocks = json.loads(child.stdout)  # and nothing else was printed
    assert peak < planned + workspace
    assert recall > 0.9
    assert n_blocks > 40
    assert not child.stderr


def test_a_plan_follows_the_rows_and_its_memory_does_not():
    small, large, huge = (plan_ivf(rows, 256, "ivfpq") for rows in (10_000, 5_000_000, 10**9))
    assert (small.factory, small.block_rows) == ("IVF156,PQ64x8np", 10_000)
    assert large.factory == "IVF8944_HNSW32,PQ64x8np"
    wide = plan_ivf(10**9, 768, "ivf")
    assert (huge.n_lists, wide.factory) == (126_488, "IVF58254_HNSW32,Flat")
    for plan in (large, huge, wide):
        assert plan.sample_rows == 64 * plan.n_lists
        assert 3 * 4 * plan.dim * plan.n_lists <= 2**29
        assert 4 * plan.dim * plan.block_rows <= 2**27
    assert plan_ivf(1000, 527, "ivfpq").factory == "Pad531,IVF15,PQ59x8np"  # codes of 9 numbers
    with pytest.raises(UsageError, match=r"\b0\b.*\b8\b"):
        plan_ivf(0, 8, "ivf")


# --- of a task --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task_store(tmp_path_factory) -> Path:
    url = tmp_path_factory.mktemp("task") / "t.zarr"
    recipe = tiny.recipe(dim=DIM)
    for split, n, seed in (("train", 400, 1), ("valid", 100, 2), ("test", 200, 3)):
        write(url, vectors(n, seed=seed), split=split, recipe=recipe)
    return url


@pytest.fixture
def few_are_many(monkeypatch):
    monkeypatch.setattr("featstore.retrieve.api.MIN_SAVED_WINDOWS", 300)


@pytest.mark.parametrize(
    ("index", "changes"),
    [("ivfpq", {}), ("ivf", {"splits": None, "folds": {name: f"{name}*.tar" for name in ("train", "valid", "test")}})],
    ids=["splits", "folds"],
)
def test_whole_feature_sets_are_searched_by_their_saved_indexes(task_store, few_are_many, index, changes):
    shutil.rmtree(task_store.with_name("t.zarr.index"), ignore_errors=True)
    lines: list[str] = []
    store, manifest = featstore.open(str(task_store)), tiny.task(**changes)
    record = retrieve_task(store, manifest, index=index, notify=lines.append)
    exact = retrieve_task(store, manifest)
    assert record.value == pytest.approx(exact.value, abs=0.02)
    result = record.details["index_recall"]
    assert (result["k"], result["of"]) == (10, "its own windows")
    assert result["recall"] >= 0.9
    assert len(lines) == (3 if changes else 1)
    again = retrieve_task(store, manifest, index=index, notify=lines.append)
    assert len(lines) == (3 if changes else 1)
    assert again.details["neighbours"] == record.details["neighbours"]


def test_neighbours_of_folds_are_those_of_all_their_windows_in_one(task_store, few_are_many):
    from featstore.retrieve.saved_index import JoinedIndexes

    sets = [feature_set(task_store, split=split) for split in ("valid", "train")]
    joined = JoinedIndexes([open_index(one) for one in sets])
    rows, queries = np.concatenate([one.utterance for one in sets]), vectors(30, seed=9)
    found, exact = joined.search(queries, 10), cosines(queries, rows)
    np.testing.assert_allclose(found.similarities, np.take_along_axis(exact, found.rows, axis=1), atol=1e-5)
    wanted = np.argsort(-exact, axis=1)[:, :10]
    assert np.mean([np.isin(one, other).mean() for one, other in zip(wanted, found.rows, strict=True)]) > 0.85


@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_without_a_saved_index_it_is_made_in_memory_as_before(task_store, protocol):
    shutil.rmtree(task_store.with_name("t.zarr.index"), ignore_errors=True)
    store = featstore.open(str(task_store))
    record = retrieve_task(store, tiny.task(), protocol=protocol, index="ivfpq")
    assert record.details["index_recall"].keys() == {"k", "recall"}
    assert record.details["index_recall"]["recall"] > 0.4
    assert not task_store.with_name("t.zarr.index").exists()

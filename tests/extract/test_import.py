"""`featstore.import_embeddings`: what files hold is what the store holds, bit for bit, and nothing of a bad file is."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

import featstore as fs
from featstore.errors import DataError, FeatstoreError, UsageError
from featstore.extract import import_rows
from featstore.extract.embedding_files import arrow_files, rows
from featstore.store.maintenance import compact_store
from featstore.store.verify import verify_store
from featstore.tasks import Manifest
from handmade import environment

N, DIM, HOP = 23, 5, 0.02
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, DIM)).astype(np.float32)
COUNTS = RNG.integers(1, 7, N)
FRAMES = [RNG.standard_normal((count, DIM)).astype(np.float32) for count in COUNTS]
KEYS = [f"clip {at:02d}" for at in range(N)]
LABELS = ["cat", "dög", "rain"] * (N // 3) + ["cat"] * (N % 3)
PLACE = {"encoder": "mine", "dataset": "words"}

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and parts of a few rows, so that every file has several of both."""
    monkeypatch.setattr(rows, "MAX_BLOCK_ROWS", 4)
    monkeypatch.setattr(arrow_files, "BATCH_ROWS", 4)
    monkeypatch.setattr(arrow_files, "BATCH_ROWS_WITH_FRAMES", 3)
    monkeypatch.setattr(import_rows, "MAX_PART_ROWS", 9)


def write_table(path: Path, **columns: list[Any]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    return path


# --- formats ----------------------------------------------------------------------------------------------------------


def npz(folder: Path) -> dict[str, Any]:
    np.savez_compressed(folder / "e.npz", embeddings=X, id=np.array(KEYS), label=np.array(LABELS), n=np.int64(3))
    return {"embeddings": folder / "e.npz", "key": "id"}


def npy_in_columns(folder: Path) -> dict[str, Any]:
    np.save(folder / "e.npy", np.asfortranarray(X))
    return {
        "embeddings": folder / "e.npy",
        "table": write_table(folder / "e.csv", id=KEYS, label=LABELS),
        "key": "id",
    }


def npy_and_json_lines(folder: Path) -> dict[str, Any]:
    np.save(folder / "e.npy", X.astype(">f8"))
    lines = [json.dumps({"id": key, "label": label}) for key, label in zip(KEYS, LABELS, strict=True)]
    (folder / "e.jsonl").write_text("\n".join(lines))
    return {"embeddings": folder / "e.npy", "table": folder / "e.jsonl", "key": "id"}


def parquet(kind: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        vectors = pa.array(list(X.astype(kind.value_type.to_pandas_dtype())), kind)
        other = pa.array([[0.5]] * N, pa.list_(pa.float32()))
        table = pa.table({"id": KEYS, "label": LABELS, "audio": [b"RIFF"] * N, "embedding": vectors, "other": other})
        pq.write_table(table, folder / "e.parquet", row_group_size=7)
        return {"embeddings": folder / "e.parquet", "key": "id"}

    return write


def dataset(folder: Path) -> dict[str, Any]:
    names = sorted(set(LABELS))
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "label": datasets.ClassLabel(names=names),
            "embedding": datasets.Sequence(datasets.Value("float32"), length=DIM),
        }
    )
    columns = {"id": KEYS, "label": list(map(names.index, LABELS)), "embedding": X.tolist()}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "set")
    return {"embeddings": folder / "set", "key": "id"}


def parquet_of_datasets(folder: Path) -> dict[str, Any]:
    dataset(folder)
    datasets.load_from_disk(folder / "set").to_parquet(folder / "e.parquet")
    return {"embeddings": folder / "e.parquet", "key": "id"}


def safetensors(folder: Path) -> dict[str, Any]:
    save_file({"embeddings": X, "mean": X.mean(0)}, folder / "e.safetensors")
    table = write_table(folder / "e.csv", id=KEYS, label=LABELS)
    return {"embeddings": folder / "e.safetensors", "table": table, "key": "id"}


def safetensors_by_key(folder: Path) -> dict[str, Any]:
    save_file(dict(zip(KEYS, X, strict=True)), folder / "e.safetensors")
    table = write_table(folder / "e.csv", key=[*reversed(KEYS), "more"], label=[*reversed(LABELS), "cat"])
    return {"embeddings": folder / "e.safetensors", "table": table, "key": "key"}


def an_array(_: Path) -> dict[str, Any]:
    return {"embeddings": torch.from_numpy(X), "keys": np.array(KEYS), "labels": {"label": LABELS}}


VECTOR_FILES = {
    "npz": npz,
    "npy in columns": npy_in_columns,
    "npy and JSON lines": npy_and_json_lines,
    "list of float": parquet(pa.list_(pa.float32())),
    "large list of double": parquet(pa.large_list(pa.float64())),
    "fixed-size list": parquet(pa.list_(pa.float32(), DIM)),
    "datasets": dataset,
    "parquet of datasets": parquet_of_datasets,
    "safetensors": safetensors,
    "safetensors by key": safetensors_by_key,
    "an array": an_array,
}


@pytest.mark.parametrize("write", VECTOR_FILES.values(), ids=VECTOR_FILES)
def test_vectors_keys_and_labels_of_each_format(write: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    given = write(tmp_path)
    [record] = fs.import_embeddings(given.pop("embeddings"), **given, **PLACE, split="train", store=tmp_path / "s")
    assert (record.clips, record.dim, record.frames, record.skipped) == (N, DIM, 0, ())
    assert record.parts_written > 1
    stored = fs.open(tmp_path / "s")["mine/words/train"]
    order = np.argsort(stored.key.tolist())
    assert stored.key[order].tolist() == KEYS
    assert np.array_equal(stored.utterance[order], X)
    assert [stored.meta[at] for at in order] == [{"label": label} for label in LABELS]
    assert verify_store(str(tmp_path / "s")).findings == ()


def test_the_order_of_the_rows_is_kept_over_parts(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", X)
    fs.import_embeddings(tmp_path / "e.npy", **PLACE, store=tmp_path / "s")
    assert np.array_equal(fs.open(tmp_path / "s")["mine/words/all"].utterance, X)


def ragged_npz(name: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        counts = COUNTS if name == "n_frames" else np.cumsum([0, *COUNTS])
        np.savez(folder / "f.npz", frames=np.concatenate(FRAMES), **{name: counts}, id=KEYS)
        return {"embeddings": folder / "f.npz", "key": "id"}

    return write


def ragged_parquet(folder: Path) -> dict[str, Any]:
    frames = pa.array([each.tolist() for each in FRAMES], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"id": KEYS, "f": frames}), folder / "f.parquet", row_group_size=5)
    return {"embeddings": folder / "f.parquet", "key": "id"}


def ragged_dataset(folder: Path) -> dict[str, Any]:
    features = datasets.Features(
        {"id": datasets.Value("string"), "f": datasets.Array2D(shape=(None, DIM), dtype="float32")}
    )
    frames = [each.tolist() for each in FRAMES]
    datasets.Dataset.from_dict({"id": KEYS, "f": frames}, features=features).save_to_disk(folder / "set")
    return {"embeddings": folder / "set", "key": "id"}


def ragged_safetensors(folder: Path) -> dict[str, Any]:
    tensors = {"frames": np.concatenate(FRAMES), "n_frames": COUNTS}
    save_file(tensors, folder / "f.safetensors")
    return {
        "embeddings": folder / "f.safetensors",
        "table": write_table(folder / "f.csv", id=KEYS),
        "key": "id",
    }


def ragged_safetensors_by_key(folder: Path) -> dict[str, Any]:
    save_file(dict(zip(KEYS, FRAMES, strict=True)), folder / "f.safetensors")
    return {"embeddings": folder / "f.safetensors"}


FRAME_FILES = {
    "npz with n_frames": ragged_npz("n_frames"),
    "npz with offsets": ragged_npz("offsets"),
    "parquet": ragged_parquet,
    "datasets": ragged_dataset,
    "safetensors": ragged_safetensors,
    "safetensors by key": ragged_safetensors_by_key,
}


@pytest.mark.parametrize("write", FRAME_FILES.values(), ids=FRAME_FILES)
def test_frames_of_each_format(write: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    given = write(tmp_path)
    path = given.pop("embeddings")
    [record] = fs.import_embeddings(path, **given, **PLACE, store=tmp_path / "s", hop=HOP)
    assert (record.clips, record.frames) == (N, COUNTS.sum())
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    for at, key in enumerate(KEYS):
        assert np.array_equal(stored.frames[key], FRAMES[at])
    by_key = dict(zip(stored.key.tolist(), range(N), strict=True))
    order = [by_key[key] for key in KEYS]
    assert stored.utterance[order] == pytest.approx(np.stack([each.mean(axis=0) for each in FRAMES]), rel=1e-5)
    assert stored.seconds[order] == pytest.approx(COUNTS * HOP)
    assert stored.recipe.hop_seconds == HOP
    assert verify_store(str(tmp_path / "s")).findings == ()


def test_vectors_beside_frames_are_stored_and_frames_may_be_float16(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", frames=np.concatenate(FRAMES), n_frames=COUNTS, embeddings=X)
    fs.import_embeddings(tmp_path / "f.npz", **PLACE, store=tmp_path / "s", hop=HOP, dtype="float16")
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    assert np.array_equal(stored.utterance, X)
    assert np.array_equal(stored.frames[3], FRAMES[3].astype(np.float16))
    [record] = fs.import_embeddings(tmp_path / "f.npz", **PLACE, store=tmp_path / "v")
    assert (record.frames, record.ignored) == (0, ("frames",))


def test_bfloat16_tensors_are_read_without_loss(tmp_path: Path) -> None:
    save_torch_file({"embeddings": torch.from_numpy(X).bfloat16()}, tmp_path / "e.safetensors")
    fs.import_embeddings(tmp_path / "e.safetensors", **PLACE, store=tmp_path / "s")
    expected = torch.from_numpy(X).bfloat16().float().numpy()
    assert np.array_equal(fs.open(tmp_path / "s")["mine/words/all"].utterance, expected)


def test_the_splits_of_a_dataset_dict_and_of_a_column_are_feature_sets(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", X=X, fold=[at % 3 for at in range(N)])
    by_column = fs.import_embeddings(tmp_path / "e.npz", **PLACE, store=tmp_path / "s", split_column="fold")
    assert [(each.split, each.clips) for each in by_column] == [("0", 8), ("1", 8), ("2", 7)]
    assert np.array_equal(fs.open(tmp_path / "s")["mine/words/1"].utterance, X[1::3])
    whole = datasets.Dataset.from_dict({"embedding": X.tolist()})
    parts = datasets.DatasetDict(train=whole.select(range(20)), test=whole.select(range(20, N)))
    parts.save_to_disk(tmp_path / "dict")
    by_dict = fs.import_embeddings(tmp_path / "dict", encoder="other", dataset="words", store=tmp_path / "s")
    assert [(each.split, each.clips) for each in by_dict] == [("train", 20), ("test", 3)]
    assert np.array_equal(fs.open(tmp_path / "s")["other/words/test"].utterance, X[20:])
    with pytest.raises(UsageError):
        fs.import_embeddings(tmp_path / "dict", **PLACE, store=tmp_path / "s", split="train")


def test_columns_of_tables_become_json(tmp_path: Path) -> None:
    table = pa.table(
        {
            "e": list(X[:2]),
            "n": pa.array([1.0, float("nan")]),
            "tags": [["a", "b"], []],
            "events": [[{"onset": 0.5, "label": "x"}], None],
            "day": pa.array([0, 1], pa.date32()),
        }
    )
    pq.write_table(table, tmp_path / "e.parquet")
    fs.import_embeddings(tmp_path / "e.parquet", **PLACE, store=tmp_path / "s")
    assert fs.open(tmp_path / "s")["mine/words/all"].meta.tolist() == [
        {"n": 1.0, "tags": ["a", "b"], "events": [{"onset": 0.5, "label": "x"}], "day": "1970-01-01"},
        {"n": None, "tags": [], "events": None, "day": "1970-01-02"},
    ]
    fs.import_embeddings(tmp_path / "e.parquet", **PLACE, store=tmp_path / "t", columns=["tags"])
    assert fs.open(tmp_path / "t")["mine/words/all"].meta[0] == {"tags": ["a", "b"]}


# --- the same again ---------------------------------------------------------------------------------------------------


def tree(store: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(store)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def test_the_same_import_changes_nothing_and_other_content_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", X=X, key=KEYS)
    place = {**PLACE, "store": tmp_path / "s", "key": "key"}
    fs.import_embeddings(tmp_path / "e.npz", **place)
    before = tree(tmp_path / "s")
    [again] = fs.import_embeddings(tmp_path / "e.npz", **place)
    assert (again.parts_written, again.parts_reused, again.clips) == (0, 3, N)
    [as_array] = fs.import_embeddings(X, keys=KEYS, **PLACE, store=tmp_path / "s")
    assert as_array.parts_written == 0
    changed = X.copy()
    changed[-1, 0] += 1
    with pytest.raises(UsageError):
        fs.import_embeddings(changed, keys=KEYS, **PLACE, store=tmp_path / "s")
    with pytest.raises(UsageError):
        fs.import_embeddings(X[:3], keys=["a", "b", "c"], **PLACE, store=tmp_path / "s")
    assert tree(tmp_path / "s") == before

    [replaced] = fs.import_embeddings(changed, keys=KEYS, **PLACE, store=tmp_path / "s", replace=True)
    assert (replaced.parts_written, replaced.parts_reused, replaced.parts_deleted) == (1, 2, 1)
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    assert np.array_equal(stored.utterance, changed)
    assert stored.key.tolist() == KEYS
    assert verify_store(str(tmp_path / "s")).findings == ()


def test_a_compacted_feature_set_is_known_and_replaced(tmp_path: Path) -> None:
    place = {**PLACE, "store": tmp_path / "s", "keys": KEYS}
    fs.import_embeddings(X, **place)
    assert compact_store(str(tmp_path / "s"), part_bytes=1 << 20)[0].parts_after == 1
    [again] = fs.import_embeddings(X, **place)
    assert (again.parts_written, again.parts_reused) == (0, 3)
    changed = X.copy()
    changed[0] += 1
    [replaced] = fs.import_embeddings(changed, **place, replace=True)
    assert (replaced.parts_written, replaced.parts_deleted) == (3, 1)
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    assert (stored.key.tolist(), stored.n_parts) == (KEYS, 3)
    assert np.array_equal(stored.utterance, changed)


def test_an_encoder_is_its_name_its_source_and_its_numbers(tmp_path: Path) -> None:
    def fingerprint(vectors: np.ndarray = X, **changes: Any) -> tuple[str, int]:
        given = {**PLACE, "source": "layer 9", "store": tmp_path / "s", "replace": True, **changes}
        [record] = fs.import_embeddings(vectors, **given)
        return record.fingerprint, len(record.notes)

    first, _ = fingerprint()
    assert fingerprint(X * 2, split="b", dataset="other") == (first, 0)
    others = [fingerprint(source="layer 8"), fingerprint(encoder="yours"), fingerprint(X[:, :3])]
    assert len({first, *(each for each, _ in others)}) == 4
    assert [notes for _, notes in others] == [1, 0, 2]
    recipe = fs.open(tmp_path / "s").resolve_encoder(f"mine@{first}")
    assert (recipe.imported_from, recipe.dim) == ("layer 9", DIM)


@pytest.mark.parametrize("point", ["arrays-synced:2", "document-written:6"])
def test_an_import_that_was_killed_is_completed_by_the_same_import(point: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", X=X, key=KEYS)
    code = (
        "import featstore as fs\nfrom featstore.extract import import_rows\nimport_rows.MAX_PART_ROWS = 9\n"
        f"print(fs.import_embeddings('e.npz', key='key', **{PLACE!r}, store='s')[0].parts_written)"
    )

    def imports(**variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=environment(**variables), capture_output=True, text=True, check=False
        )

    assert imports(FEATSTORE_FAULT_POINT=point).returncode == -9
    completed = imports()
    assert completed.returncode == 0, completed.stderr
    assert int(completed.stdout) in (1, 2, 3)
    stored = fs.open(tmp_path / "s", verify=True)["mine/words/all"]
    assert np.array_equal(stored.utterance, X)


def test_a_file_that_changes_between_the_passes_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "e.npy", X)
    from featstore.extract import import_embeddings as importing

    targets = importing._targets

    def change(*arguments: Any, **options: Any) -> Any:
        np.save(tmp_path / "e.npy", X[::-1])
        return targets(*arguments, **options)

    monkeypatch.setattr(importing, "_targets", change)
    with pytest.raises(DataError):
        fs.import_embeddings(tmp_path / "e.npy", **PLACE, store=tmp_path / "s")
    assert len(fs.open(tmp_path / "s")) == 0


# --- bad input --------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_stored_are_skipped_and_listed(tmp_path: Path) -> None:
    vectors = X.astype(np.float64)
    vectors[3, 1], vectors[5, 0], vectors[7, 0] = np.nan, -np.inf, 1e300  # the last is finite in float64 only
    keys = [*KEYS]
    keys[1], keys[2], keys[9] = "", "a\nb", "k" * 2000
    np.savez(tmp_path / "e.npz", X=vectors, key=keys)
    [record] = fs.import_embeddings(tmp_path / "e.npz", key="key", **PLACE, store=tmp_path / "s")
    assert record.clips == N - 6
    assert [clip.key for clip in record.skipped][:3] == ["row 1", "a\\x0ab", KEYS[3]]
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    assert [clip.key for clip in stored.skipped] == [clip.key for clip in record.skipped]
    assert np.array_equal(stored.utterance, np.delete(X, [1, 2, 3, 5, 7, 9], axis=0))
    assert verify_store(str(tmp_path / "s")).findings == ()


def test_clips_without_frames_and_with_frames_that_are_not_finite_are_skipped(tmp_path: Path) -> None:
    frames = [each.copy() for each in FRAMES]
    frames[0][0, 0], frames[4] = np.nan, frames[4][:0]
    frames[6][0] = 1e6  # an infinity in float16
    counts = list(map(len, frames))
    np.savez(tmp_path / "f.npz", frames=np.concatenate(frames), n_frames=counts, key=KEYS)
    place = {**PLACE, "store": tmp_path / "s", "key": "key", "hop": HOP, "dtype": "float16"}
    [record] = fs.import_embeddings(tmp_path / "f.npz", **place)
    assert [clip.key for clip in record.skipped] == [KEYS[0], KEYS[4], KEYS[6]]
    assert record.clips == N - 3
    assert np.array_equal(fs.open(tmp_path / "s")["mine/words/all"].frames[KEYS[5]], FRAMES[5].astype(np.float16))


def save(name: str, **arrays: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        np.savez(folder / f"{name}.npz", **arrays)
        return {"embeddings": folder / f"{name}.npz"}

    return write


def array(values: np.ndarray, *, cut: int = 0) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        np.save(folder / "e.npy", values)
        if cut:
            (folder / "e.npy").write_bytes((folder / "e.npy").read_bytes()[:-cut])
        return {"embeddings": folder / "e.npy"}

    return write


def cut(write: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    def written(folder: Path) -> dict[str, Any]:
        given = write(folder)
        path = given["embeddings"]
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        return given

    return written


def column(values: Any) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        pq.write_table(pa.table({"embedding": values}), folder / "e.parquet")
        return {"embeddings": folder / "e.parquet"}

    return write


def short_table(folder: Path) -> dict[str, Any]:
    np.save(folder / "e.npy", X)
    return {"embeddings": folder / "e.npy", "table": write_table(folder / "e.csv", id=KEYS[:-1])}


def long_table(folder: Path) -> dict[str, Any]:
    np.save(folder / "e.npy", X)
    return {"embeddings": folder / "e.npy", "table": write_table(folder / "e.csv", id=[*KEYS, "more"])}


def key_without_line(folder: Path) -> dict[str, Any]:
    given = safetensors_by_key(folder)
    return {**given, "table": write_table(folder / "e.csv", key=KEYS[1:])}


OBJECTS = np.array([X[0], X[1][:2]], dtype=object)
BAD_FILES = {
    "whole numbers": array(np.ones((3, 4), np.int64)),
    "one dimension": array(X[0]),
    "three dimensions": array(X[None]),
    "no rows": array(X[:0]),
    "no numbers": array(X[:, :0]),
    "all NaN": array(X * np.nan),
    "cut npy": array(X, cut=7),
    "pickled npy": array(OBJECTS),
    "objects": save("e", embeddings=OBJECTS),
    "objects in a column": save("e", embeddings=X[:2], label=OBJECTS),
    "lengths": save("e", embeddings=X, label=LABELS[:-1]),
    "nothing": save("e", label=LABELS),
    "key twice": lambda folder: {**save("e", embeddings=X[:3], key=["a", "b", "a"])(folder), "key": "key"},
    "no split": lambda folder: {**save("e", X=X[:2], to=["a", ""])(folder), "split_column": "to"},
    "name of a split": lambda folder: {**save("e", X=X[:2], to=["a", "b/c"])(folder), "split_column": "to"},
    "offsets": lambda folder: {**save("e", frames=X, offsets=[0, 4, 3, N])(folder), "hop": HOP},
    "first offset": lambda folder: {**save("e", frames=X, offsets=[1, 4, N])(folder), "hop": HOP},
    "last offset": lambda folder: {**save("e", frames=X, offsets=[0, 4, N + 1])(folder), "hop": HOP},
    "counts": lambda folder: {**save("e", frames=X, n_frames=[4, N])(folder), "hop": HOP},
    "counts with a fraction": lambda folder: {**save("e", frames=X, n_frames=[4.0, N - 4.0])(folder), "hop": HOP},
    "object frames": lambda folder: {**save("e", frames=OBJECTS, n_frames=[1, 1])(folder), "hop": HOP},
    "no frames": lambda folder: {**array(X)(folder), "hop": HOP},
    "cut npz": cut(save("e", embeddings=X)),
    "cut parquet": cut(parquet(pa.list_(pa.float32()))),
    "cut safetensors": cut(lambda folder: {"embeddings": safetensors(folder)["embeddings"]}),
    "list of whole numbers": column([[1, 2], [3, 4]]),
    "lists of different lengths": column([[1.0, 2.0], [3.0]]),
    "numbers": column([1.0, 2.0]),
    "frames of different widths": lambda folder: {**column([[[1.0, 2.0]], [[1.0]]])(folder), "hop": HOP},
    "short table": short_table,
    "long table": long_table,
    "key without a line": key_without_line,
    "no such file": lambda folder: {"embeddings": folder / "none.npz"},
    "no such column": lambda folder: {**save("e", embeddings=X)(folder), "key": "id"},
    "no such array": lambda folder: {**save("e", embeddings=X)(folder), "vector": "y"},
    "two candidates": save("e", a=X, b=X),
    "text": lambda folder: {"embeddings": write_table(folder / "e.csv", a=[1])},
    "a folder": lambda folder: {"embeddings": folder},
}


@pytest.mark.parametrize("write", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_one_line_and_nothing_is_written(write: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    given = write(tmp_path)
    with pytest.raises(FeatstoreError) as caught:
        fs.import_embeddings(given.pop("embeddings"), **given, **PLACE, store=tmp_path / "s")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    objects = np.empty(1, object)
    objects[0] = Bomb()
    np.save(tmp_path / "e.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "e.npz", X=X[:1], label=objects)
    for name in ("e.npy", "e.npz"):
        with pytest.raises(DataError):
            fs.import_embeddings(tmp_path / name, **PLACE, store=tmp_path / "s")
    assert not (tmp_path / "ran").exists()


def test_of_several_files_the_good_ones_are_imported_and_the_repaired_one_completes_them(tmp_path: Path) -> None:
    thirds = np.array_split(np.arange(N), 3)
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for path, some in zip(paths, thirds, strict=True):
        np.savez(path, X=X[some], key=np.array(KEYS)[some])
    np.savez(paths[1], X=X[thirds[1]][:, :3], key=np.array(KEYS)[thirds[1]])
    place = {**PLACE, "store": tmp_path / "s", "key": "key"}
    found = fs.import_embeddings(paths, **place)
    assert [each.file for each in found.failures] == [str(paths[1])]
    assert found[0].clips == len(thirds[0]) + len(thirds[2])
    with pytest.raises(FeatstoreError):
        found.raise_failures()
    np.savez(paths[1], X=X[thirds[1]], key=np.array(KEYS)[thirds[1]])
    [record] = fs.import_embeddings(paths, **place)
    assert (record.parts_written, record.parts_reused) == (1, 2)
    stored = fs.open(tmp_path / "s")["mine/words/all"]
    assert np.array_equal(stored.utterance, X)
    # one key in two files, and a replacement of which a file fails
    np.savez(paths[2], X=X[thirds[2]], key=[KEYS[0], *np.array(KEYS)[thirds[2]][1:]])
    before = tree(tmp_path / "s")
    nothing = fs.import_embeddings(paths, **place, replace=True)
    assert (len(nothing), len(nothing.failures)) == (0, 3)
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": "a/b"},
        {"encoder": "a@b"},
        {"dataset": ""},
        {"dataset": None},
        {"split": "../x"},
        {"source": "two\nlines"},
        {"hop": 0.1},
        {"keys": ["a"]},
        {"labels": ["a"] * N, "keys": KEYS[1:]},
        {"dtype": "int8"},
        {"table": "x.csv"},
    ],
    ids=repr,
)
def test_a_wrong_call_is_an_error_and_nothing_is_written(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FeatstoreError):
        fs.import_embeddings(X, **{**PLACE, "store": tmp_path / "s", **changes})
    assert not (tmp_path / "s").exists()


# --- tasks ------------------------------------------------------------------------------------------------------------


def task(**changes: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "name": "words",
            "title": "Words",
            "kind": "clip",
            "metric": "accuracy",
            "eval_weight": 1.0,
            "data": {"dataset": "words"},
            "splits": {split: f"{split}-*.tar" for split in ("train", "valid", "test")},
            "label": {"field": "label"},
            **changes,
        }
    )


def separable(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, n)
    return (np.eye(6)[classes] + 0.6 * rng.standard_normal((n, 6))).astype(np.float32), [f"c{at}" for at in classes]


def test_imported_embeddings_score_as_the_arrays_do_bit_for_bit(tmp_path: Path) -> None:
    parts = {
        split: separable(n, seed) for seed, (split, n) in enumerate({"train": 90, "valid": 30, "test": 60}.items())
    }
    for split, (vectors, labels) in parts.items():
        keys = [f"{split}-{at}" for at in range(len(labels))]
        fs.import_embeddings(vectors, keys=keys, labels=labels, split=split, **PLACE, store=tmp_path / "s")
    [probed] = fs.probe(task(), store=tmp_path / "s")
    [retrieved] = fs.retrieve(task(), store=tmp_path / "s", k=[3, 10])
    by_probe = fs.probe_arrays(*parts["train"], valid=parts["valid"], test=parts["test"])
    by_knn = fs.knn_arrays(*parts["train"], test=parts["test"], k=[3, 10])
    for stored, computed in ((probed, by_probe), (retrieved, by_knn)):
        for name in ("value", "ci_low", "ci_high", "n_train", "n_test", "track", "metric", "settings"):
            assert getattr(stored, name) == getattr(computed, name)
        assert stored.details["confusion"] == computed.details["confusion"]
    assert 0.5 < by_knn.value < 1


def test_the_shards_of_a_task_are_named_so_that_its_patterns_match(tmp_path: Path) -> None:
    folds = {"splits": None, "folds": {"1": "wds/**/fold-1-*.tar", "2": "fold-2_*.tar"}, "data": {"dataset": "esc"}}
    manifest = task(**folds)
    for fold in ("1", "2"):
        vectors, labels = separable(40, int(fold))
        keys = [f"{fold}-{at}" for at in range(40)]
        [record] = fs.import_embeddings(
            vectors, keys=keys, labels=labels, split=fold, encoder="mine", task=manifest, store=tmp_path / "s"
        )
        assert record.dataset == "esc"
    [score] = fs.probe(manifest, store=tmp_path / "s")
    assert score.n_test == 80
    with pytest.raises(UsageError):
        fs.import_embeddings(X, split="3", encoder="mine", task=manifest, store=tmp_path / "s")
    listed = task(splits=dict.fromkeys(("train", "valid", "test"), "train-{00..09}.tar"))
    with pytest.raises(UsageError):
        fs.import_embeddings(X, split="train", encoder="mine", task=listed, store=tmp_path / "s")


def test_a_frame_task_is_scored_on_imported_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    manifest = task(kind="frame", metric="segment_f1_micro", label={"events": "events", "field": "label"})
    for split, n in (("train", 24), ("valid", 8), ("test", 8)):
        frames, events = [], []
        for _ in range(n):
            onset = int(rng.integers(0, 30))
            clip = 0.1 * rng.standard_normal((60, DIM))
            clip[onset : onset + 25, 0] += 3
            frames.append(clip)
            events.append([{"onset": onset * 0.05, "offset": (onset + 25) * 0.05, "label": "beep"}])
        table = pa.table({"frames": [each.tolist() for each in frames], "events": events})
        pq.write_table(table, tmp_path / f"{split}.parquet")
        fs.import_embeddings(tmp_path / f"{split}.parquet", split=split, **PLACE, store=tmp_path / "s", hop=0.05)
    [score] = fs.probe(manifest, store=tmp_path / "s")
    assert score.value > 0.9
    for split in ("train", "valid", "test"):
        fs.import_embeddings(X, keys=[f"{split}{key}" for key in KEYS], split=split, **PLACE, store=tmp_path / "v")
    [failure] = fs.probe(manifest, store=tmp_path / "v").failures
    assert failure.error == "UnknownFeatureSet"
    assert "--hop" in failure.message


# --- size -------------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_blocks_and_parts_and_not_by_the_file(tmp_path: Path) -> None:
    code = "import json, sys; from pathlib import Path; from traced import traced_import\n"
    code += "print(json.dumps([traced_import(form, Path(sys.argv[1])) for form in sys.argv[2:]]))"
    forms = ["npy", "npz", "parquet", "safetensors"]
    child = subprocess.run(  # other tests and their threads allocate in this process
        [sys.executable, "-c", code, str(tmp_path), *forms],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    for form, (clips, parts, peak) in zip(forms, json.loads(child.stdout), strict=True):
        assert (clips, parts) == (500, 16)
        assert peak < 10 << 20, form

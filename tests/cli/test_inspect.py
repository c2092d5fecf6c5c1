"""`featstore inspect` says what is in the store, counted independently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stores import write_part

from cached import LEFT_OUT, cached
from featstore.store.maintenance import compact_store
from featstore.store.summary import busy_seconds


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return cached(tmp_path_factory.mktemp("store"))


def on_disk(url: str, encoder: str, split: str) -> int:
    """Bytes of the objects of a split's parts, their group documents apart."""
    [group] = Path(url).glob(f"{encoder}@*/words/{split}")
    return sum(
        path.stat().st_size
        for part in group.iterdir()
        if part.is_dir()
        for path in part.glob("*/**/*")
        if path.is_file()
    )


def test_a_table_lists_every_feature_set(run, store):
    outcome = run("inspect", "--store", store.url)
    assert outcome.code == 0
    rows = [line.split() for line in outcome.out.splitlines() if line.strip()]
    assert ["feature", "set", "clips", "dim", "frames", "hours", "size", "skipped"] in rows
    listed = [(row[0].partition("@")[0], *row[1:4]) for row in rows if len(row) == 1 or row[0].startswith("words/")]
    assert [row for row in listed if row[0][0].isalpha()] == [
        ("bare",),
        ("words/train", "7", "8", "0"),
        ("mel",),
        ("words/test", "1", "8", "2"),
        ("words/train", "7", "8", "25"),
    ]


def test_the_store_is_an_argument_an_option_or_a_variable(run, store, monkeypatch):
    def chosen(*arguments):
        return [(each["encoder"], each["split"]) for each in json.loads(run("inspect", *arguments, "--json").out)]

    everything = [("bare", "train"), ("mel", "test"), ("mel", "train")]
    assert chosen(store.url) == chosen("--store", store.url) == everything
    assert chosen(store.url, "mel/words") == chosen("mel/words", "--store", store.url) == everything[1:]
    monkeypatch.setenv("FEATSTORE_STORE", store.url)
    assert chosen() == chosen(store.url) == everything
    assert chosen("mel/words") == everything[1:]
    monkeypatch.setenv("FEATSTORE_STORE", "elsewhere")
    assert chosen(store.url) == everything
    monkeypatch.delenv("FEATSTORE_STORE")
    for wrong in ((), (store.url, "mel", "bare"), ("mel", "bare", "--store", store.url)):
        assert run("inspect", *wrong).code == 2


@pytest.mark.parametrize("more", [[], ["mel/words/train"], ["--health"]])
def test_tables_fit_80_columns(run, store, monkeypatch, more):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = run("inspect", store.url, *more)
    assert outcome.code == 0
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        ["mel"],
        ["mel/words"],
        ["--encoder", "mel"],
        ["mel", "--dataset", "words"],
        ["--encoder", "mel", "--dataset", "words"],
    ],
)
def test_a_path_and_options_choose_alike(run, store, arguments):
    records = json.loads(run("inspect", *arguments, "--store", store.url, "--json").out)
    assert [(each["encoder"], each["split"]) for each in records] == [("mel", "test"), ("mel", "train")]
    assert [each["bytes"] for each in records] == [on_disk(store.url, "mel", split) for split in ("test", "train")]


def test_one_feature_set_is_reported_in_full(run, store):
    [records] = json.loads(run("inspect", "mel/words/train", "--store", store.url, "--json").out)
    norms = [float(np.linalg.norm(vector.astype(np.float64))) for vector in store.column("utterance")]
    lengths = [len(frames) for frames in store.column("frames")]
    assert records["norms"]["low"] == pytest.approx(min(norms))
    assert records["norms"]["median"] == pytest.approx(np.median(norms))
    assert records["norms"]["high"] == pytest.approx(max(norms))
    assert records["frame_lengths"] == dict(
        zip(["low", "q1", "median", "q3", "high"], np.percentile(lengths, [0, 25, 50, 75, 100]), strict=True)
    )
    assert (records["windows_not_finite"], records["repeated_keys"], records["repeated_vectors"]) == (0, 0, 0)
    assert [(each["shard"], each["windows"], each["left_out"]) for each in records["shards"]] == [
        ("a.tar", 3, 0),
        ("b.tar", 4, 1),
    ]
    assert records["skipped"] == [{"shard": "b.tar", "key": LEFT_OUT.key, "reason": LEFT_OUT.reason, "seconds": None}]
    assert records["recipe"]["encoder_identity"]["arguments"] == {"mels": 8}
    assert records["audio_seconds_per_second"] > 0
    assert records["versions"] == {"featstore": ["test"]}


def test_a_key_cannot_write_on_the_terminal(run, store):
    result = run("inspect", "mel/words/train", "--store", store.url).out
    assert "b.tar/broken\\x1b[2J" in result
    assert "\x1b" not in result
    assert "7 x 8 float32" in result
    assert "25 x 8 float16" in result
    assert "40 ms" in result


def test_compaction_leaves_the_numbers_and_forgets_the_throughput(run, tmp_path):
    store = cached(tmp_path)
    [before] = json.loads(run("inspect", "mel/words/train", "--store", store.url, "--json").out)
    compact_store(store.url, part_bytes=10**9)
    [after] = json.loads(run("inspect", "mel/words/train", "--store", store.url, "--json").out)
    assert len({each["part"] for each in after["shards"]}) == 1
    assert after["bytes"] == on_disk(store.url, "mel", "train")
    for name in ("clips", "windows", "frames", "norms", "frame_lengths", "content_hash", "skipped"):
        assert before[name] == after[name]
    assert after["audio_seconds_per_second"] is None


def test_vectors_that_are_no_numbers_or_twice_there_are_counted(tmp_path):
    from featstore.store import EmbeddedWindow, open_split_writer, open_store
    from featstore.store.summary import examine

    store = cached(tmp_path)
    recipe = open_store(store.url).resolve_encoder("bare")
    writer = open_split_writer(store.url, recipe=recipe, spec="bare", dataset="odd", crop_seconds=None, split="all")
    vectors = np.ones((5, 8), np.float32)
    vectors[1, 3], vectors[2, 0], vectors[4] = np.nan, np.inf, 2
    windows = [
        EmbeddedWindow(key=f"k{at % 4}", meta="{}", start_seconds=0.0, seconds=1.0, utterance=vector, frames=None)
        for at, vector in enumerate(vectors)
    ]
    write_part(writer, "a.tar", windows, frames_stored=False)
    details = examine(open_store(store.url).select(dataset="odd"))
    assert (details.windows_not_finite, details.repeated_vectors, details.repeated_keys) == (2, 1, 1)
    assert (details.norms.low, details.norms.high) == (pytest.approx(8**0.5), pytest.approx(32**0.5))
    json.dumps(details.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["unknown"], "unknown/*/*"), (["a/b/c/d"], "ENCODER/DATASET/SPLIT"),
     (["mel", "--encoder", "bare"], "'bare'")],
)  # fmt: skip
def test_what_is_not_there_is_one_line(run, store, arguments, named):
    outcome = run("inspect", *arguments, "--store", store.url)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert named in outcome.err


def test_time_spent_side_by_side_counts_once():
    assert busy_seconds([]) == 0
    assert busy_seconds([(0, 4), (1, 2), (3, 5), (9, 10)]) == 6

"""The search for near-duplicates runs once for the same vectors and rounds, whichever process asks."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from featstore.evaluation import duplicates
from featstore.probe import probe_task

DIM = 24
SPLITS = {name: tiny.clips(name, n, dim=DIM, spread=2.0) for name, n in (("train", 60), ("valid", 12), ("test", 30))}


@pytest.fixture
def searches(tmp_path, monkeypatch):
    """Number of searches; every task is large enough for the cache."""
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(duplicates, "MIN_CACHED_WORK", 0)
    made: list[int] = []
    search = duplicates._near_clips

    def counting(*arguments):
        made.append(1)
        return search(*arguments)

    monkeypatch.setattr(duplicates, "_near_clips", counting)
    return made


def score(sets):
    duplicates._found.clear()  # as in another process
    record = probe_task(tiny.TinyStore(sets), tiny.task())
    return record.details["near_duplicates"], record.details["warnings"]


def nearly(clips):
    rng = np.random.default_rng(0)
    return [tiny.Clip(f"near-{c.key}", c.label, c.vectors + 0.02 * rng.standard_normal(DIM), c.seconds) for c in clips]


def test_a_second_process_reads_what_the_first_has_found(searches, tmp_path):
    sets = {**SPLITS, "test": [*SPLITS["test"], *nearly(SPLITS["train"][:3])]}
    first, again = score(sets), score(sets)
    assert first == again
    assert (first[0]["near"], first[0]["exact"], first[0]["test_clips"]) == (3, 0, 33)
    assert sum(searches) == 1
    assert len(list((tmp_path / "cache" / "near-duplicates").iterdir())) == 1


def test_other_vectors_are_searched_although_their_names_are_the_same(searches):
    assert score(SPLITS)[0]["near"] == 0
    sets = {**SPLITS, "test": [*SPLITS["test"][:-1], *nearly(SPLITS["train"][:1])]}
    assert score(sets)[0]["near"] == 1
    assert sum(searches) == 2


def test_a_damaged_file_and_a_folder_that_cannot_be_written_are_no_obstacle(searches, tmp_path, monkeypatch):
    first = score(SPLITS)
    (kept,) = (tmp_path / "cache" / "near-duplicates").iterdir()
    kept.write_text('{"near": 3')
    assert score(SPLITS) == first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "file"))
    assert score(SPLITS) == first
    assert sum(searches) == 3


def test_a_quick_search_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))
    assert score(SPLITS)[0] == {
        "test_clips": 30,
        "exact": 0,
        "near": 0,
        "searched_windows": 30,
        "test_windows": 30,
        "is_complete": True,
        "cosine": 0.98,
    }
    assert not (tmp_path / "cache").exists()

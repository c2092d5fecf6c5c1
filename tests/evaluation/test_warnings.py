"""Warnings with a score: figures against naive counts, and each kind from what causes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tiny
from featstore.evaluation import duplicates as sides
from featstore.evaluation.leakage import nearest_rows, row_hashes
from featstore.evaluation.warnings import warnings_of_details
from featstore.probe import probe_task
from featstore.records import SkippedClip
from featstore.retrieve import retrieve_task

DIM = 24
SPLITS = {name: tiny.clips(name, n, dim=DIM, spread=2.0) for name, n in (("train", 60), ("valid", 12), ("test", 30))}


def found(record) -> dict[str, dict]:
    return {each["kind"]: each for each in record.details["warnings"]}


def copies(clips, *, noise: float = 0.0):
    rng = np.random.default_rng(5)
    return [
        replace(
            clip, key=f"copy-{clip.key}", vectors=clip.vectors + noise * rng.standard_normal(np.shape(clip.vectors))
        )
        for clip in clips
    ]


@pytest.fixture(autouse=True)
def nothing_cached() -> None:
    sides._found.clear()


@pytest.mark.parametrize("score", [probe_task, retrieve_task])
@pytest.mark.parametrize("protocol", ["strict", "xares"])
def test_equal_embeddings_on_both_sides_are_counted(score, protocol) -> None:
    test = [*SPLITS["test"], *copies(SPLITS["train"][:3]), *copies(SPLITS["valid"][:2])]
    warning = found(score(tiny.TinyStore({**SPLITS, "test": test}), tiny.task(), protocol=protocol))["exact_duplicates"]
    assert (warning["count"], warning["test_clips"]) == (5, 35)
    assert warning["example"].startswith("test/copy-")


@pytest.mark.parametrize("score", [probe_task, retrieve_task])
def test_nearly_equal_embeddings_are_counted_apart_from_equal_ones(score) -> None:
    test = [*SPLITS["test"], *copies(SPLITS["train"][:4], noise=0.02), *copies(SPLITS["train"][5:6])]
    warnings = found(score(tiny.TinyStore({**SPLITS, "test": test}), tiny.task()))
    assert (warnings["near_duplicates"]["count"], warnings["exact_duplicates"]["count"]) == (4, 1)
    tested, trained = warnings["near_duplicates"]["example"]
    assert tested.removeprefix("test/copy-") == trained.removeprefix("train/")


def test_clean_splits_have_no_warning() -> None:
    assert found(probe_task(tiny.TinyStore(SPLITS), tiny.task())) == {}


@pytest.mark.parametrize("score", [probe_task, retrieve_task], ids=["five folds", "leave one out"])
def test_within_one_set_a_clip_is_no_duplicate_of_its_own_windows(score) -> None:
    same = np.repeat(np.random.default_rng(1).standard_normal((1, DIM)), 2, axis=0)
    alone = [*tiny.clips("train", 59, dim=DIM, spread=2.0), tiny.Clip("twice", "class-0", same, seconds=(1.0, 1.0))]
    task = tiny.task(splits=dict.fromkeys(("train", "valid", "test"), "train*.tar"))
    assert "exact_duplicates" not in found(score(tiny.TinyStore({"test": alone}), task))
    copied = [*alone, *copies(alone[-1:])]
    n_copied = found(score(tiny.TinyStore({"test": copied}), task)).get("exact_duplicates", {}).get("count", 0)
    assert n_copied == 2 if score is retrieve_task else n_copied in (0, 2)  # two folds may hold one of them each


def test_hashes_are_equal_where_bytes_are_and_only_there() -> None:
    rng = np.random.default_rng(3)
    X = rng.integers(0, 2, (4000, 10)).astype(np.float32) * np.float32(1e-3)
    X[::7, 2] = -0.0
    _, naive = np.unique([row.tobytes() for row in X], return_inverse=True)
    _, hashed = np.unique(row_hashes(X), return_inverse=True)
    assert len(set(zip(naive.tolist(), hashed.tolist(), strict=True))) == len(set(naive)) == len(set(hashed))


def test_the_nearest_row_is_that_of_a_full_product_without_rows_of_its_own_group(monkeypatch) -> None:
    monkeypatch.setattr("featstore.evaluation.leakage._BLOCK_BYTES", 1_000)
    rng = np.random.default_rng(4)
    X, group = rng.standard_normal((70, 6)).astype(np.float32), np.arange(70) // 2
    products = X @ X.T
    np.testing.assert_array_equal(nearest_rows(X, X[:50])[1], products[:, :50].argmax(axis=1))
    products[group[:, None] == group] = -np.inf
    cosines, rows = nearest_rows(X, X, group=group, reference_group=group)
    np.testing.assert_array_equal(rows, products.argmax(axis=1))
    np.testing.assert_allclose(cosines, products.max(axis=1), rtol=1e-5)


def test_of_a_large_set_a_draw_is_searched_and_the_draw_is_stated(monkeypatch) -> None:
    test = [*SPLITS["test"], *copies(SPLITS["train"], noise=0.02)]
    monkeypatch.setattr(sides, "MAX_NEAR_WORK", 40 * 72 * DIM)
    near = found(probe_task(tiny.TinyStore({**SPLITS, "test": test}), tiny.task()))["near_duplicates"]
    assert (near["searched_windows"], near["test_windows"]) == (40, 90)
    assert 10 < near["count"] <= 40
    assert "40 of 90" in near["message"]


def test_another_head_or_track_does_not_search_again(monkeypatch) -> None:
    searched = []
    once = sides._near_clips
    monkeypatch.setattr(sides, "_near_clips", lambda *of: searched.append(1) or once(*of))
    store = tiny.TinyStore(SPLITS)
    for seeds in ((0,), (1,)):
        probe_task(store, tiny.task(), seeds=seeds)
    assert len(searched) == 1
    probe_task(tiny.TinyStore({**SPLITS, "test": SPLITS["test"][1:]}), tiny.task())
    assert len(searched) == 2


def test_skipped_clips_and_classes_that_training_lacks_are_counted() -> None:
    skipped = [SkippedClip(shard="s", key=str(at), reason="r") for at in range(3)]
    test = tiny.TinySet([*SPLITS["test"], tiny.Clip("odd", "unheard", np.ones((1, DIM)))], skipped[:1])
    record = probe_task(
        tiny.TinyStore({**SPLITS, "train": tiny.TinySet(SPLITS["train"], skipped), "test": test}), tiny.task()
    )
    warnings = found(record)
    assert warnings["skipped_clips"]["by_split"] == {"train": 3, "test": 1}
    assert warnings["skipped_clips"]["count"] == record.n_skipped == 4
    assert warnings["classes_not_in_training"]["classes"] == ["unheard"]
    assert "warnings" in record.seconds


def scattered(name: str, n: int) -> list[tiny.Clip]:
    """Two classes of sixteen small clusters each, anywhere: near neighbours know them, no plane parts them."""
    centres = np.random.default_rng(8).standard_normal((32, 4))
    noise = 0.05 * np.random.default_rng([9, *name.encode()]).standard_normal((n, 4))
    return [tiny.Clip(f"{name}-{at}", f"class-{at % 2}", centres[at % 32] + noise[at]) for at in range(n)]


@pytest.mark.parametrize("metric", ["accuracy", "eer"])
def test_a_probe_below_the_vote_of_the_neighbours_is_warned_of(metric) -> None:
    store = tiny.TinyStore({name: scattered(name, n) for name, n in (("train", 256), ("valid", 64), ("test", 128))})
    task = tiny.task(metric=metric)
    vote, record = retrieve_task(store, task), probe_task(store, task)
    assert found(record)["below_neighbours"]["neighbours"] == pytest.approx(vote.value)
    assert "below_neighbours" not in found(vote)
    assert "below_neighbours" not in found(probe_task(store, tiny.task(metric=metric, retrieve={"enabled": False})))


def test_a_probe_that_is_as_good_as_the_vote_of_the_neighbours_is_not() -> None:
    sets = {
        name: tiny.clips(name, n, windows=3, spread=2.0) for name, n in (("train", 60), ("valid", 12), ("test", 90))
    }
    record, vote = (score(tiny.TinyStore(sets), tiny.task()) for score in (probe_task, retrieve_task))
    assert record.details["neighbours_vote"]["score"] == pytest.approx(vote.value)
    assert record.details["neighbours_vote"]["above_interval"] is False
    assert "below_neighbours" not in found(record)


def test_a_search_that_would_take_long_beside_the_probe_is_not_made(monkeypatch) -> None:
    monkeypatch.setattr("featstore.evaluation.neighbours.MAX_WORK", 60 * 30 * DIM)
    assert "neighbours_vote" in probe_task(tiny.TinyStore(SPLITS), tiny.task()).details
    monkeypatch.setattr("featstore.evaluation.neighbours.MAX_WORK", 60 * 30 * DIM - 1)
    assert "neighbours_vote" not in probe_task(tiny.TinyStore(SPLITS), tiny.task()).details


def kinds(details, *, metric="accuracy", value=0.5, skipped=()) -> dict[str, int]:
    result = warnings_of_details(details, metric=metric, value=value, skipped=dict(skipped))
    return {each.kind: each.count for each in result}


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({}, {}),
        ({"fit": {"converged": True}}, {}),
        ({"fit": {"converged": False, "iterations": 3}}, {"not_converged": 1}),
        ({"fit": {"1": {"converged": True}, "2": {"converged": False}, "3": [{"converged": 0}]}}, {"not_converged": 2}),
        (
            {"fit": {"converged": False, "rounds": {"1": [{"converged": True}], "2": [{"converged": False}]}}},
            {"not_converged": 1},
        ),
        ({"fit": "nothing that is known"}, {}),
        ({"best_epoch_at_edge": False}, {}),
        ({"best_epoch_at_edge": True}, {"best_epoch_at_edge": 1}),
        ({"at_or_below_majority": True}, {"at_or_below_majority": 1}),
        ({"neighbours_vote": {"score": 0.9, "above_interval": True}}, {"below_neighbours": 1}),
        ({"neighbours_vote": {"score": 0.9, "above_interval": False}}, {}),
        ({"support": [40, 60]}, {"at_or_below_majority": 1}),
        ({"support": [55, 45, 20]}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_what_details_say_becomes_a_warning(details, expected) -> None:
    assert kinds(details) == expected


def test_the_majority_class_is_held_against_accuracies_alone() -> None:
    assert kinds({"support": [40, 60]}, metric="mAP") == {}

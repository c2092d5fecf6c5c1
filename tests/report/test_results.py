"""Scores on disk: what is written is read, what is stale is not, what is damaged is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import FeatstoreError, ResultsError, UsageError
from featstore.records import ScoreRecord
from featstore.report import read_results, read_scores, write_score
from scored import score

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)


def test_what_is_written_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    written = score(value=0.1 + 0.2, std=1e-17, ci_low=1 / 3, title="Wörter, “said”", details={"per_seed": [0.1, None]})
    path = write_score(written, tmp_path / "results")
    assert read_scores(tmp_path / "results") == (written,)
    assert path.name == f"words.A.strict.logmel.{written.key}.json"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@given(
    value=st.floats(allow_nan=False, allow_infinity=False),
    counts=st.lists(st.integers(0, 10**12), min_size=4, max_size=4),
    seeds=st.lists(st.integers(0, 2**63)),
    title=st.text(st.characters(exclude_categories=("Cs",))),
)
def test_any_score_survives_its_json(value: float, counts: list[int], seeds: list[int], title: str) -> None:
    import tempfile

    names = ("n_train", "n_valid", "n_test", "n_skipped")
    record = ScoreRecord(
        task="t", title=title, track="B", protocol="xares", encoder="my/own encoder", fingerprint="0" * 8, metric="mAP",
        value=value, std=value, ci_low=value, ci_high=value, seeds=tuple(seeds), eval_weight=value, private=True,
        seconds={}, manifest_sha256="", versions={}, **dict(zip(names, counts, strict=True)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_score(record, Path(folder))
        assert read_scores(Path(folder)) == (record,)


@pytest.mark.parametrize("clock", [1, 0, -1], ids=["goes on", "stands still", "is set back"])
def test_a_score_that_was_made_again_takes_the_place_of_the_old_one_whatever_clocks_and_names_are(
    tmp_path: Path, clock: int
) -> None:
    remade = [
        score(value=index / 10, features={"words/test": str(index)}, versions={"featstore": f"0.{index}.0"})
        for index in range(6)
    ]
    for hour, index in enumerate((3, 5, 0, 1, 4, 2)):
        path = write_score(remade[index], tmp_path, written_at=NOON + timedelta(hours=clock * hour))
        moment = (NOON + timedelta(hours=clock * hour)).timestamp()
        os.utime(path, (moment, moment))
        assert read_scores(tmp_path) == (remade[index],)
    assert len(list(tmp_path.iterdir())) == 6
    write_score(remade[5], tmp_path, written_at=NOON - timedelta(days=9))
    assert read_scores(tmp_path) == (remade[5],)


def test_the_same_score_made_again_has_the_same_file(tmp_path: Path) -> None:
    paths = {write_score(score(seconds={"train": seconds}), tmp_path) for seconds in (1.0, 2.0)}
    assert len(paths) == 1
    assert read_scores(tmp_path)[0].seconds == {"train": 2.0}


def unsealed(path: Path) -> None:
    """Write a file as a featstore of before had it."""
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({name: raw[name] for name in ("results_format", "written_at", "key", "score")}))


def test_files_of_before_are_read_by_their_time_and_listed_and_any_new_one_counts_more(tmp_path: Path) -> None:
    later = NOON.astimezone(timezone(timedelta(hours=-9))) + timedelta(minutes=1)
    new = write_score(score(value=0.9, versions={"new": "1"}), tmp_path, written_at=later)
    old = write_score(score(value=0.1, versions={"old": "1"}), tmp_path, written_at=NOON)
    sealed = write_score(score(task="noises"), tmp_path)
    for path in (new, old):
        unsealed(path)
    results = read_results(tmp_path)
    assert [record.value for record in results.scores] == [0.5, 0.9]
    assert (results.unsealed, results.failures) == ((new.name,), ())
    assert sealed.name not in results.unsealed
    write_score(score(value=0.3, versions={"newest": "1"}), tmp_path, written_at=NOON - timedelta(days=99))
    assert [record.value for record in read_scores(tmp_path)] == [0.5, 0.3]
    assert read_results(tmp_path).unsealed == ()


FIELDS = {
    "title": "Other", "value": 0.6, "std": 0.1, "ci_low": 0.4, "ci_high": 0.7, "n_train": 101, "n_valid": 11,
    "n_test": 21, "n_skipped": 1, "eval_weight": 1.0, "private": True, "seconds": {}, "details": {"per_seed": [0.6]},
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_changed_value_is_found_and_costs_the_other_files_nothing(tmp_path: Path, name: str) -> None:
    other = score(task="noises")
    write_score(other, tmp_path)
    path = write_score(score(details={"k_curve": {10: 0.5, 9: 0.4}}, title="half a pair \ud800"), tmp_path)
    assert len(read_results(tmp_path).scores) == 2
    path.write_text(_changed(path, lambda raw: raw["score"].update({name: FIELDS[name]})))
    results = read_results(tmp_path)
    assert results.scores == (other,)
    [failure] = results.failures
    assert isinstance(failure, ResultsError)
    assert str(path) in str(failure)
    assert "\n" not in str(failure)


@pytest.mark.parametrize(
    "change", [{"generation": 99}, {"written_at": "2035-06-01T12:00:00+00:00"}, {"generation": -1}]
)
def test_what_is_reported_about_a_score_is_sealed_too(tmp_path: Path, change: dict) -> None:
    path = write_score(score(), tmp_path)
    path.write_text(_changed(path, lambda raw: raw.update(change)))
    assert len(read_results(tmp_path).failures) == 1


@pytest.mark.parametrize(
    "difference",
    [
        {"task": "noises"},
        {"track": "B"},
        {"protocol": "xares"},
        {"encoder": "mfcc"},
        {"fingerprint": "00000000"},
        {"settings": {"head": "sweep"}},
        {"settings": {"k": 5}},
        {"settings": {"k": 5, "index": "hnsw"}},
    ],
    ids=str,
)
def test_scores_that_answer_different_questions_stand_side_by_side(tmp_path: Path, difference: dict) -> None:
    write_score(score(), tmp_path)
    write_score(score(**difference), tmp_path)
    assert len(read_scores(tmp_path)) == 2


def _changed(path: Path, change: Callable[[dict], None]) -> str:
    envelope = json.loads(path.read_text())
    change(envelope)
    return json.dumps(envelope)


DAMAGE: dict[str, tuple[Callable[[Path], str], str]] = {
    "it breaks off": (lambda path: path.read_text()[:200], r"\.json"),
    "it is empty": (lambda _: "", r"\.json"),
    "it is a list": (lambda _: "[]", "JSON object"),
    "it is another JSON": (lambda _: '{"name": 1}', "'results_format'"),
    "it is of a later format": (lambda path: _changed(path, lambda raw: raw.update(results_format=2)), r"\b2\b"),
    "a field is missing": (lambda path: _changed(path, lambda raw: raw["score"].pop("std")), "'std'"),
    "a field is unknown": (lambda path: _changed(path, lambda raw: raw["score"].update(rank=1)), "rank"),
    "a number is text": (lambda path: _changed(path, lambda raw: raw["score"].update(value="0.5")), r"\bvalue\b"),
    "a number is NaN": (lambda path: path.read_text().replace('"value": 0.5', '"value": NaN'), "NaN"),
    "a count is negative": (lambda path: _changed(path, lambda raw: raw["score"].update(n_test=-1)), "n_test"),
    "a track is unknown": (lambda path: _changed(path, lambda raw: raw["score"].update(track="C")), "A, B"),
    "it has no time zone": (
        lambda path: _changed(path, lambda raw: raw.update(written_at="2025-06-01T12:00:00")),
        "time zone",
    ),
    "its encoder was key": (
        lambda path: _changed(path, lambda raw: raw["score"].update(encoder="mine")),
        "key",
    ),
    "it is nested too deeply": (lambda _: "[" * 100_000, "recursion"),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_error_that_names_it_and_says_what_is_wrong(
    tmp_path: Path, damage: Callable[[Path], str], named: str
) -> None:
    write_score(score(task="noises"), tmp_path)
    path = write_score(score(), tmp_path)
    path.write_text(damage(path))
    with pytest.raises(FeatstoreError, match=named) as caught:
        read_scores(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FeatstoreError, match=r"x\.json"):
        read_scores(tmp_path)


def test_a_score_that_is_not_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(FeatstoreError, match=r"\bwords\b.*\blogmel\b"):
        write_score(score(value=float("nan")), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_do_not_matter_and_no_folder_is_reported(tmp_path: Path) -> None:
    write_score(score(), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".words.json.0.tmp").write_text("{")
    assert len(read_scores(tmp_path)) == 1
    with pytest.raises(UsageError, match="featstore probe"):
        read_scores(tmp_path / "nowhere")


def test_a_store_given_as_a_folder_of_results_is_not_called_a_damaged_score(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(UsageError):
        read_results(tmp_path)


def test_measures_of_one_task_have_files_of_their_own_and_the_name_of_the_vote_is_as_before(tmp_path: Path) -> None:
    vote = score(track="B", settings={"k": 10})
    pairs = score(track="B", settings={"measure": "pairs"}, metric="eer")
    names = [write_score(each, tmp_path).name for each in (vote, pairs)]
    assert names == [f"words.B.strict.logmel.{vote.key}.json", f"words.B.strict.logmel.pairs.{pairs.key}.json"]
    assert {each.measure for each in read_scores(tmp_path)} == {"knn", "pairs"}

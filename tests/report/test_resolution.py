"""What a leaderboard can resolve: ranks and ties from the tests, differences and clips that have the stated power."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.stats

import featstore
from benchmarks.resolution import RANKINGS, draw_right, rank_coverage, records_of
from featstore.metrics.comparison import difference_over_tasks, mcnemar
from featstore.records import ScoreRecord
from featstore.report import Average, Resolution, Row, build, grid
from featstore.report.pairing import evidence_of, pair
from featstore.report.resolution import tie_groups
from featstore.report.text import board_to_json, to_csv
from scored import score


def _line(records: list[ScoreRecord]) -> Row:
    (table,) = build(records).tables
    (row,) = table.rows
    return row


def _of(line: Row | Average) -> Resolution:
    assert line.resolution is not None
    return line.resolution


def _board(truth: list[float], *, n_tasks: int = 1, n_clips: int = 200, seed: int = 0) -> list[ScoreRecord]:
    rng = np.random.default_rng(seed)
    return [
        record for at in range(n_tasks) for record in records_of(draw_right(rng, truth, n_clips), task=f"task {at}")
    ]


@pytest.mark.parametrize("seed", range(5))
def test_tie_groups_are_all_the_largest_sets_without_a_separated_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 8
    separated = {pair for pair in combinations(range(n), 2) if rng.random() < 0.15 + 0.15 * seed}
    free = [
        set(some)
        for size in range(1, n + 1)
        for some in combinations(range(n), size)
        if not separated & set(combinations(some, 2))
    ]
    largest = [some for some in free if not any(some < other for other in free)]
    found = tie_groups(rng.permutation(n).tolist(), separated)
    assert sorted(sorted(group) for group in found) == sorted(sorted(group) for group in largest)


def test_encoders_share_a_letter_unless_their_difference_is_significant_and_ranks_agree() -> None:
    records = _board([0.5, 0.6, 0.7, 0.8, 0.81])
    found = _of(_line(records))
    evidence = [evidence_of(record) for record in records]
    p = {(a, b): pair(evidence[a], evidence[b]).p for a, b in combinations(range(5), 2)}  # type: ignore[union-attr]
    ordered = sorted(p, key=lambda each: p[each])
    different = set()
    for at, each in enumerate(ordered):  # Holm's procedure, as its author writes it
        if p[each] > 0.05 / (10 - at):
            break
        different.add(each)
    assert 0 < len(different) < 10
    for a, b in combinations(range(5), 2):
        assert bool(set(found.letters[a]) & set(found.letters[b])) == ((a, b) not in different)
    values = [record.value for record in records]
    for column, ends in enumerate(found.ranks):
        against = [next(o for o in each if o != column) for each in different if column in each]
        better = sum(values[other] > values[column] for other in against)
        assert ends == (1 + better, 5 - (len(against) - better))
    assert found.n_pairs == 10
    assert (found.over, found.n) == ("clips", 200)
    assert [letter for letter in found.letters if letter]  # in the order of groups, the best first
    assert found.letters[found.tie_groups[0][0]].startswith("a")


def test_the_smallest_difference_is_that_of_a_t_test_with_80_percent_power() -> None:
    records = _board([0.6, 0.7])
    found = _of(_line(records))
    a, b = (np.array(record.details["spread"]["deviations"]) for record in records)
    difference = records[0].value - records[1].value
    n = len(a)
    own = n / (n - 1) * float(np.square(a - b).sum())
    added = 2 * max(float(np.abs(a - b + difference / n).max()), 1 / n) ** 2
    t = scipy.stats.t(n - 1)
    expected = t.ppf(0.975) * np.sqrt(own + added) + t.ppf(0.8) * np.sqrt(own)
    assert found.smallest_difference == pytest.approx(expected, rel=1e-6)
    assert found.adjacent[0].smallest_difference == found.smallest_difference
    assert found.adjacent[0].difference == pytest.approx(abs(difference))


@pytest.mark.parametrize(("truth", "n_clips", "seed"), [((0.70, 0.75), 150, 3), ((0.9, 0.92), 400, 1)])
def test_with_the_further_clips_80_percent_of_test_sets_separate_the_encoders(
    truth: tuple[float, float], n_clips: int, seed: int
) -> None:
    right = draw_right(np.random.default_rng(seed), truth, n_clips)
    (adjacent,) = _of(_line(records_of(right))).adjacent
    assert not adjacent.separated
    assert adjacent.more_clips is not None
    only = [int((right[a] & ~right[b]).sum()) for a, b in ((0, 1), (1, 0))]
    chances = [only[0] / n_clips, only[1] / n_clips, 1 - sum(only) / n_clips]
    rng = np.random.default_rng(0)
    for factor, low, high in ((1.0, 0.75, 0.87), (0.5, 0.3, 0.7)):
        n = int((n_clips + adjacent.more_clips) * factor)
        drawn = rng.multinomial(n, chances, size=1500)
        power = np.mean([mcnemar(first, second) <= 0.05 for first, second, _ in drawn.tolist()])
        assert low < power < high, (n, power)


def test_no_number_of_clips_is_given_where_none_would_help() -> None:
    far = _of(_line(_board([0.4, 0.9]))).adjacent[0]
    assert (far.separated, far.more_clips) == (True, None)
    same = records_of(np.array([[True, False] * 30, [False, True] * 30]))
    assert _of(_line(same)).adjacent[0].more_clips is None
    records = _board([0.70, 0.74], n_clips=400)
    assert _of(_line(records)).adjacent[0].more_clips is not None

    def of_seeds(record: ScoreRecord, std: float) -> ScoreRecord:
        spread = {name: value for name, value in record.details["spread"].items() if name != "right"}
        return ScoreRecord(**{**_fields(record), "std": std, "seeds": (0, 1, 2), "details": {"spread": spread}})

    assert _of(_line([of_seeds(record, 0.2) for record in records])).adjacent[0].more_clips is None
    fewer = _of(_line([of_seeds(record, 0.001) for record in records])).adjacent[0].more_clips
    assert fewer is not None


def _fields(record: ScoreRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def test_over_tasks_equal_weights_are_students_t_test_and_others_its_jackknife() -> None:
    rng = np.random.default_rng(0)
    differences, weights = rng.normal(0.02, 0.05, 9), rng.uniform(1, 3, 9)
    plain = difference_over_tasks(differences, [1 / 9] * 9)
    expected = scipy.stats.ttest_1samp(differences, 0)
    assert plain.p == pytest.approx(expected.pvalue)
    assert plain.interval == pytest.approx(tuple(expected.confidence_interval()))
    shares = weights / weights.sum()
    weighted = difference_over_tasks(differences, shares.tolist())
    without = np.array([np.average(np.delete(differences, at), weights=np.delete(weights, at)) for at in range(9)])
    assert weighted.difference == pytest.approx(np.average(differences, weights=weights))
    assert weighted.variance == pytest.approx(8 / 9 * np.square(without - weighted.difference).sum())
    assert 1 < weighted.df < 8


def test_other_tasks_are_stated_from_five_tasks_on_and_resolve_less_than_these_tasks() -> None:
    truth = [0.5, 0.6, 0.7]
    few = build(_board(truth, n_tasks=4)).tables[0].averages[-1]
    assert few.over_tasks is None
    many = build(_board(truth, n_tasks=6)).tables[0].averages[-1]
    assert many.over_tasks is not None
    assert (many.over_tasks.over, many.over_tasks.n, _of(many).n) == ("tasks", 6, 1200)
    assert many.over_tasks.ranks == ((3, 3), (2, 2), (1, 1))
    assert {each.more_clips for each in many.over_tasks.adjacent} == {None}
    assert _of(many).smallest_difference < _of(build(_board(truth)).tables[0].rows[0]).smallest_difference / 2


@pytest.mark.parametrize("ranking", [RANKINGS[1], *RANKINGS[7:9]], ids=lambda each: each.name)
def test_rank_intervals_contain_the_true_ranks_together(ranking: Any) -> None:
    every, _, percentiles = rank_coverage(ranking, n_experiments=25)
    assert every >= 0.9
    assert percentiles < every  # bootstrap percentiles of ranks do not


def test_without_data_for_comparisons_there_is_no_resolution() -> None:
    (table,) = build([score(encoder="a", value=0.4), score(encoder="b", value=0.6)]).tables
    assert table.rows[0].resolution is None
    assert not table.rows[0].inside_noise
    assert (table.averages[-1].resolution, table.averages[-1].intervals) == (None, (None, None))
    assert grid(table).header == ("Encoder", "words\naccuracy")


def test_json_of_the_tables_has_ranks_ties_differences_and_clips() -> None:
    from featstore.report.render import render

    records = _board([0.6, 0.7, 0.74], n_tasks=5)
    (table,) = json.loads(render(records, "leaderboard-json"))
    average = build(records).tables[0].averages[-1]
    found = table["averages"][-1]
    assert [each["label"] for each in table["columns"]] == ["encoder 00", "encoder 01", "encoder 02"]
    assert found["values"] == list(average.values)
    assert found["resolution"]["ranks"] == [list(ends or ()) for ends in _of(average).ranks]
    assert found["resolution"]["letters"] == list(_of(average).letters)
    assert found["resolution"]["smallest_difference"] == _of(average).smallest_difference
    assert [each["more_clips"] for each in found["resolution"]["adjacent"]] == [
        each.more_clips for each in _of(average).adjacent
    ]
    assert found["over_tasks"]["n"] == 5
    assert len(table["rows"]) == 5
    assert all(row["resolution"]["n_pairs"] == 3 for row in table["rows"])


def test_a_table_has_columns_of_ranks_and_ties_and_a_line_of_differences() -> None:
    records = _board([0.6, 0.7, 0.74], n_tasks=5)
    laid_out = grid(build(records).tables[0])
    assert laid_out.header[:5] == ("Encoder", "Rank", "Tie", "Rank,\nnew tasks", "Average\n5 tasks")
    best, *_, last = laid_out.rows
    assert best.labels == ("encoder 02",)
    assert best.cells[0].text.startswith("1")
    assert best.cells[1].text == "a"
    assert last.labels == ("Resolution",)
    average = build(records).tables[0].averages[-1]
    assert last.cells[3].text == f"{_of(average).smallest_difference:.3f}"
    assert laid_out.rows[0].cells[4].letters


def test_differences_that_do_not_vary_have_no_resolution() -> None:
    """Two encoders with the same vectors."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    (record,) = featstore.measure_arrays(rng.standard_normal((200, 4)) + y[:, None], y, measure="retrieval")
    board = build([record, replace(record, encoder="other", fingerprint="0")])
    found = _of(board.tables[0].rows[0])
    assert found.smallest_difference is None
    assert (found.tie_groups, found.ranks) == (((0, 1),), ((1, 2), (1, 2)))
    assert grid(board.tables[0]).rows[-1].cells[-1].text == "–"
    assert json.loads(board_to_json(board))[0]["rows"][0]["resolution"]["smallest_difference"] is None
    assert {line["smallest_difference"] for line in csv.DictReader(io.StringIO(to_csv(board)))} == {""}

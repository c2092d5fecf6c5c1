"""Leaderboards: the arithmetic against a naive formula, and nothing that is missing counted."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import UsageError
from featstore.metrics.registry import METRICS
from featstore.records import ScoreRecord
from featstore.report import Leaderboard, Table, build, grid
from featstore.report.tables import LOWER_IS_BETTER, NOT_AVERAGED
from scored import score


def _only(board: Leaderboard) -> Table:
    (table,) = board.tables
    return table


def test_an_average_weighs_tasks_by_their_eval_weight_once_over_public_ones_and_once_over_all() -> None:
    rng = np.random.default_rng(0)
    weights, values = rng.uniform(1, 5000, 7), rng.uniform(0, 1, (7, 3))
    private = np.array([False, True, False, False, True, False, False])
    records = [
        score(task=f"t{i}", encoder=f"e{j}", value=values[i, j], eval_weight=weights[i], private=bool(private[i]))
        for i in range(7)
        for j in range(3)
    ]
    random.Random(1).shuffle(records)
    public, everything = _only(build(records)).averages
    assert (public.over, everything.over) == ("public", "all")
    assert public.values == pytest.approx(np.average(values[~private], axis=0, weights=weights[~private]))
    assert everything.values == pytest.approx(np.average(values, axis=0, weights=weights))
    assert (public.n_tasks, everything.n_tasks) == (5, 7)
    assert everything.best == {int(np.argmax(np.average(values, axis=0, weights=weights)))}


scores_at = st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 3)), st.floats(0, 1), min_size=1, max_size=20)


@given(scored=scores_at, weights=st.lists(st.floats(0.5, 100), min_size=5, max_size=5))
def test_whatever_is_missing_is_missing_and_no_average_counts_it(
    scored: dict[tuple[int, int], float], weights: list[float]
) -> None:
    records = [score(task=f"t{i}", encoder=f"e{j}", value=v, eval_weight=weights[i]) for (i, j), v in scored.items()]
    table = _only(build(records))
    encoders = sorted({f"e{j}" for _, j in scored})
    tasks = sorted({f"t{i}" for i, _ in scored})
    assert [column.label for column in table.columns] == encoders
    assert [row.task for row in table.rows] == tasks
    (average,) = table.averages
    assert average.n_tasks == len(tasks)
    for column, encoder in enumerate(encoders):
        mine = [(weights[i], value) for (i, j), value in scored.items() if f"e{j}" == encoder]
        assert average.n_scored[column] == len(mine)
        assert average.values[column] == pytest.approx(sum(w * v for w, v in mine) / sum(w for w, _ in mine))
        for row in table.rows:
            cell, value = row.cells[column], scored.get((int(row.task[1]), int(encoder[1])))
            assert (cell is None) == (value is None)
            assert cell is None or cell.value == value
    for row in table.rows:
        there = [cell.value for cell in row.cells if cell is not None]
        best = {c for c, cell in enumerate(row.cells) if cell is not None and cell.value == max(there)}
        assert row.best == (best if len(there) > 1 else set())


def test_an_encoder_that_lacks_a_task_is_not_the_best_on_average() -> None:
    records = [
        score(task="easy", encoder="picky", value=0.99),
        *(
            score(task=task, encoder=encoder, value=0.5 + 0.1 * (encoder == "b"))
            for task in ("easy", "hard")
            for encoder in "ab"
        ),
    ]
    table = _only(build(records))
    best = {table.columns[index].label for index in table.averages[0].best}
    assert table.averages[0].values[2] == 0.99
    assert table.averages[0].n_scored == (2, 2, 1)
    assert best == {"b"}


def test_tracks_and_protocols_have_tables_of_their_own_in_a_fixed_order() -> None:
    records = [score(track=track, protocol=protocol) for protocol in ("xares", "strict") for track in "BA"]
    tables = build(records).tables
    assert [(table.protocol, table.track) for table in tables] == [
        ("strict", "A"),
        ("strict", "B"),
        ("xares", "A"),
        ("xares", "B"),
    ]
    assert build([]).tables == ()


def test_a_cell_shows_the_interval_else_the_deviation_else_neither() -> None:
    records = [
        score(task="a", ci_low=0.4, ci_high=0.52, std=0.01),
        score(task="b", std=0.01),
        score(task="c"),
    ]
    halves = [row.cells[0].half_width for row in _only(build(records)).rows]
    assert halves == [pytest.approx(0.06), 0.01, None]


def test_less_is_better_for_an_error_and_no_average_mixes_it_in() -> None:
    records = [score(task="age", metric="mae", encoder=e, value=v) for e, v in (("a", 3.0), ("b", 5.0))]
    records += [score(encoder=e, value=v) for e, v in (("a", 0.4), ("b", 0.6))]
    table = _only(build(records))
    assert {row.task: row.best for row in table.rows} == {"age": {0}, "words": {1}}
    assert table.averages[0].values == (0.4, 0.6)
    assert table.averages[0].n_tasks == 1


def test_a_task_without_weight_is_shown_and_part_of_no_average() -> None:
    table = _only(build([score(task="a", eval_weight=0.0, value=1.0), score(task="b", value=0.5)]))
    assert len(table.rows) == 2
    assert table.averages[0].values == (0.5,)
    assert _only(build([score(eval_weight=0.0)])).averages[0].values == (None,)


def test_two_recipes_of_an_encoder_are_two_columns_and_one_recipe_needs_no_fingerprint() -> None:
    records = [score(fingerprint="aaaaaaaa"), score(fingerprint="bbbbbbbb"), score(encoder="mfcc")]
    assert [column.label for column in _only(build(records)).columns] == ["logmel@aaaaaaaa", "logmel@bbbbbbbb", "mfcc"]


def test_settings_are_shown_only_where_they_distinguish_scores() -> None:
    k_by_task = [score(task=task, settings={"k": k, "index": "flat"}) for task, k in (("a", 10), ("b", 5))]
    assert [column.label for column in _only(build(k_by_task)).columns] == ["logmel"]
    asked_twice = [score(settings={"k": k, "index": "flat"}) for k in (10, 5)]
    assert [column.label for column in _only(build(asked_twice)).columns] == ["logmel (k=5)", "logmel (k=10)"]


def test_scores_under_different_manifests_are_marked() -> None:
    records = [score(encoder="a", manifest_sha256="1"), score(encoder="b", manifest_sha256="2"), score(task="z")]
    assert [row.manifests for row in _only(build(records)).rows] == [2, 1]


def test_two_scores_for_one_place_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\bwords\b.*\blogmel\b"):
        build([score(), score(value=0.6)])


def test_tables_and_metrics_agree_on_what_is_better() -> None:
    for name, make in METRICS.items():
        assert (name in LOWER_IS_BETTER) != make("strict").higher_is_better, name


def test_an_average_takes_only_scores_of_which_one_is_perfect() -> None:
    for name, make in METRICS.items():
        metric = make("strict")
        assert (name not in NOT_AVERAGED) == (metric.higher_is_better and name != "d_prime"), name
    records = [score(task="near", metric="d_prime", value=3.5), score(task="words", value=0.6)]
    (table,) = build(records).tables
    assert table.averages[0].values == (0.6,)
    assert table.averages[0].n_tasks == 1


def test_what_is_not_averaged_is_a_column_and_no_average_of_one_task_is_shown() -> None:
    laid_out = grid(_only(build([score(task="near", metric="d_prime", value=3.5), score()])))
    assert laid_out.header == ("Encoder", "near\nd_prime", "words\naccuracy")
    assert any("d_prime" in note for note in laid_out.notes)


def of_measure(measure: str, **fields: object) -> ScoreRecord:
    settings = {} if measure == "knn" else {"measure": measure}
    metric = {"knn": "accuracy", "retrieval": "mAP", "clustering": "v_measure", "pairs": "eer"}[measure]
    return score(**{"track": "B", "settings": settings, "metric": metric, "seeds": (), **fields})


def test_each_measure_has_a_table_of_its_own_with_knn_first() -> None:
    records = [of_measure(measure) for measure in ("pairs", "retrieval", "knn", "clustering")]
    board = build([*records, score()])
    assert [(table.track, table.measure) for table in board.tables] == [
        ("A", ""),
        ("B", "knn"),
        ("B", "clustering"),
        ("B", "pairs"),
        ("B", "retrieval"),
    ]
    titles = [grid(table).title for table in board.tables]
    assert len(set(titles)) == 5
    assert all([column.label for column in table.columns] == ["logmel"] for table in board.tables)


def test_an_error_that_is_the_metric_of_a_measure_is_averaged_and_the_lowest_is_first() -> None:
    values = {("a", "one"): 0.1, ("a", "two"): 0.2, ("b", "one"): 0.3, ("b", "two"): 0.15}
    table = _only(
        build(of_measure("pairs", task=task, encoder=encoder, value=v) for (encoder, task), v in values.items())
    )
    (average,) = table.averages
    assert average.values == pytest.approx((0.15, 0.225))
    assert (average.best, average.lower_is_better) == ({0}, True)
    assert [row.labels[0] for row in grid(table).rows] == ["a", "b"]
    # as the metric of tasks, it is on another scale than theirs
    mixed = _only(build(score(task=task, metric="eer", value=0.1) for task in ("one", "two")))
    assert mixed.averages[0].n_tasks == 0

"""`report --compare` and `--published`: tests and intervals against the textbook, and reference columns kept apart."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from click.testing import CliRunner
from rich.console import Console

import tiny
from featstore.cli import cli
from featstore.cli.tables import painted
from featstore.errors import UsageError
from featstore.evaluation.scores import score_test_sets
from featstore.metrics import TestSet, find_metric
from featstore.records import ScoreRecord
from featstore.report import (
    build,
    compare,
    comparison_grids,
    comparison_to_csv,
    comparison_to_json,
    grid,
    grids_to_markdown,
    published_scores,
    to_csv,
    to_markdown,
    write_score,
)
from featstore.report.pairing import evidence_of, pair
from featstore.retrieve import retrieve_task
from featstore.tasks import builtin_tasks
from scored import score, scored


def _sets(spread: float) -> dict[str, tiny.TinySet]:
    return {
        name: tiny.TinySet(tiny.clips(name, n, dim=8, spread=spread))
        for name, n in (("train", 90), ("valid", 9), ("test", 300))
    }


def _by(encoder: str, *, spread: float, **changes: object) -> ScoreRecord:
    record = retrieve_task(tiny.TinyStore(_sets(spread)), tiny.task(**changes))
    return replace(record, encoder=encoder)


def test_the_interval_of_a_difference_is_that_of_paired_clips() -> None:
    a, b = _by("a", spread=1.5), _by("b", spread=2.0)
    (found,) = compare([a, b], "a", "b").differences
    # Which clips each has right, from neighbours by hand.
    right = []
    for spread in (1.5, 2.0):
        train, test = _sets(spread)["train"], _sets(spread)["test"]
        unit = [each.utterance / np.linalg.norm(each.utterance, axis=1, keepdims=True) for each in (train, test)]
        similarity = unit[1] @ unit[0].T
        labels = [np.array([int(clip.label[-1]) for clip in each.clips]) for each in (train, test)]
        nearest = np.argsort(-similarity, axis=1)[:, :10]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
        votes = np.stack([(weights * (labels[0][nearest] == label)).sum(axis=1) for label in range(3)], axis=1)
        right.append((votes.argmax(axis=1) == labels[1]).astype(float))
    gain = right[0] - right[1]
    assert found.difference == pytest.approx(gain.mean())
    error = gain.std() / np.sqrt(len(gain))
    assert (found.low, found.high) == pytest.approx((gain.mean() - 1.96 * error, gain.mean() + 1.96 * error), abs=0.012)
    assert found.better == "A"
    only = (int(((right[0] == 1) & (right[1] == 0)).sum()), int(((right[0] == 0) & (right[1] == 1)).sum()))
    assert found.p == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)


def test_an_encoder_against_itself_under_another_name_differs_by_nothing() -> None:
    (found,) = compare([_by("a", spread=2.0), _by("b", spread=2.0)], "a", "b").differences
    assert (found.difference, found.p, found.better) == (0.0, 1.0, "")
    assert found.low == -found.high < 0 < found.high < 0.02  # other clips may tell the two apart


def _kept(deviations: list[float], clips: str = "cafe", **more: object) -> dict[str, object]:
    """What a record keeps of its units."""
    variance = float(np.square(np.array(deviations, object)).sum()) if "x" not in deviations else 1.0
    spread = {"clips": clips, "units": "clips", "n": len(deviations), "variance": variance, "deviations": deviations}
    return {"spread": {**spread, **more}}


def _right(right: np.ndarray) -> dict[str, object]:
    """What a record keeps of which clips are right."""
    deviations = (right - right.mean()) / len(right)
    return _kept(deviations.tolist(), right="".join(str(int(each)) for each in right))


@pytest.mark.parametrize("n_discordant", [1, 2, 3])
@pytest.mark.parametrize("n", [30, 100, 1000])
def test_one_to_three_clips_never_make_an_encoder_better(n: int, n_discordant: int) -> None:
    for trial in range(20):
        b = (np.random.default_rng(trial).random(n) < 0.9).astype(float)
        a = b.copy()
        a[np.flatnonzero(b == 0)[:n_discordant]] = 1
        records = [
            score(encoder=name, value=float(each.mean()), details=_right(each), seeds=())
            for name, each in (("a", a), ("b", b))
        ]
        (found,) = compare(records, "a", "b").differences
        assert found.better == ""
        assert found.p >= 0.25
        assert found.low < 0 < found.high
        (table,) = build(records).tables
        assert table.rows[0].inside_noise == (frozenset({1}) if a.mean() > b.mean() else frozenset())


@pytest.mark.parametrize("n_discordant", [1, 2, 3])
def test_nor_do_they_under_another_metric(n_discordant: int) -> None:
    rng = np.random.default_rng(0)
    y_true = rng.integers(4, size=100)
    predicted = np.where(rng.random(100) < 0.9, y_true, (y_true + 1) % 4)
    corrected = predicted.copy()
    corrected[np.flatnonzero(predicted != y_true)[:n_discordant]] = y_true[
        np.flatnonzero(predicted != y_true)[:n_discordant]
    ]
    a, b = (evidence_of(_scored_by("macro_f1", y_true, each)) for each in (corrected, predicted))
    tested = pair(a, b)
    assert tested.difference > 0
    assert tested.p > 0.05
    assert tested.interval[0] < 0 < tested.interval[1]


def _scored_by(metric: str, y_true: np.ndarray, *predicted: np.ndarray, encoder: str = "a") -> ScoreRecord:
    """The record of predictions, one for each seed."""
    n_classes = int(y_true.max()) + 1
    test_set = TestSet(
        y_true=y_true, y_scores=tuple(np.eye(n_classes)[each] for each in predicted), clip=np.arange(len(y_true))
    )
    found = score_test_sets(
        find_metric(metric, "strict"), [test_set], clip_ids=[f"clip {at}" for at in range(len(y_true))]
    )
    return ScoreRecord(
        task="words", title="Words", track="A", protocol="strict", encoder=encoder, fingerprint="0", metric=metric,
        value=found.value, std=found.std, ci_low=found.interval.low, ci_high=found.interval.high,
        seeds=tuple(range(len(predicted))), n_train=1, n_valid=1, n_test=len(y_true), n_skipped=0, eval_weight=1.0,
        private=False, seconds={}, manifest_sha256="", versions={}, details=found.details, protocol_version=2,
    )  # fmt: skip


def test_seeds_are_part_of_a_difference() -> None:
    """The same two encoders: three seeds that disagree by chance take the certainty away."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(4, size=2000)

    def predicted(accuracy: float) -> np.ndarray:
        return np.where(rng.random(2000) < accuracy, y_true, (y_true + 1) % 4)

    steady = [
        _scored_by("accuracy", y_true, *(predicted(p) for _ in range(3)), encoder=e)
        for e, p in (("a", 0.9), ("b", 0.85))
    ]
    shaky = [
        _scored_by("accuracy", y_true, predicted(p - 0.08), predicted(p), predicted(p + 0.08), encoder=e)
        for e, p in (("a", 0.9), ("b", 0.85))
    ]
    assert compare(steady, "a", "b").differences[0].better == "A"
    assert compare(shaky, "a", "b").differences[0].better == ""
    assert shaky[0].ci_high - shaky[0].ci_low > 3 * (steady[0].ci_high - steady[0].ci_low)


def test_of_several_equal_encoders_one_is_called_worse_in_at_most_one_table_of_twenty() -> None:
    from benchmarks.coverage import Equals, false_positives

    for equals, n, most in (
        (Equals(8, 0.9), 100, 7),
        (Equals(2, 0.9, seeds=3, by_seed=0.02), 100, 7),
    ):
        assert false_positives(equals, n, n_experiments=60) <= most / 60, equals


@pytest.mark.slow
def test_the_family_wise_rule_holds_for_two_eight_and_sixteen_encoders() -> None:
    from benchmarks.coverage import EQUALS, SIZES, false_positives

    for equals in EQUALS:
        for n in SIZES:
            rate = false_positives(equals, n, n_experiments=400)
            assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400), (equals, n, rate)


def test_scores_of_two_protocol_versions_are_never_mixed() -> None:
    old = [score(encoder=name, value=0.99) for name in ("a", "b")]
    new = [score(encoder=name, value=0.5, protocol_version=2, details=_kept([0.01, -0.01])) for name in ("a", "c")]
    (table,) = build([old[1], *new]).tables
    assert [column.label for column in table.columns] == ["a", "c"]
    assert [record.encoder for record in table.superseded] == ["b"]
    assert table.averages[0].values == (0.5, 0.5)
    assert "words by b" in to_markdown(build([old[1], *new]))
    with pytest.raises(UsageError, match=r"\bb\b"):
        compare([old[1], *new], "a", "b")
    both_old = build(old).tables[0]
    assert (len(both_old.columns), both_old.superseded) == (2, ())
    assert old[0].key == score(encoder="a", value=0.1).key != new[0].key


def test_scores_that_cannot_be_compared_have_a_mark_of_their_own() -> None:
    records = [
        score(encoder="a", value=0.9, details=_kept([0.01, -0.01])),
        score(encoder="b", value=0.5, details=_kept([0.01, -0.01], clips="beef")),
    ]
    (table,) = build(records).tables
    assert table.rows[0].not_comparable == {1}
    assert not table.rows[0].inside_noise
    assert "? 0.500" in to_markdown(build(records))
    assert "significantly worse" not in to_markdown(build(records))


def test_paired_intervals_hold_the_true_difference_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        truth = rng.random(150)  # how hard each clip is, for both
        right = [(rng.random(150) < truth * skill).astype(float) for skill in (0.9, 0.7)]
        a, b = (
            score(encoder=name, value=each.mean(), details=_right(each), seeds=())
            for name, each in zip("ab", right, strict=True)
        )
        (found,) = compare([a, b], "a", "b").differences
        held += found.low <= 0.5 * 0.2 <= found.high
    assert 178 <= held <= 200  # 95 % of 200, by three standard deviations


def test_a_weighted_average_of_differences_has_an_interval_too() -> None:
    rng = np.random.default_rng(0)
    weights, noise = {"t1": 100.0, "t2": 300.0, "t3": 0.0}, rng.standard_normal((3, 2, 200)) * 0.01 / np.sqrt(200)
    records = [
        score(task=task, encoder=name, eval_weight=weight, value=value, details=_kept(noise[at, side].tolist()))
        for at, (task, weight) in enumerate(weights.items())
        for side, (name, value) in enumerate((("a", 0.6 + 0.1 * at), ("b", 0.5)))
    ]
    (average,) = compare(records, "a", "b").averages
    assert (average.value_a, average.value_b) == pytest.approx((0.675, 0.5))
    width = 1.96 * np.sqrt(2 * (0.25**2 + 0.75**2)) * 0.01
    assert (average.high - average.low) / 2 == pytest.approx(width, rel=0.15)
    assert average.better == "A"
    assert average.title == "Weighted average, 2 tasks"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"details": {}}, "score"),
        ({"details": _kept([0.1, 0.2], clips="beef")}, "clips"),
        ({"details": _kept([0.1, 0.2, 0.3])}, "clips"),
        ({"details": {"bootstrap": {"clips": "cafe", "values": [0.1]}}}, "score"),
        ({"details": _kept(["x", 0.1])}, "undefined"),
        ({"details": _kept([0.1, 0.2], units="groups", n=3)}, "groups"),
        ({"details": _kept([0.1, 0.2]), "manifest_sha256": "00"}, "manifest"),
        ({"details": _kept([0.1, 0.2]), "seeds": (0, 1)}, "(3 and 2)"),
    ],
)
def test_scores_that_cannot_be_paired_have_no_interval_and_say_why(change: dict, named: str) -> None:
    compared = compare([score(encoder="a", details=_kept([0.1, 0.2])), score(encoder="b", **change)], "a", "b")
    (found,) = compared.differences
    assert (found.low, found.high, found.better) == (None, None, "")
    assert named in found.unpaired
    assert named in grids_to_markdown(comparison_grids(compared))
    assert json.loads(comparison_to_json(compared))[0]["low"] is None


def test_of_an_error_less_is_better() -> None:
    a, b = (
        score(encoder=name, metric="mae", value=value, details=_kept([0.001, -0.001] * 5))
        for name, value in (("a", 1.0), ("b", 2.0))
    )
    assert compare([a, b], "a", "b").differences[0].better == "A"


def test_only_scores_of_one_question_are_compared() -> None:
    records = [
        score(encoder="a", settings={"head": "linear"}),
        score(encoder="a", settings={"head": "sweep"}),
        score(encoder="b", settings={"head": "linear"}),
        score(encoder="b", track="B", settings={"k": 10}),
        score(encoder="b", protocol="xares", settings={"head": "linear"}),
    ]
    compared = compare(records, "a", "b")
    assert (len(compared.differences), compared.only_a, compared.only_b) == (1, 1, 2)
    assert any(
        re.search(r"\b1\b.*\ba\b.*\b2\b.*\bb\b", note) for grid in comparison_grids(compared) for note in grid.notes
    )
    assert len(list(csv.DictReader(io.StringIO(comparison_to_csv(compared))))) == 1


@pytest.mark.parametrize(
    ("pair", "named"),
    [
        (("a", "unscored"), "unscored.* a@1"),
        (("a", "b"), "b@1, b@2"),
        (("a", "a"), r"\ba\b"),
        (("a", "c"), r"\ba\b.*\bc\b"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(pair: tuple[str, str], named: str) -> None:
    records = [score(encoder=name, fingerprint=print_) for name, print_ in (("a", "1"), ("b", "1"), ("b", "2"))]
    with pytest.raises(UsageError, match=named):
        compare([*records, score(encoder="c", task="other")], *pair)


# --- published --------------------------------------------------------------------------------------------------------


def test_published_scores_add_up_to_the_published_averages() -> None:
    published = published_scores()
    tasks = {task.name: task for task in builtin_tasks()}
    for track in ("A", "B"):
        scores = published.scores[track]
        for encoder, printed in published.averages[track]["all"].items():
            weights = [tasks[task].eval_weight for task in scores]
            average = np.average([scores[task][encoder] for task in scores], weights=weights)
            assert average == pytest.approx(printed, abs=0.03 if track == "B" else 0.02)


def test_published_scores_stand_beside_xares_scores_only_and_are_never_the_best() -> None:
    records = [
        score(task=task, protocol=protocol, encoder=encoder, value=0.1 + len(encoder) / 100, eval_weight=weight)
        for protocol in ("strict", "xares")
        for task, weight in (("esc50", 400.0), ("mine", 10.0))
        for encoder in ("dasheng", "ours")
    ]
    strict, xares = build(records, published=published_scores()).tables
    assert [column.label for column in strict.columns] == ["dasheng", "ours"]
    assert [column.label for column in xares.columns] == [
        "dasheng", "ours", *(f"{name} (published)" for name in ("dasheng", "data2vec", "wav2vec2", "whisper"))
    ]  # fmt: skip
    esc50, mine = xares.rows
    assert esc50.cells[2].value == 0.857
    assert esc50.best == {0}
    assert mine.cells[2:] == (None,) * 4
    assert xares.averages[0].best == {0}
    assert xares.averages[0].n_scored == (2, 2, 1, 1, 1, 1)
    assert any(note.startswith("(published)") for note in grid(xares).notes)
    assert "**▸ 0.857**" not in to_markdown(build(records, published=published_scores()))
    lines = csv.DictReader(io.StringIO(to_csv(build(records, published=published_scores()))))
    assert {line["encoder"] for line in lines if line["published"] == "true"} == {
        f"{name} (published)" for name in ("dasheng", "data2vec", "wav2vec2", "whisper")
    }
    assert build(records).tables[1].columns == xares.columns[:2]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_adds_what_is_published(tmp_path: Path) -> None:
    for name, value in (("a", 0.6), ("b", 0.5)):
        details = _kept([0.001 * (-1) ** at for at in range(10)])
        write_score(score(encoder=name, task="esc50", title="ESC-50", value=value, details=details), tmp_path)
    run = CliRunner().invoke

    shown = run(cli, ["report", "--results", str(tmp_path), "--compare", "a", "b"])
    assert shown.exit_code == 0, shown.output
    assert "+0.100" in shown.output
    assert "< 0.001" in shown.output
    assert (
        json.loads(run(cli, ["report", "--results", str(tmp_path), "--compare", "a", "b", "--format", "json"]).stdout)[
            0
        ]["better"]
        == "A"
    )

    nothing = run(cli, ["report", "--results", str(tmp_path), "--published"])
    assert "--published" in nothing.stderr
    assert "published" not in nothing.stdout
    write_score(score(encoder="a", task="esc50", title="ESC-50", protocol="xares"), tmp_path)
    out = tmp_path / "board.md"
    run(cli, ["report", "--results", str(tmp_path), "--published", "--format", "markdown", "--out", str(out)])
    assert "dasheng (published)" in out.read_text()
    both = run(cli, ["report", "--results", str(tmp_path), "--published", "--compare", "a", "b"])
    assert isinstance(both.exception, UsageError)


def test_marks_are_those_of_a_comparison_corrected_for_all_pairs() -> None:
    two_tasks = [
        _by(encoder, spread=spread, name=name)
        for name in ("tiny", "tinier")
        for encoder, spread in (("a", 1.5), ("b", 1.55), ("c", 3.0), ("d", 1.6), ("e", 1.7), ("f", 1.75), ("g", 1.8))
    ]
    (table,) = build(two_tasks).tables
    labels = [column.label for column in table.columns]
    for line in (*table.rows, *table.averages):
        p = {}
        for at, one in enumerate(labels):
            for other in range(at + 1, len(labels)):
                found = compare(two_tasks, one, labels[other])
                same = [each for each in found.differences if each.task == getattr(line, "task", "")] or found.averages
                p[at, other] = same[0].p
        pairs, values = zip(*sorted(p.items(), key=lambda item: item[1]), strict=True)
        bonferroni = np.minimum(1, np.array(values) * (len(values) - np.arange(len(values))))
        adjusted = dict(zip(pairs, np.maximum.accumulate(bonferroni), strict=True))
        leader = min(line.best)
        rivals = set(range(len(labels))) - line.best
        worse = {at for at in rivals if adjusted[min(at, leader), max(at, leader)] <= 0.05}
        assert line.inside_noise == rivals - worse
        assert labels.index("c") in worse
        assert line.ranks[labels.index("c")][0] > 1


def test_terminal_and_markdown_show_which_differences_are_noise() -> None:
    records = [_by(encoder, spread=spread) for encoder, spread in (("a", 1.5), ("b", 1.55), ("c", 3.0))]
    text = to_markdown(build(records))
    rows = [line for line in text.splitlines() if line.startswith(("| a |", "| b |", "| c |"))]
    of_task = [row.split("|")[-2].strip() for row in rows]
    assert sorted(each[:2] for each in of_task) == ["**", "0.", "≈ "]
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system="standard")
    console.print(painted(grid(table) for table in build(records).tables))
    bold = re.search(r"\x1b\[1;32m▸ (0\.\d{3}) ±", out.getvalue())
    assert bold is not None
    assert float(bold[1]) == pytest.approx(max(record.value for record in records), abs=5e-4)


def test_the_interval_of_an_average_is_of_independent_tasks() -> None:
    records = [_by("a", spread=1.5, name=name, eval_weight=weight) for name, weight in (("tiny", 1.0), ("tinier", 3.0))]
    variances = [record.details["spread"]["variance"] for record in records]
    value = (records[0].value + 3 * records[1].value) / 4
    error = np.sqrt(0.25**2 * variances[0] + 0.75**2 * variances[1])
    (table,) = build(records).tables
    expected = (pytest.approx(value - 1.97 * error, abs=2e-3), pytest.approx(value + 1.97 * error, abs=2e-3))
    assert table.averages[0].intervals == (expected,)


def test_an_average_of_errors_of_a_measure_is_better_where_it_is_lower() -> None:
    records = [
        replace(
            scored(task, encoder, value, track="B", metric="eer", curves=False),
            settings={"measure": "pairs"},
            ci_low=value - 0.03,
            ci_high=value + 0.03,
        )
        for encoder, value in (("a", 0.1), ("b", 0.3))
        for task in ("one", "two")
    ]
    found = compare([*records, *(replace(each, settings={}) for each in records)], "a", "b")
    measures = [each.measure for each in found.differences]
    assert sorted(set(measures)) == ["knn", "pairs"]
    (average,) = found.averages  # the metric of the tasks, under knn, is not averaged
    assert (average.measure, average.better) == ("pairs", "A")
    assert average.difference == pytest.approx(-0.2)
    assert [len(each.rows) for each in comparison_grids(found)] == [2, 3]

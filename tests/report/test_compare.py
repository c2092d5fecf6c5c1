"""`report --compare` and `--published`: paired intervals against the textbook, and reference columns kept apart."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

import tiny
from featstore.cli import cli
from featstore.cli.console.tables import painted
from featstore.errors import UsageError
from featstore.manifest import builtin_tasks
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
from featstore.retrieve import retrieve_task

Score = Callable[..., ScoreRecord]


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


def test_an_encoder_against_itself_under_another_name_differs_by_nothing() -> None:
    (found,) = compare([_by("a", spread=2.0), _by("b", spread=2.0)], "a", "b").differences
    assert (found.difference, found.low, found.high, found.better) == (0.0, 0.0, 0.0, "")


def _kept(values: list[float], clips: str = "cafe") -> dict[str, object]:
    return {"bootstrap": {"clips": clips, "values": values}}


def test_paired_intervals_hold_the_true_difference_about_as_often_as_they_say(score: Score) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        truth = rng.random(150)  # how hard each clip is, for both
        right = [(rng.random(150) < truth * skill).astype(float) for skill in (0.9, 0.7)]
        drawn = np.random.default_rng(trial).integers(150, size=(400, 150))
        a, b = (
            score(encoder=name, value=each.mean(), details=_kept(each[drawn].mean(axis=1).tolist()))
            for name, each in zip("ab", right, strict=True)
        )
        (found,) = compare([a, b], "a", "b").differences
        held += found.low <= 0.5 * 0.2 <= found.high
    assert 178 <= held <= 200  # 95 % of 200, by three standard deviations


def test_a_weighted_average_of_differences_has_an_interval_too(score: Score) -> None:
    rng = np.random.default_rng(0)
    weights, noise = {"t1": 100.0, "t2": 300.0, "t3": 0.0}, rng.standard_normal((3, 2, 1000)) * 0.01
    records = [
        score(
            task=task, encoder=name, eval_weight=weight, value=value, details=_kept((value + noise[at, side]).tolist())
        )
        for at, (task, weight) in enumerate(weights.items())
        for side, (name, value) in enumerate((("a", 0.6 + 0.1 * at), ("b", 0.5)))
    ]
    (average,) = compare(records, "a", "b").averages
    assert (average.value_a, average.value_b) == pytest.approx((0.675, 0.5))
    width = 1.96 * np.sqrt(2 * (0.25**2 + 0.75**2)) * 0.01
    assert (average.high - average.low) / 2 == pytest.approx(width, rel=0.1)
    assert average.title == "Weighted average, 2 tasks"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"details": {}}, "score again"),
        ({"details": _kept([0.1], clips="beef")}, "not the same test clips"),
        ({"details": _kept([0.1, 0.2])}, "not the same test clips"),
        ({"details": {"bootstrap": {"clips": "cafe", "values": ["x"]}}}, "score again"),
        ({"details": _kept([0.1]), "manifest_sha256": "00"}, "different manifests"),
    ],
)
def test_scores_that_cannot_be_paired_have_no_interval_and_say_why(score: Score, change: dict, says: str) -> None:
    compared = compare([score(encoder="a", details=_kept([0.1])), score(encoder="b", **change)], "a", "b")
    (found,) = compared.differences
    assert (found.low, found.high, found.better) == (None, None, "")
    assert says in found.unpaired
    assert says in grids_to_markdown(comparison_grids(compared))
    assert json.loads(comparison_to_json(compared))[0]["low"] is None


def test_of_an_error_less_is_better(score: Score) -> None:
    a, b = (
        score(encoder=name, metric="mae", value=value, details=_kept([value] * 9))
        for name, value in (("a", 1.0), ("b", 2.0))
    )
    assert compare([a, b], "a", "b").differences[0].better == "A"


def test_only_scores_of_one_question_are_compared(score: Score) -> None:
    records = [
        score(encoder="a", settings={"head": "linear"}),
        score(encoder="a", settings={"head": "sweep"}),
        score(encoder="b", settings={"head": "linear"}),
        score(encoder="b", track="B", settings={"k": 10}),
        score(encoder="b", protocol="xares", settings={"head": "linear"}),
    ]
    compared = compare(records, "a", "b")
    assert (len(compared.differences), compared.only_a, compared.only_b) == (1, 1, 2)
    assert "1 of a, 2 of b" in grids_to_markdown(comparison_grids(compared))
    assert len(list(csv.DictReader(io.StringIO(comparison_to_csv(compared))))) == 1


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        (("a", "nobody"), "no score of nobody; there are scores of a@1"),
        (("a", "b"), "b is the name of several: say which of b@1, b@2"),
        (("a", "a"), "are one"),
        (("a", "c"), "no score in common"),
    ],
)
def test_what_cannot_be_compared_is_a_usage_error(score: Score, pair: tuple[str, str], says: str) -> None:
    records = [score(encoder=name, fingerprint=print_) for name, print_ in (("a", "1"), ("b", "1"), ("b", "2"))]
    with pytest.raises(UsageError, match=says):
        compare([*records, score(encoder="c", task="other")], *pair)


# --- published --------------------------------------------------------------------------------------------------------


def test_published_scores_add_up_to_the_published_averages() -> None:
    published = published_scores()
    tasks = {task.name: task for task in builtin_tasks()}
    for track in ("A", "B"):
        scores = published.of_track(track)
        for encoder, printed in published.averages[track]["all"].items():
            weights = [tasks[task].eval_weight for task in scores]
            average = np.average([scores[task][encoder] for task in scores], weights=weights)
            assert average == pytest.approx(printed, abs=0.03 if track == "B" else 0.02)


def test_published_scores_stand_beside_xares_scores_only_and_are_never_the_best(score: Score) -> None:
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
    assert any("never marked as best" in note for note in grid(xares).notes)
    assert "**0.857**" not in to_markdown(build(records, published=published_scores()))
    lines = csv.DictReader(io.StringIO(to_csv(build(records, published=published_scores()))))
    assert {line["encoder"] for line in lines if line["published"] == "true"} == {
        f"{name} (published)" for name in ("dasheng", "data2vec", "wav2vec2", "whisper")
    }
    assert build(records).tables[1].columns == xares.columns[:2]


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_compares_and_adds_what_is_published(tmp_path: Path, score: Score) -> None:
    for name, value in (("a", 0.6), ("b", 0.5)):
        details = _kept([value + 0.001 * (-1) ** at for at in range(10)])
        write_score(score(encoder=name, task="esc50", title="ESC-50", value=value, details=details), tmp_path)
    run = CliRunner().invoke

    shown = run(cli, ["report", "--results", str(tmp_path), "--compare", "a", "b"])
    assert shown.exit_code == 0, shown.output
    assert "+0.100 to +0.100" in shown.output
    assert (
        json.loads(run(cli, ["report", "--results", str(tmp_path), "--compare", "a", "b", "--format", "json"]).stdout)[
            0
        ]["better"]
        == "A"
    )

    nothing = run(cli, ["report", "--results", str(tmp_path), "--published"])
    assert "--published adds nothing" in nothing.stderr
    assert "published" not in nothing.stdout
    write_score(score(encoder="a", task="esc50", title="ESC-50", protocol="xares"), tmp_path)
    out = tmp_path / "board.md"
    run(cli, ["report", "--results", str(tmp_path), "--published", "--format", "markdown", "--out", str(out)])
    assert "dasheng (published)" in out.read_text()
    both = run(cli, ["report", "--results", str(tmp_path), "--published", "--compare", "a", "b"])
    assert isinstance(both.exception, UsageError)


def test_what_a_comparison_cannot_tell_from_the_best_is_marked_as_inside_the_noise() -> None:
    two_tasks = [
        _by(encoder, spread=spread, name=name)
        for name in ("tiny", "tinier")
        for encoder, spread in (("a", 1.5), ("b", 1.55), ("c", 3.0), ("d", 1.6), ("e", 1.7), ("f", 1.75), ("g", 1.8))
    ]
    (table,) = build(two_tasks).tables
    labels = [column.label for column in table.columns]
    for line, best in ((row, row.best) for row in (*table.rows, *table.averages)):
        (leader,) = best
        expected = set()
        for at, rival in enumerate(labels):
            if at == leader:
                continue
            found = compare(two_tasks, labels[leader], rival)
            same = [*(each for each in found.differences if each.task == getattr(line, "task", "")), *found.averages]
            if not same[0].better:
                expected.add(at)
        assert line.inside_noise == expected
        assert line.inside_noise >= {labels.index("a"), labels.index("b")} - best
        assert labels.index("c") not in line.inside_noise


def test_terminal_and_markdown_show_which_differences_are_noise() -> None:
    records = [_by(encoder, spread=spread) for encoder, spread in (("a", 1.5), ("b", 1.55), ("c", 3.0))]
    text = to_markdown(build(records))
    row = next(line for line in text.splitlines() if line.startswith("| Tiny |"))
    assert sorted(entry[1:3] for entry in row.split("|")[3:6]) == ["**", "0.", "≈ "]
    assert "inside the noise" in text
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200, color_system="standard")
    console.print(painted(grid(table) for table in build(records).tables))
    bold = re.search(r"\x1b\[1;32m▸ (0\.\d{3}) ±", out.getvalue())
    assert bold is not None
    assert float(bold[1]) == pytest.approx(max(record.value for record in records), abs=5e-4)


def test_scores_that_cannot_be_paired_are_not_called_noise(score: Score) -> None:
    records = [score(encoder="a", value=0.5), score(encoder="b", value=0.501)]
    (table,) = build(records).tables
    assert not table.rows[0].inside_noise
    assert table.averages[0].intervals == (None, None)


def test_the_interval_of_an_average_is_of_the_weighted_mean_of_resamples() -> None:
    records = [_by("a", spread=1.5, name=name, eval_weight=weight) for name, weight in (("tiny", 1.0), ("tinier", 3.0))]
    kept = [np.array(record.details["bootstrap"]["values"]) for record in records]
    value = (records[0].value + 3 * records[1].value) / 4
    mean = (kept[0] + 3 * kept[1]) / 4
    low, high = value + np.percentile(mean - mean.mean(), (2.5, 97.5))
    (table,) = build(records).tables
    assert table.averages[0].intervals == ((pytest.approx(low), pytest.approx(high)),)

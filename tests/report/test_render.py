"""What a leaderboard looks like: as Markdown, CSV, JSON and on a terminal."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable

import pytest

from featstore.records import ScoreRecord
from featstore.report import build, grid, to_csv, to_json, to_markdown

Score = Callable[..., ScoreRecord]


@pytest.fixture
def records(score: Score) -> list[ScoreRecord]:
    return [
        score(task="noises", title="Noises | all", encoder="logmel", value=0.5, eval_weight=100.0, metric="mAP"),
        score(task="noises", title="Noises | all", encoder="mfcc", value=0.75, eval_weight=100.0, metric="mAP"),
        score(task="words", encoder="logmel", value=0.9, ci_low=0.88, ci_high=0.92, eval_weight=300.0, private=True),
    ]


def test_markdown_shows_scores_intervals_the_best_the_missing_and_how_complete_an_average_is(
    records: list[ScoreRecord],
) -> None:
    assert to_markdown(build(records)).splitlines() == [
        "### Track A, linear probe (strict protocol)",
        "",
        "| Task | Metric | logmel | mfcc |",
        "| --- | --- | ---: | ---: |",
        "| Noises \\| all | mAP | ? 0.500 | **0.750** |",
        "| Words* | accuracy | 0.900 ±0.020 | – |",
        "| Weighted average, public 1 task |  | ? 0.500 | **0.750** |",
        "| Weighted average, 2 tasks |  | 0.800 | 0.750 (1 of 2 tasks) |",
        "",
        "±: half of the 95 % interval, or the deviation over seeds where there is none  ",
        "?: not comparable with the best: `featstore report --compare` has the reason  ",
        "*: a private task, left out of the average over public tasks  ",
    ]


def test_csv_has_every_entry_unrounded_and_no_line_for_what_is_missing(records: list[ScoreRecord]) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(build(records)))))
    scores = [line for line in lines if line["line"] == "score"]
    assert [(line["task"], line["encoder"], float(line["value"]), line["best"]) for line in scores] == [
        ("noises", "logmel", 0.5, "false"),
        ("noises", "mfcc", 0.75, "true"),
        ("words", "logmel", 0.9, "false"),
    ]
    averages = [line for line in lines if line["line"] == "average"]
    assert [(line["task"], line["encoder"], float(line["value"]), line["n_scored"]) for line in averages] == [
        ("public", "logmel", pytest.approx(0.5), "1"),
        ("public", "mfcc", pytest.approx(0.75), "1"),
        ("all", "logmel", pytest.approx(0.8), "2"),
        ("all", "mfcc", pytest.approx(0.75), "1"),
    ]


def test_json_is_the_records(records: list[ScoreRecord]) -> None:
    assert [ScoreRecord.from_json(raw) for raw in json.loads(to_json(records))] == records


def test_no_scores_make_an_empty_report() -> None:
    assert to_markdown(build([])) == ""
    assert json.loads(to_json([])) == []
    assert len(to_csv(build([])).splitlines()) == 1


def test_a_terminal_shows_the_same_words_as_markdown(records: list[ScoreRecord]) -> None:
    from featstore.cli.tables import leaderboard_tables, show

    out = io.StringIO()
    show(leaderboard_tables(build(records)), stream=out)
    text = out.getvalue()
    for words in ("Track A, linear probe", "▸ 0.750", "0.900 ±0.020", "–", "0.750 (1 of 2 tasks)", "*: a private task"):
        assert words in text
    assert "▸ 0.500" not in text


def test_a_wide_leaderboard_loses_nothing_in_a_file(score: Score) -> None:
    from featstore.cli.tables import leaderboard_tables, show

    out = io.StringIO()
    values = {f"an-encoder-with-a-long-name-{index:02d}": 0.001 * index for index in range(40)}
    show(leaderboard_tables(build([score(encoder=name, value=value) for name, value in values.items()])), stream=out)
    for name, value in values.items():
        assert name in out.getvalue()
        assert f"{value:.3f}" in out.getvalue()
    assert all(line == line.rstrip() or len(line) < 3000 for line in out.getvalue().splitlines())


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_on_a_narrow_terminal_no_score_is_broken_and_every_table_has_its_tasks(score: Score, width: int) -> None:
    from rich.console import Console

    from featstore.cli.tables import leaderboard_tables

    values = {f"encoder-{index}": 0.1 + 0.01 * index for index in range(8)}
    board = build([score(encoder=name, value=v, ci_low=v - 0.02, ci_high=v + 0.02) for name, v in values.items()])
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    console.print(leaderboard_tables(board))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(line for line in lines if line.strip().startswith("Words "))
    assert [value for value in values.values() if f"{value:.3f} ±" not in shown] == []
    tables = sum("Task" in line for line in lines)
    assert tables == sum(line.strip().startswith("Words ") for line in lines)
    assert (tables == 1) == (width == 200)


def test_on_a_terminal_the_best_and_only_the_best_are_bold(records: list[ScoreRecord]) -> None:
    from rich.console import Console

    from featstore.cli.tables import leaderboard_tables

    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    console.print(leaderboard_tables(build(records)))
    bold = re.findall(r"\x1b\[1[;\d]*m([^\x1b]*\d\.\d{3}[^\x1b]*)", console.file.getvalue())
    assert [text.strip() for text in bold] == ["▸ 0.750", "▸ 0.750"]


def test_a_title_that_looks_like_markup_is_text_to_a_terminal(score: Score) -> None:
    from featstore.cli.tables import leaderboard_tables, plain_table, show

    out = io.StringIO()
    show(leaderboard_tables(build([score(title="[red]x[/nope]")])), plain_table(["a"], [["[bold]1"]]), stream=out)
    assert "[red]x[/nope]" in out.getvalue()
    assert "[bold]1" in out.getvalue()


def test_a_table_of_errors_marks_the_least_and_has_no_average(score: Score) -> None:
    board = build([score(encoder=name, metric="eer", value=value) for name, value in (("a", 0.2), ("b", 0.1))])
    laid_out = grid(board.tables[0])
    assert [cell.best for cell in laid_out.rows[0].cells] == [False, True]
    assert laid_out.averages == ()
    assert "less is better for eer, which no average includes" in laid_out.notes
    assert "average" not in to_markdown(board).lower().replace("no average", "")

"""What a leaderboard looks like: as Markdown, CSV, JSON and on a terminal."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

from featstore.records import ScoreRecord
from featstore.report import build, grid, published_scores, to_csv, to_json, to_markdown
from scored import score


@pytest.fixture
def records() -> list[ScoreRecord]:
    return [
        score(task="noises", title="Noises | all", encoder="logmel", value=0.5, eval_weight=100.0, metric="mAP"),
        score(task="noises", title="Noises | all", encoder="mfcc", value=0.75, eval_weight=100.0, metric="mAP"),
        score(task="words", encoder="logmel", value=0.9, ci_low=0.88, ci_high=0.92, eval_weight=300.0, private=True),
    ]


def test_markdown_shows_scores_intervals_the_best_the_missing_and_how_complete_an_average_is(
    records: list[ScoreRecord],
) -> None:
    lines = to_markdown(build(records)).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    assert rows == [
        ["Encoder", "Average<br>2 tasks", "noises<br>mAP", "words*<br>accuracy"],
        ["---", "---:", "---:", "---:"],
        ["logmel", "0.800", "? 0.500", "0.900 ±0.020"],
        ["mfcc", "0.750 (1 of 2)", "**▸ 0.750**", "–"],
    ]
    assert [line[0] for line in lines[7:] if line] == ["±", "A", "▸", "?", "*"]


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
    for words in ("Track A", "noises", "▸ 0.750", "0.900 ±0.020", "–", "0.750 (1 of 2)"):
        assert words in text
    assert "▸ 0.500" not in text


def test_a_wide_leaderboard_loses_nothing_in_a_file() -> None:
    from featstore.cli.tables import leaderboard_tables, show

    out = io.StringIO()
    values = {f"an-encoder-with-a-long-name-{index:02d}": 0.001 * index for index in range(40)}
    show(leaderboard_tables(build([score(encoder=name, value=value) for name, value in values.items()])), stream=out)
    for name, value in values.items():
        assert name in out.getvalue()
        assert f"{value:.3f}" in out.getvalue()
    assert all(line == line.rstrip() or len(line) < 3000 for line in out.getvalue().splitlines())


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_on_a_narrow_terminal_no_score_is_broken_and_every_block_has_the_encoders(width: int) -> None:
    from rich.console import Console

    from featstore.cli.tables import leaderboard_tables

    values = {f"task-{index}": 0.1 + 0.01 * index for index in range(8)}
    board = build(
        [score(encoder="encoder", task=t, value=v, ci_low=v - 0.02, ci_high=v + 0.02) for t, v in values.items()]
    )
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width)
    console.print(leaderboard_tables(board))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    shown = " ".join(line for line in lines if line.strip().startswith("encoder "))
    assert [value for value in values.values() if f"{value:.3f} ±" not in shown] == []
    blocks = sum("Encoder" in line for line in lines)
    assert blocks == sum(line.strip().startswith("encoder ") for line in lines)
    assert (blocks == 1) == (width == 200)


def test_on_a_terminal_the_best_and_only_the_best_are_bold(records: list[ScoreRecord]) -> None:
    from rich.console import Console

    from featstore.cli.tables import leaderboard_tables

    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)
    console.print(leaderboard_tables(build(records)))
    bold = re.findall(r"\x1b\[1[;\d]*m([^\x1b]*\d\.\d{3}[^\x1b]*)", console.file.getvalue())
    assert [text.strip() for text in bold] == ["▸ 0.750"]


def test_a_name_that_looks_like_markup_is_text_to_a_terminal() -> None:
    from featstore.cli.tables import leaderboard_tables, plain_table, show

    out = io.StringIO()
    show(leaderboard_tables(build([score(encoder="[red]x[/nope]")])), plain_table(["a"], [["[bold]1"]]), stream=out)
    assert "[red]x[/nope]" in out.getvalue()
    assert "[bold]1" in out.getvalue()


def test_encoders_are_rows_by_their_average_and_published_ones_a_section_of_their_own() -> None:
    records = [
        score(task=task, encoder=encoder, protocol="xares", value=value)
        for task in ("esc50", "mine")
        for encoder, value in (("a", 0.4), ("b", 0.6))
    ]
    own, published = grid(build(records, published=published_scores()).tables[0]).sections
    assert [row.labels for row in own] == [("b",), ("a",)]
    assert [row.labels[0].endswith("(published)") for row in published] == [True] * 4
    assert [cell.text for cell in own[0].cells] == ["0.600", "0.600", "0.600"]


def test_a_file_has_leaderboards_of_80_columns_and_other_tables_unbroken(monkeypatch: pytest.MonkeyPatch) -> None:
    from featstore.cli.tables import leaderboard_tables, plain_table, show

    monkeypatch.delenv("COLUMNS", raising=False)

    board = build([score(task=f"task-{at}", encoder=name) for at in range(12) for name in ("a", "b" * 60)])
    out = io.StringIO()
    show(leaderboard_tables(board), stream=out)
    assert max(map(len, out.getvalue().splitlines())) <= 80
    wide = io.StringIO()
    show(plain_table(["name", *"abc"], [["x" * 60, *("y" * 50 for _ in "abc")]]), stream=wide)
    assert sum("y" in line for line in wide.getvalue().splitlines()) == 1

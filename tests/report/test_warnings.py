"""Warnings under a table: one line for each task and kind, in every form of a report."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from featstore.cli import cli
from featstore.cli.tables import leaderboard_tables
from featstore.records import ScoreRecord
from featstore.report import build, warning_lines, write_score
from featstore.report.page import render_page
from scored import scored

NEAR = "{} of 650 test clips have a near-duplicate in training (cosine 0.98 or more)"


def warned(record: ScoreRecord, **counts: int) -> ScoreRecord:
    result: list[dict[str, Any]] = [
        {"kind": kind, "message": NEAR.format(count), "count": count} for kind, count in counts.items()
    ]
    return replace(record, details={**record.details, "warnings": result})


RECORDS = [
    warned(scored("words", "logmel", 0.8), near_duplicates=3, exact_duplicates=1),
    warned(scored("words", "mfcc", 0.7), near_duplicates=12),
    warned(scored("words", "wav2vec2", 0.9), near_duplicates=5),
    warned(scored("calls", "mfcc", 0.7), near_duplicates=2),
    scored("calls", "logmel", 0.7),
]


def test_there_is_one_line_for_each_task_and_kind_of_the_encoder_that_has_most() -> None:
    lines = warning_lines(RECORDS)
    assert [(each.task, each.kind, each.encoders) for each in lines] == [
        ("calls", "near_duplicates", ("mfcc",)),
        ("words", "near_duplicates", ("mfcc", "wav2vec2", "logmel")),
        ("words", "exact_duplicates", ("logmel",)),
    ]
    assert lines[1].message == NEAR.format(12)


@pytest.mark.parametrize("raw", [None, "text", 3, [3], [{"kind": "x"}], {"kind": "x", "message": "y"}], ids=str)
def test_what_is_no_list_of_warnings_is_passed_over(raw: object) -> None:
    record = scored("words", "logmel", 0.8)
    assert warning_lines([replace(record, details={**record.details, "warnings": raw})]) == ()


def test_every_form_of_a_report_has_the_warnings_and_a_terminal_of_80_columns_cuts_none(tmp_path: Path) -> None:
    for record in RECORDS:
        write_score(record, tmp_path)
    expected = [str(each) for each in warning_lines(RECORDS)]
    printed = io.StringIO()
    Console(file=printed, width=80, force_terminal=True, color_system=None).print(leaderboard_tables(build(RECORDS)))
    assert max(map(len, printed.getvalue().splitlines())) <= 80
    words = " ".join(printed.getvalue().split())
    page = render_page(RECORDS)
    for form in ("table", "markdown"):
        outcome = CliRunner().invoke(cli, ["report", "--results", str(tmp_path), "--format", form])
        assert outcome.exit_code == 0
        output = " ".join(outcome.output.split())
        assert all(each in output for each in expected)
    assert all(each in words and each in page for each in expected)
    outcome = CliRunner().invoke(cli, ["report", "--results", str(tmp_path), "--format", "json"])
    counts = {(each["task"], each["encoder"]): each["details"].get("warnings") for each in json.loads(outcome.output)}
    assert counts["words", "mfcc"][0]["count"] == 12


def test_messages_of_others_are_text_on_a_page() -> None:
    hostile = "<script>window.pwned=1</script>"
    record = scored("words", "logmel", 0.8)
    result = [{"kind": "x", "message": hostile, "count": 1}]
    assert hostile not in render_page([replace(record, details={**record.details, "warnings": result})])

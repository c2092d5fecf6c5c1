"""The demo, small: from nothing to a leaderboard, and a second time for nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from featstore.cli import cli
from featstore.demo import Collection, run_demo
from featstore.report import read_scores

FOLDS = tuple(f"fold{number}" for number in range(1, 6))
SMALL = (
    Collection(
        dataset="demo-instruments",
        clips={"train": 60, "valid": 24, "test": 24},
        shards={"train": 2, "valid": 1, "test": 1},
    ),
    Collection(dataset="demo-scenes", clips=dict.fromkeys(FOLDS, 8), shards=dict.fromkeys(FOLDS, 1)),
)


def test_a_demo_ends_in_scores_above_chance_and_a_second_one_encodes_nothing(tmp_path: Path) -> None:
    first = run_demo(tmp_path, encoders=("logmel",), collections=SMALL, say=lambda _: None)
    assert {(score.task, score.track) for score in first.scores} == {
        (collection.dataset, track) for collection in SMALL for track in "AB"
    }
    assert all(score.value > 0.2 for score in first.scores)
    assert [(table.track, len(table.rows)) for table in first.leaderboard.tables] == [("A", 2), ("B", 2)]
    assert sum(record.shards_done for record in first.extracts) == 9
    page = first.report_path.read_text(encoding="utf-8")
    assert first.report_path == tmp_path / "report.html"
    assert page.count('<figure class="chart"') == 4  # by k and by training clips, of two tasks
    assert page.count('<table class="cm">') == 4
    assert "Embedding spaces" in page

    second = run_demo(tmp_path, encoders=("logmel",), collections=SMALL, say=lambda _: None)
    assert sum(record.shards_done for record in second.extracts) == 0
    assert sum(record.shards_reused for record in second.extracts) == 9
    assert [score.value for score in second.scores] == pytest.approx([score.value for score in first.scores])
    assert [score.key for score in second.scores] == [score.key for score in first.scores]
    assert len(read_scores(first.results_dir)) == len(first.scores)


@pytest.mark.slow
def test_the_last_line_of_the_command_names_the_page_it_wrote(tmp_path: Path) -> None:
    folder = tmp_path / "the demo"
    outcome = CliRunner().invoke(cli, ["demo", "--dir", str(folder)])
    assert outcome.exit_code == 0, outcome.output
    page = Path(outcome.stdout.splitlines()[-1].rpartition(": ")[2])
    assert page == folder / "report.html"
    assert "<h1>The demo</h1>" in page.read_text(encoding="utf-8")
    further = [
        shlex.split(line) for line in outcome.stdout.replace("\\\n", "").splitlines() if line.startswith("  featstore ")
    ]
    assert [words[1] for words in further] == ["inspect", "probe", "explore"]
    for words in further:
        assert CliRunner().invoke(cli, words[1:]).exit_code == 0
    assert "<title>demo-scenes/fold1" in (folder / "map.html").read_text(encoding="utf-8")

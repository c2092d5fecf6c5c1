"""What the page opens with: counts, the result, the problems and the picture; and the layout of its tables."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featstore.records import ScoreRecord
from featstore.report import Leaderboard, build, grid, grids_to_latex, published_scores, to_csv
from featstore.report.page import render_page, styles_of
from featstore.report.page_boards import board_view, sections_of
from featstore.report.page_health import health_by_encoder
from featstore.report.page_picture import MAX_GROUPS, MAX_LANES, Picture, picture_of
from featstore.report.page_summary import opening_tables, problems_of, result_sentence
from scored import a_full_board, scored


def warned(record: ScoreRecord, *kinds: str) -> ScoreRecord:
    warnings = [{"kind": kind, "message": f"{kind} of {record.task}", "count": 1} for kind in kinds]
    return replace(record, details={**record.details, "warnings": warnings})


def with_head(record: ScoreRecord, head: str) -> ScoreRecord:
    return replace(record, settings={**record.settings, "head": head})


def drawn(records: list[ScoreRecord]) -> Picture:
    board = build(records)
    found = picture_of(opening_tables(board.tables), styles=styles_of(board))
    assert found is not None
    return found


def test_three_heads_of_three_encoders_are_three_encoders() -> None:
    records = [
        with_head(scored("one", encoder, 0.5), head) for encoder in "abc" for head in ("linear", "mlp", "logistic")
    ]
    assert "3 encoders on 1 task, 10 scores." in render_page([*records, scored("one", "a", 0.4, track="B")])


def test_an_encoder_has_one_colour_in_every_table_and_a_marker_for_each_of_its_heads() -> None:
    records = [with_head(scored("one", encoder, 0.5), head) for encoder in "ab" for head in ("linear", "mlp")]
    styles = styles_of(build([*records, *(scored("one", encoder, 0.5, track="B") for encoder in "ab")]))
    assert {label: number % 10 for label, number in styles.items()} == {
        "a": 0, "a (head=mlp)": 0, "a (head=linear)": 0, "b": 1, "b (head=mlp)": 1, "b (head=linear)": 1,
    }  # fmt: skip
    assert len(set(styles.values())) == len(styles)


def test_a_page_opens_with_both_tracks_of_strict() -> None:
    records = [
        scored("one", "a", 0.5, track=track, protocol=protocol) for track in "AB" for protocol in ("xares", "strict")
    ]
    of_measure = replace(records[-1], settings={"measure": "clustering"})
    tables = opening_tables(build([*records, of_measure]).tables)
    assert [(table.protocol, table.track, table.measure) for table in tables] == [
        ("strict", "A", ""),
        ("strict", "B", "knn"),
    ]
    assert [table.measure for table in opening_tables(build([of_measure]).tables)] == ["clustering"]
    assert opening_tables(()) == ()


def test_the_result_names_the_best_its_score_and_what_ties_with_it() -> None:
    records = [scored(task, name, value) for task in ("one", "two") for name, value in (("top", 0.5), ("low", 0.3))]
    [table] = build(records).tables
    low, high = table.averages[-1].intervals[1] or (0.0, 0.0)
    said = result_sentence([table])
    assert f"top is best on average over 2 tasks (0.500 ±{(high - low) / 2:.3f})" in said
    assert said.endswith("better than low.")
    near = [scored(task, "near", 0.499) for task in ("one", "two")]
    assert result_sentence(build([*records, *near]).tables).endswith("different from near.")
    many = [scored("one", f"n{at}", 0.5) for at in range(6)]
    assert "n0, n1, n2 and 3 more are best on one" in result_sentence(build(many).tables)
    partly = result_sentence(build([scored("one", "a", 0.5), scored("two", "b", 0.5)]).tables)
    assert "0.5" not in partly
    alone = result_sentence(build([scored("one", "only", 0.5)]).tables)
    assert "only scores 0.500 ±0.030 on one" in alone


def test_the_banner_has_the_problems_by_heading_and_names_each_task_once() -> None:
    records = [
        warned(scored("one", "a", 0.5, track="A"), "near_duplicates", "not_converged"),
        warned(scored("one", "a", 0.5, track="B"), "near_duplicates"),
        warned(scored("two", "a", 0.5), "exact_duplicates", "skipped_clips"),
        warned(scored("three", "a", 0.5), "classes_not_in_training"),
    ]
    board = build(records)
    found = problems_of(board.tables)
    assert [(each.tasks, len(each.lines)) for each in found] == [
        (("one", "two"), 2),
        (("one",), 1),
        (("three",), 1),
    ]
    html = render_page(records)
    assert html.index('class="banner"') < html.index('class="panels"')
    [board_of_a, _] = [board_view(table, styles={}) for table in board.tables]
    assert board_of_a.warnings == ("two: skipped_clips of two (a)",)  # what the banner has is not repeated
    assert 'class="banner"' not in render_page([scored("one", "a", 0.5)])


def test_the_picture_has_every_score_interval_and_tie_on_one_axis() -> None:
    records = a_full_board(["one", "two", "three"], ["a", "b", "c"], classes=(2,))
    near = [each for each in records if each.encoder == "c"]
    records += [
        scored(each.task, "d", each.value - 0.0005, track=each.track, eval_weight=each.eval_weight) for each in near
    ]
    board = build(records)
    assert all(row.inside_noise for table in board.tables for row in table.rows)
    picture = drawn(records)
    assert [panel.title for panel in picture.panels] == [grid(table).title for table in board.tables]
    (top, at_top), (bottom, at_bottom) = picture.ticks[-1], picture.ticks[0]
    per_pixel = (top - bottom) / (at_bottom - at_top)
    for panel, table in zip(picture.panels, board.tables, strict=True):
        [band] = panel.bands
        assert [group.name for group in band.groups] == ["Average", *(row.task for row in table.rows)]
        places = [
            at for at, _ in sorted(enumerate(table.columns), key=lambda each: -table.averages[-1].values[each[0]])
        ]
        for group, row in zip(band.groups[1:], table.rows, strict=True):
            for lane, at in zip(group.lanes, places, strict=True):
                cell = row.cells[at]
                assert cell is not None
                for place, value in ((lane.y, cell.value), (lane.low, cell.low), (lane.high, cell.high)):
                    assert bottom + (at_bottom - place) * per_pixel == pytest.approx(value, abs=0.001)
                assert lane.tied == (at in row.best | row.inside_noise)
    svg = render_page(records).partition('<div class="panels">')[2].partition("</svg>")[0] + "</svg>"
    root = ET.fromstring(svg[svg.index("<svg") :])
    shaded = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") == "tied"]
    assert len(shaded) == sum(lane.tied for group in picture.panels[0].bands[0].groups for lane in group.lanes)


def test_metrics_of_other_scales_are_not_in_the_picture_but_named() -> None:
    records = [scored("words", "a", 0.5), scored("age", "a", 7.0, metric="mae")]
    picture = drawn(records)
    assert picture.other_scales == ("age",)
    assert [group.name for group in picture.panels[0].bands[0].groups] == ["words"]
    board = build(records[1:])
    assert picture_of(board.tables, styles={}) is None
    assert "age" in render_page(records[1:])


def test_many_tasks_continue_in_further_bands_and_many_encoders_are_cut() -> None:
    records = [scored(f"task {at:02d}", name, 0.5, curves=False) for at in range(27) for name in "ab"]
    [panel] = drawn(records).panels
    assert [len(band.groups) for band in panel.bands] == [14, 14]
    assert max(len(band.groups) for band in panel.bands) <= MAX_GROUPS
    assert panel.bands[1].top > panel.bands[0].top + 170
    crowd = drawn([scored("one", f"n{at}", 0.5, curves=False) for at in range(MAX_LANES + 4)])
    assert (len(crowd.encoders), crowd.n_not_drawn) == (MAX_LANES, 4)
    assert len(crowd.panels[0].bands[0].groups[0].lanes) == MAX_LANES
    heads = [with_head(scored("one", f"n{at}", 0.5), head) for at in range(MAX_LANES) for head in ("linear", "mlp")]
    of_b = drawn([*heads, scored("one", "n0", 0.5, track="B")]).panels[1]
    assert [len(group.lanes) for group in of_b.bands[0].groups] == [1]


def test_labels_of_the_picture_stay_inside_it() -> None:
    records = [
        scored(f"{at} a-task-with-a-long-name", name, 0.5, curves=False) for at in range(9) for name in "abcdefgh"
    ]
    [panel] = drawn(records).panels
    assert panel.slanted
    first = panel.bands[0].groups[1]  # the first long name: Average is short
    assert first.left + first.width / 2 >= 0.7 * 6.5 * len(first.name)
    assert panel.bands[0].right <= panel.width


def test_a_matrix_has_the_shorter_side_as_columns_and_a_resolution_for_each_task() -> None:
    wide, tall = (a_full_board(tasks, ["a", "b", "c"], classes=(2,)) for tasks in (["one", "two"], "uvwxyz"))
    for records, corner in ((wide, "Encoder"), (tall, "Task")):
        table = build(records).tables[0]
        matrix = board_view(table, styles={}).matrix
        assert (matrix.corner, matrix.by_task) == (corner, corner == "Task")
        assert matrix.resolution == tuple(f"{row.resolution.smallest_difference:.3f}" for row in table.rows)
        values = {
            ((side.name, head.name) if matrix.by_task else (head.name, side.name)): entry.value
            for side, entries in matrix.rows
            for head, entry in zip(matrix.heads, entries, strict=True)
        }
        assert values == {
            (row.task, column.label): cell.value
            for row in table.rows
            for column, cell in zip(table.columns, row.cells, strict=True)
            if cell
        }


def test_published_encoders_are_apart_as_rows_and_marked_as_columns() -> None:
    names = ("esc50", "gtzan_genre", "maestro", "ravdess", "vocalsound", "fsd50k", "clotho", "cremad")
    records = [scored(name, encoder, 0.3, protocol="xares") for name in names for encoder in "ab"]
    table = build(records, published=published_scores()).tables[0]
    matrix = board_view(table, styles={}).matrix
    assert matrix.by_task
    assert [head.published for head in matrix.heads] == [False, False, True, True, True, True]
    assert render_page(records, published=published_scores()).count('class="n published"') == 4


def test_each_table_is_a_csv_and_a_latex_file_of_its_own() -> None:
    for table in build(a_full_board(["one", "two"], ["a", "b"], classes=(2,))).tables:
        view = board_view(table, styles={})
        csv, latex = (base64.b64decode(uri.partition("base64,")[2]).decode() for uri in (view.csv, view.latex))
        assert csv == to_csv(Leaderboard(tables=(table,)))
        assert latex == grids_to_latex([grid(table)])


def test_sections_are_protocols_and_open_are_the_two_tracks_or_the_first_measure() -> None:
    records = [
        scored("one", "a", 0.5, track=track, protocol=protocol) for track in "AB" for protocol in ("strict", "xares")
    ]
    records.append(replace(records[2], settings={"measure": "clustering"}))
    records.append(replace(records[2], settings={"measure": "maeb-clustering"}, protocol="maeb"))
    sections = sections_of(build(records).tables, styles={})
    assert [(each.protocol, [board.is_main for board in each.boards]) for each in sections] == [
        ("strict", [True, True, False]),
        ("maeb", [False]),
        ("xares", [True, True]),
    ]
    html = render_page(records)
    assert html.count('<details class="part board"') == 6
    opened = re.findall(r'<details class="part board" id="board-(\w+-[AB])[^"]*" open>', html)
    assert opened == ["strict-A", "strict-B", "maeb-B", "xares-A", "xares-B"]


def a_space(encoder: str, dataset: str, split: str, **fields: Any) -> Any:
    space = {
        "not_finite": 0, "dim": 4, "norm_median": 1.0, "effective_rank": 2.0, "anisotropy": 0.5,
        "dead_dimensions": (), "n_duplicate_dimensions": 0, "hubness": None, "separability": None,
    } | fields.pop("space", {})  # fmt: skip
    plain = {"fingerprint": "aa", "windows": 10, "overlap": None} | fields
    return SimpleNamespace(encoder=encoder, dataset=dataset, split=split, space=SimpleNamespace(**space), **plain)


def test_health_is_by_encoder_with_sums_and_medians_over_splits() -> None:
    ranks = [2.0, 5.0, 3.0]
    sets = [
        a_space("a", "words", f"fold{at}", windows=10 + at, overlap=SimpleNamespace(clips=at),
                space={"effective_rank": rank, "dead_dimensions": (1,) * at})
        for at, rank in enumerate(ranks)
    ]  # fmt: skip
    found = health_by_encoder([*sets, a_space("a", "noise", "test"), a_space("b", "words", "test", windows=7)])
    assert [(each.label, [of.dataset for of in each.datasets], len(each.splits)) for each in found] == [
        ("a", ["words", "noise"], 4),
        ("b", ["words"], 1),
    ]
    words = found[0].datasets[0]
    assert (words.n_splits, words.windows, words.duplicates, words.dead) == (3, 33, 3, 2)
    assert words.effective_rank == np.median(ranks)
    assert (words.hubness, found[1].datasets[0].duplicates) == (None, None)
    two = health_by_encoder([a_space("a", "words", "test", fingerprint=name) for name in ("aa", "bb")])
    assert [each.label for each in two] == ["a@aa", "a@bb"]

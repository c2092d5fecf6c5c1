"""The page as text: what is on it, that it asks for nothing, and that no label gets out of its place."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import featstore
from cached import cached
from featstore.cli import cli
from featstore.diagnostics import examine_health
from featstore.errors import UsageError
from featstore.report import build, published_scores, write_score
from featstore.report.page import render_page
from featstore.report.page_boards import board_view
from featstore.report.page_charts import Chart, Curve, Point, chart_svg, matrix_png
from featstore.report.page_tasks import recipes_of, task_views
from featstore.report.templating import as_data
from scored import HOSTILE, a_full_board, hostile_records, scored

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Every tag closed in order; tags with their attributes; text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data.strip())


def test_labels_keys_and_titles_are_text_whatever_they_hold():
    page = Page(render_page(hostile_records(), title=HOSTILE[0]))
    ordinary = Page(render_page([scored("a", "b", 0.5, classes=["x", "y"], track="B")]))
    allowed = {tag for tag, _ in ordinary.tags} | {"i", "code", "ul", "li"}
    assert {tag for tag, _ in page.tags} - allowed == set()
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    for text in HOSTILE[:5]:
        assert any(text in shown for shown in page.texts)
    assert sum("{{ 7*7 }}{% raw %}" in shown for shown in page.texts) > 20  # not reckoned out anywhere


def test_control_characters_are_escaped_in_pages_and_their_data():
    controls = "".join(map(chr, (0, 7, 8, 11, 13, 27, 127, 133, 159)))
    html = render_page([scored(f"a{controls}", f"b{controls}", 0.5)], title=f"c{controls}")
    assert not set(controls) & set(html)
    assert "a\\x00\\x07" in html
    assert json.loads(as_data({"x": controls})) == {"x": controls}
    assert not set(controls) & set(as_data({"x": controls}))


def test_the_page_forbids_and_needs_no_request():
    page = Page(render_page(hostile_records()))
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            link = attributes.get(name)
            inside = ("#", "data:image/png;base64,", "data:text/csv;", "data:application/x-tex;")
            assert link is None or link.startswith(inside) or link == "data:,"
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    linked = {a["href"][1:] for _, a in page.tags if (a.get("href") or "").startswith("#")}
    assert linked <= set(ids)


def test_every_score_interval_average_and_mark_of_the_leaderboard_is_on_the_page():
    records = a_full_board(["one", "two", "three"], ["a", "b", "c"], classes=(3,))
    records = [replace(each, private=each.task == "three") for each in records]
    page = Page(render_page(records))
    text = " ".join(" ".join(page.texts).split())
    for table in build(records).tables:
        for row in table.rows:
            assert all(f"{cell.value:.3f} ±{cell.half_width:.3f}" in text for cell in row.cells if cell)
        for average in table.averages:
            assert all(f"{value:.3f}" in text for value in average.values)
        assert [average.over for average in table.averages] == ["public", "all"]
    assert "Average, 2 public tasks" in text
    assert "Average, 3 tasks" in text
    assert "▸ " in text


def test_what_is_inside_the_noise_is_marked_on_the_page():
    records = [scored("one", encoder, value) for encoder, value in (("a", 0.5), ("b", 0.501), ("c", 0.3))]
    text = " ".join(" ".join(Page(render_page(records)).texts).split())
    assert "▸ 0.501 ±0.030" in text
    assert "≈ 0.500 ±0.030" in text
    assert "≈ 0.300" not in text


def test_published_scores_are_set_apart_and_never_the_best():
    records = [scored("esc50", name, 0.3, protocol="xares", metric="accuracy") for name in ("mine", "yours")]
    html = render_page(records, published=published_scores())
    ranking, matrix = re.findall(r'<tbody class="published">(.*?)</tbody>', html, flags=re.DOTALL)
    assert "X-ARES 0.1.3" in ranking
    for apart in (ranking, matrix):
        assert "dasheng (published)" in apart
        assert "best" not in apart
    assert (
        "published"
        not in render_page([scored("esc50", "mine", 0.3)], published=published_scores())
        .partition("<body>")[2]
        .partition("<script>")[0]
    )


def test_a_recipe_that_stores_have_under_two_names_stands_on_the_page_under_each():
    records = [
        replace(each, fingerprint="3f9c2a71", details={"recipe": {"encoder": each.encoder}})
        for each in (scored("words", "old", 0.4), scored("words", "new", 0.5))
    ]
    views = recipes_of(records)
    assert [(view.name, dict(view.lines)) for view in views] == [
        (f"{name}@3f9c2a71", {"encoder": name}) for name in ("new", "old")
    ]
    [block] = task_views(build(records), records, styles={})[0].blocks
    assert [score.recipe for score in block.scores] == [view.anchor for view in views]


def test_a_task_shows_what_its_scores_keep_and_no_more():
    records = [
        scored("words", encoder, value, track="B", classes=["yes", "no"])
        for encoder, value in (("enc.layer0", 0.5), ("enc.layer3", 0.7), ("enc.layer12", 0.6), ("other", 0.4))
    ]
    records += [scored("words", f"enc.layer{at}.std", 0.1 + at / 100, track="B") for at in (0, 3)]
    [view] = task_views(build(records), records, styles={})
    [block] = view.blocks
    assert [chart.kind for chart in block.charts] == ["k", "shots", "layer"]
    curves = {each.label: [(point.x, point.y) for point in each.points] for each in block.charts[2].curves}
    assert curves == {"enc": [(0, 0.5), (3, 0.7), (12, 0.6)], "enc (std)": [(0, 0.1), (3, 0.13)]}
    assert block.charts[2].xs == (0, 3, 12)
    assert block.charts[2].rows == (("enc", (0.5, 0.7, 0.6)), ("enc (std)", (0.1, 0.13, None)))
    assert [score.label for score in block.scores][:4] == ["enc.layer3", "enc.layer12", "enc.layer0", "other"]
    assert [row.support for row in block.classes.rows] == records[1].details["support"]
    assert block.confusions[0].counts == tuple(map(tuple, records[1].details["confusion"]))
    bare = [replace(each, details={}) for each in records]
    [view] = task_views(build(bare), bare, styles={})
    [block] = view.blocks
    assert [chart.kind for chart in block.charts] == ["layer"]
    assert (block.classes.rows, block.confusions) == ((), ())
    assert [view.lines for view in recipes_of(bare)] == [()] * 6


def test_matrices_are_tables_pictures_or_pairs_by_their_size():
    for classes, expected in ((3, "table"), (40, "picture"), (200, "pairs")):
        html = render_page(a_full_board(["t"], ["a"], classes=(classes,)))
        found = {
            "table": '<table class="cm">' in html,
            "picture": '<img class="cm"' in html,
            "pairs": '<table class="pairs">' in html,
        }
        assert found == {"table": classes == 3, "picture": classes == 40, "pairs": classes > 3}, expected
    assert "the 60 hardest" in html
    [single] = a_full_board(["t"], ["a"], classes=(3,))[:1]
    several = replace(single, details={name: it for name, it in single.details.items() if name != "confusion"})
    assert "<figure" not in render_page([several]).partition("Classes <span")[2].partition("</section>")[0]
    assert '<figure class="confusion">' in render_page([single])


def test_a_chart_is_well_formed_takes_the_pages_colours_and_says_what_it_shows():
    points = tuple(Point(x=x, y=0.1 * x) for x in (1, 2, 4))
    curves = tuple(Curve(label="<a>", colour=colour, points=points) for colour in (0, 11))
    chart = Chart(kind="k", title="T &", x_label="k", curves=curves, n_not_drawn=0)
    svg = chart_svg(chart, number=7, task="<t>", metric="mAP")
    root = ET.fromstring(svg)
    names = {"s": "http://www.w3.org/2000/svg"}
    assert root.find("s:title", names).text == "T &: <t>, mAP"
    assert root.find("s:desc", names).text.startswith("mAP by k. <a> from 0.100 at 1 to 0.400 at 4; ")
    assert root.attrib["aria-labelledby"] == "chart7-title chart7-text"
    points = [each.find("s:title", names).text for each in root.iter("{http://www.w3.org/2000/svg}g")
              if each.attrib.get("class") == "point"]  # fmt: skip
    assert points == ["<a>, 1: 0.10", "<a>, 2: 0.20", "<a>, 4: 0.40"] * 2
    assert {"1", "2", "4", "k", "score"} <= {each.text for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "var(--c0)" in svg
    assert "var(--c1)" in svg
    assert "#fed" not in svg
    assert "<style" not in svg


def test_a_picture_of_a_matrix_has_a_pixel_a_cell():
    import base64
    import io

    from PIL import Image

    uri = matrix_png(np.array([[1.0, 0.0], [0.5, 0.5]]))
    image = np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert image.shape == (2, 2, 4)
    assert image[..., 3].tolist() == [[255, 0], [127, 127]]


def test_a_ranking_puts_the_incomplete_last_and_its_bars_on_one_axis():
    records = a_full_board(["one", "two"], ["a", "b"], classes=(2,))
    records += [scored("one", "picky", 0.99)]
    table = build(records).tables[0]
    view = board_view(table, styles={})
    assert [row.label for row in view.ranking] == ["b", "a", "picky"]
    low, high = view.axis
    for row, column in zip(view.ranking[:2], (1, 0), strict=True):
        ends = table.averages[-1].intervals[column]
        assert ends is not None
        bar = row.averages[-1].bar
        assert bar.left == pytest.approx(100 * (ends[0] - low) / (high - low), abs=0.1)
        assert bar.width == pytest.approx(100 * (ends[1] - ends[0]) / (high - low), abs=0.2)
    assert view.ranking[-1].averages[-1].plus_minus == "1 of 2 tasks"


def test_health_is_a_table_of_the_page(tmp_path: Path):
    found = examine_health(featstore.open(cached(tmp_path).url).feature_sets())
    text = " ".join(Page(render_page([scored("words", "mel", 0.5)], health=found)).texts)
    for words in ("Embedding spaces", "Anisotropy", "Near-duplicates", "of 8"):
        assert words in text


def test_one_scores_make_one_page():
    at = datetime(2026, 1, 2, tzinfo=UTC)
    records = a_full_board(["one", "two"], ["a"], classes=(2, 30))
    assert render_page(records, made_at=at) == render_page(records, made_at=at)


def test_the_command_writes_a_page_and_says_what_does_not_go_together(tmp_path: Path):
    for record in a_full_board(["one"], ["a", "b"], classes=(2,)):
        write_score(record, tmp_path / "results")
    run = ["report", "--results", str(tmp_path / "results")]
    out = tmp_path / "r.html"
    outcome = CliRunner().invoke(cli, [*run, "--format", "html", "--title", "Mine & yours", "--out", str(out)])
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert re.fullmatch(rf"{re.escape(str(out))}: \d+\.\d kB\n", outcome.stderr)
    assert "<h1>Mine &amp; yours</h1>" in out.read_text(encoding="utf-8")
    assert Page(CliRunner().invoke(cli, [*run, "--format", "html"]).output).texts
    for wrong in (["--store", "x.zarr"], ["--format", "html", "--compare", "a", "b"]):
        failed = CliRunner().invoke(cli, [*run, *wrong])
        assert failed.exit_code != 0


def test_no_score_is_a_page_that_is_reported():
    assert "No scores." in render_page([])


def test_without_what_it_takes_a_page_is_refused_in_one_line(monkeypatch, tmp_path: Path):
    for missing in ("jinja2", "matplotlib"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            for module in [each for each in sys.modules if each.startswith("featstore.report.page")]:
                without.delitem(sys.modules, module)
            with pytest.raises(UsageError, match=rf"{missing}.*pip install 'featstore\[report\]'"):
                featstore.report([scored("one", "a", 0.5)], tmp_path / "page.html")


def test_a_chart_as_a_table_has_each_score_below_its_own_place() -> None:
    layers = {"a": {3: 0.75, 12: 0.5}, "b": {0: 0.25, 12: 0.625}}
    records = [
        scored("words", f"{name}.layer{layer}", value, curves=False)
        for name, of in layers.items()
        for layer, value in of.items()
    ]
    [table] = re.findall(r"As a table</summary>.*?</table>", render_page(records), flags=re.DOTALL)
    rows = [re.findall(r">([^<>]+)</t[hd]>", row) for row in table.split("<tr>")[1:]]
    assert rows == [
        ["layer of the encoder", "0", "3", "12"],
        ["a", "–", "0.750", "0.500"],
        ["b", "0.250", "–", "0.625"],
    ]

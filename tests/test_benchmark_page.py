"""The page of benchmarks keeps what was not measured again."""

from __future__ import annotations

from benchmarks.run import HEAD, document, with_tables


def test_sections_that_were_measured_take_the_place_of_those_before_and_the_others_stay_in_order() -> None:
    first = document("", {"tracks": "## tracks\n\nold", "cli": "## cli\n\nstays"})
    assert first == f"{HEAD}\n\n## cli\n\nstays\n\n## tracks\n\nold\n"
    second = document(first, {"tracks": "## tracks\n\nnew\n\n### Table", "store": "## store\n\nadded"})
    assert second == f"{HEAD}\n\n## cli\n\nstays\n\n## store\n\nadded\n\n## tracks\n\nnew\n\n### Table\n"
    assert document(second, {}) == second


def test_tables_on_a_page_of_their_own_are_replaced_between_its_marks() -> None:
    page = "# Real\n\ntext\n\n<!-- measured -->\nold\n<!-- /measured -->\n\nmore\n"
    once = with_tables(page, "## real\n\nabout\n\n### Table\n")
    assert once == "# Real\n\ntext\n\n<!-- measured -->\n\nabout\n\n### Table\n\n<!-- /measured -->\n\nmore\n"
    assert with_tables(once, "## real\n\nabout\n\n### Table\n") == once
    assert with_tables("no marks", "## real\n\nx") == "no marks"

"""The page of benchmarks keeps what was not measured again."""

from __future__ import annotations

from benchmarks.run import HEAD, document


def test_sections_that_were_measured_take_the_place_of_those_before_and_the_others_stay_in_order() -> None:
    first = document("", {"tracks": "## tracks\n\nold", "cli": "## cli\n\nstays"})
    assert first == f"{HEAD}\n\n## cli\n\nstays\n\n## tracks\n\nold\n"
    second = document(first, {"tracks": "## tracks\n\nnew\n\n### Table", "store": "## store\n\nadded"})
    assert second == f"{HEAD}\n\n## cli\n\nstays\n\n## store\n\nadded\n\n## tracks\n\nnew\n\n### Table\n"
    assert document(second, {}) == second

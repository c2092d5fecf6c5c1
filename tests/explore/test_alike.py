"""Names that are close to one that is not there."""

from __future__ import annotations

import pytest

from featstore.explore.query import closest_names


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("clip-00070x", ["clip-000700", "clip-000701", "clip-000702"]),
        ("clpi-000123", ["clip-000123"]),
        ("clip-1199", ["clip-001199"]),
        ("clip-00150", ["clip-000150", "clip-001500", "clip-001501"]),
        ("001199", ["clip-001199"]),
        ("CLIP-00119", ["clip-001190", "clip-001191", "clip-001192"]),
        ("bark.wav", []),
    ],
)
def test_a_few_names_are_reported_the_closest_alone(wanted, found):
    assert closest_names(wanted, [f"clip-{at:06d}" for at in range(2000)], most=3) == found


def test_nothing_is_close_to_nothing():
    assert closest_names("", ["a"], most=3) == closest_names("a", [], most=3) == []
    assert closest_names("ab", ["ab-1", "ab-1", "zz"], most=3) == ["ab-1"]
    assert closest_names("1" * 5000, ["1" * 5001], most=3) == ["1" * 5001]

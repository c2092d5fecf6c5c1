"""Names that come closest, against the textbook's table for each name alone."""

from __future__ import annotations

import random

import pytest

from featstore.explore import query as alike
from featstore.explore.query import closest_names, edits


def naive(a: str, b: str) -> int:
    above = list(range(len(b) + 1))
    for number, letter in enumerate(a, start=1):
        row = [number]
        for place, other in enumerate(b):
            row.append(min(row[-1] + 1, above[place + 1] + 1, above[place] + (letter != other)))
        above = row
    return above[-1]


@pytest.mark.parametrize("block", [3, 1 << 14])
@pytest.mark.parametrize("begins", ["", "same/"])
@pytest.mark.parametrize("wanted", ["ab-ca", "", "\ud800é\U0001f600", "c" * 12])
def test_edits_are_those_of_the_textbook(wanted, begins, block, monkeypatch):
    monkeypatch.setattr(alike, "NAMES_PER_BLOCK", block)
    rng = random.Random(0)
    names = [begins + "".join(rng.choices("abc-é\ud800\U0001f600", k=rng.randint(0, 9))) for _ in range(40)]
    assert edits(begins + wanted, names).tolist() == [naive(begins + wanted, name) for name in names]


def test_of_very_long_names_the_beginnings_are_compared():
    assert edits("x" + "a" * 300, ["a" * 300, "x" + "b" * 300]).tolist() == [1, 63]


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

"""Brace patterns against the braceexpand package, and patterns that stand for more than memory holds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st

from featstore.errors import ManifestError
from featstore.shard_patterns import MAX_ALTERNATIVES, PatternError, expand_braces
from featstore.tasks import load_manifest
from handmade import task_toml

ABSURD = (
    "train-{0..999999999}.tar",
    "train-{0..99999}{0..99999}.tar",
    "train-{{0..99999}{0..99999},x}.tar",
    "{a,b}" * 100 + ".tar",
    "{" * 3000 + "}" * 3000 + ".tar",
    "{a," * 200 + "b" + "}" * 200 + ".tar",
    "{0..9}" * 3000 + ".tar",
    "{" + "{1..99999}," * 1000 + "x}.tar",
    "{" + "0" * 5000 + "..9}.tar" + "{0..99999999}",
)

pieces = st.sampled_from(["{", "}", "{", ",", "a", "b", "1..3", "09..11", "-2..2", "9..1..3", "e..a", "{x,y}", "-"])


@given(st.lists(pieces, max_size=10).map("".join))
def test_a_pattern_represents_what_braceexpand_makes_of_it(pattern: str) -> None:
    try:
        expected = list(braceexpand(pattern))
    except ValueError:
        expected = None
    try:
        assert expand_braces(pattern) == expected
    except PatternError:
        # braceexpand only counts braces: it takes `}{` for balanced
        assert expected is None or closes_what_is_not_open(pattern)


def closes_what_is_not_open(pattern: str) -> bool:
    depth = 0
    for sign in pattern:
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return True
    return False


@pytest.mark.parametrize("pattern", ABSURD, ids=lambda pattern: pattern[:30])
def test_a_pattern_of_more_names_than_the_limit_is_rejected_in_bounded_memory(pattern: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PatternError):
            expand_braces(pattern)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_as_many_names_as_the_limit_are_made() -> None:
    assert len(expand_braces(f"{{1..{MAX_ALTERNATIVES}}}")) == MAX_ALTERNATIVES
    with pytest.raises(PatternError):
        expand_braces(f"{{0..{MAX_ALTERNATIVES}}}")
    assert expand_braces("{0..0}" * 3000) == ["0" * 3000]


@pytest.mark.parametrize("pattern", ABSURD, ids=lambda pattern: pattern[:30])
@pytest.mark.parametrize("table", ["splits", "folds"])
def test_a_manifest_with_such_a_pattern_is_one_problem(table: str, pattern: str, tmp_path: Path) -> None:
    path = task_toml(tmp_path, splits={"train": pattern, "valid": "valid*.tar", "test": "{a,b}*.tar"})
    if table == "folds":
        path.write_text(path.read_text().replace("[splits]", "[folds]"))
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    [problem] = caught.value.problems
    assert problem.startswith(f"{table}.train: ")


def test_rules_between_patterns_of_many_names_and_globs_are_bounded(tmp_path: Path) -> None:
    many = {f"f{number}": f"{{0..9999}}-{number}*.tar" for number in range(4)}
    path = task_toml(tmp_path, splits=many)
    path.write_text(path.read_text().replace("[splits]", "[folds]"))
    assert len(load_manifest(path).patterns) == 4

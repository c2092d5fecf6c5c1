"""Patterns of shards, and when a shard counts as encoded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featstore.errors import ShardError
from featstore.extract.shards import find_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train-0.tar", "train-1.tar", "train-2.tar", "test-0.tar", "en/train-0.tar", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train*.tar", ["train-0.tar", "train-1.tar", "train-2.tar"]),
        ("train-{1..2}.tar", ["train-1.tar", "train-2.tar"]),
        ("{test,train}-0.tar", ["test-0.tar", "train-0.tar"]),
        ("{train*,train-0}.tar", ["train-0.tar", "train-1.tar", "train-2.tar"]),
        ("*/train-?.tar", ["en/train-0.tar"]),
        ("**/train-0.tar", ["en/train-0.tar", "train-0.tar"]),
    ],
)
def test_globs_and_braces_find_shards_in_order_of_name_each_once(pattern: str, names: list[str], folder: Path) -> None:
    assert [shard.name for shard in find_shards(folder, pattern)] == names


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("valid*.tar", "'valid*.tar'"),
        ("train-{0..4}.tar", "'train-3.tar' of 'train-{0..4}.tar'"),
        ("", "''"),
        ("/etc/*", "'/etc/*'"),
        ("a**b.tar", "'a**b.tar'"),
        ("{a,b", "'{a,b'"),
        ("train-{0..999999999}.tar", "'train-{0..999999999}.tar'"),
    ],
)
def test_a_pattern_without_shards_is_reported(pattern: str, part: str, folder: Path) -> None:
    with pytest.raises(ShardError) as caught:
        find_shards(folder, pattern)
    assert part in str(caught.value)


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere.*--data"):
        find_shards(tmp_path / "nowhere", "*.tar")


def test_a_name_that_is_no_utf8_is_reported(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad-\xff.tar")).touch()
    with pytest.raises(ShardError, match="UTF-8"):
        find_shards(tmp_path, "*.tar")

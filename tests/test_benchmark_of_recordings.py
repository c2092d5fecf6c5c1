"""The benchmark of recorded audio: which clips it takes, and when its targets are met."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import real


@dataclass(frozen=True)
class Recording:
    path: Path
    label: str


def recordings(**counts: int) -> list[Recording]:
    return [Recording(Path(f"{label}/{at}.ogg"), label) for label, n in counts.items() for at in range(n)]


def test_languages_with_enough_clips_have_the_same_number_in_each_split() -> None:
    rows = real._languages(recordings(da=48, fr=60, tn=47), 1.0)
    assert Counter((label, split) for _, label, split in rows) == {
        (label, split): n for label in ("da", "fr") for split, n in real.PARTS.items()
    }
    assert len({path for path, _, _ in rows}) == len(rows)
    assert rows == real._languages(recordings(da=48, fr=60, tn=47)[::-1], 1.0)


def test_every_sound_is_in_one_split_and_every_kind_in_all() -> None:
    rows = real._sounds(recordings(bass=9, drum=20))
    assert len({path for path, _, _ in rows}) == len(rows) == 29
    assert {(label, split) for _, label, split in rows} == {
        (label, split) for label in ("bass", "drum") for split in real.PARTS
    }


@pytest.mark.parametrize(("seconds", "verdict"), [(1.0, "met"), (1.01, "missed")])
def test_the_targets_are_of_the_sums_over_encoders_and_tasks(seconds: float, verdict: str) -> None:
    stages = ("encode", "probe", "neighbours")
    theirs: Any = {
        name: {task: dict.fromkeys((*stages, "megabytes"), real.FASTER) for task in real.TASKS}
        for name in real.ENCODERS
    }
    ours: Any = {
        name: {
            "check": 1.0,
            **{
                task: dict.fromkeys((*stages, *(f"xares {each}" for each in stages), "forward", "megabytes"), seconds)
                for task in real.TASKS
            },
        }
        for name in real.ENCODERS
    }
    grid = real._whole(theirs, ours, {"pack": 1.0, "report": 1.0}, clips="", seeds=5, spent=1.0)
    judged = [row for row in grid.rows if row[4]]
    assert [row[5] for row in judged] == [verdict, verdict]
    assert f"{3 * 2 * 3 * real.FASTER:.0f}" in judged[0][1]

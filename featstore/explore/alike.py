"""Which names come closest to one that is mistyped. Pure NumPy: all names at once, a letter of each at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featstore.report.leaderboard import natural

__all__ = ["closest_names", "edits"]

MAX_NAMES = 1_000_000
MAX_RANKED = 10_000
MAX_LETTERS = 64
"""Of what is left of a name behind the letters that all begin with: the work is names by letters by letters."""

NAMES_PER_BLOCK = 1 << 14
"""So many columns of counters stay in a core's cache."""


def closest_names(wanted: str, names: Sequence[str], *, most: int) -> list[str]:
    """Those names, `most` of them, that take the fewest edits: at most a third of the wanted one's letters, or one.

    Of equals one whose numbers are the same comes first (007 is 07), then those that go on longest as it does. Where
    none is that near, names that contain it. Of more than a million names the first are looked at.

    >>> closest_names("yes_07", ["yes_007", "yes_070", "yes_700", "no_07", "up"], most=2)
    ['yes_007', 'yes_070']
    >>> closest_names("00012", ["scenes-fold1-00012", "scenes-fold1-00120"], most=2)
    ['scenes-fold1-00012']
    """
    known = list(dict.fromkeys(names[:MAX_NAMES]))
    if not known or not wanted:
        return []
    found = edits(wanted, known)
    if found.min() <= max(1, len(wanted) // 3):
        nearest = [known[at] for at in np.flatnonzero(found == found.min())[:MAX_RANKED]]
        number = natural(wanted)
        rank = {name: (natural(name) != number, -_shared(wanted, name), len(name), name) for name in nearest}
        return sorted(nearest, key=rank.__getitem__)[:most]
    lowered = wanted.casefold()
    return sorted((name for name in known if lowered in name.casefold()), key=lambda name: (len(name), name))[:most]


def edits(wanted: str, names: Sequence[str]) -> NDArray[np.uint8]:
    """Letters to put in, take out or replace to make each name of the one that is wanted, uint8 (names,).

    Levenshtein's distance by the table of Wagner and Fischer (1974), whose cells are columns over all names. Letters
    that all begin with change nothing and are left out; of what follows, the first 64 count.
    """
    shared = min(_shared(wanted, min(names)), _shared(wanted, max(names)))
    asked = _letters([wanted[shared:]])[:, 0]
    out = np.empty(len(names), np.uint8)
    for start in range(0, len(names), NAMES_PER_BLOCK):
        block = [name[shared:] for name in names[start : start + NAMES_PER_BLOCK]]
        lengths = np.minimum([len(name) for name in block], MAX_LETTERS)
        letters = _letters(block)
        row = np.repeat(np.arange(len(letters) + 1, dtype=np.uint8)[:, None], len(block), axis=1)
        for number, letter in enumerate(asked, start=1):
            above, row = row, np.empty_like(row)
            row[0] = number
            replaced = above[:-1] + (letters != letter)
            for place in range(len(letters)):
                row[place + 1] = np.minimum(np.minimum(row[place], above[place + 1]) + 1, replaced[place])
        out[start : start + len(block)] = row[lengths, np.arange(len(block))]
    return out


def _shared(one: str, other: str) -> int:
    """Letters that both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _letters(names: Sequence[str]) -> NDArray[np.uint32]:
    """Letters by place, uint32 (letters of the longest, names); zero behind the end of a name."""
    width = min(MAX_LETTERS, max(map(len, names)))
    if not width:
        return np.zeros((0, len(names)), np.uint32)
    # half a surrogate pair, too, is a letter: NumPy would refuse it
    packed = b"".join(name[:width].encode("utf-32-le", "surrogatepass").ljust(4 * width, b"\0") for name in names)
    return np.ascontiguousarray(np.frombuffer(packed, "<u4").reshape(len(names), width).T)

"""Lists of verification trials: pairs of clips that are the same or different."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.records import sha256_of
from featstore.tasks.rules import shown

__all__ = ["Trials", "read_trials"]

SAME: Mapping[str, bool] = {"same": True, "different": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Pairs of clips.

    Attributes
    ----------
    first, second : int64 (trials,)
        Indices into the names of the clips.
    same : bool (trials,)
    sha256 : str
        Hash of the list, whatever the format of the file.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    sha256: str


def read_trials(path: Path, names: Sequence[str], *, task: str) -> Trials:
    """Read a CSV file with a pair in each row: two keys, and ``same`` or ``different`` (or 1 or 0).

    The first row is skipped if it is a header: if its third field is none of these words.

    Parameters
    ----------
    path : Path
    names : sequence of str
        ``set/key`` of every test clip. A trial gives the key, or this name where two sets have the same key.

    Raises
    ------
    DataError
        The file cannot be read, or a row is not a trial of two different test clips; one line, with the row's number.
    """
    place = f"task {task}: {path}"
    index = _index(names)
    first, second, same = [], [], []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for row in rows:
                if not row or (rows.line_num == 1 and len(row) == 3 and row[2].strip().lower() not in SAME):
                    continue
                where = f"{place}, line {rows.line_num}"
                if len(row) != 3:
                    raise DataError(f"{where}: a trial has two keys and same or different, got {len(row)} fields")
                one, other, answer = (each.strip() for each in row)
                if answer.lower() not in SAME:
                    raise DataError(f"{where}: the third field is same or different, got {shown(answer)}")
                for key in (one, other):
                    if index.get(key) is None:
                        what = "is the key of several test clips: write set/key" if key in index else "is no test clip"
                        raise DataError(f"{where}: {shown(key)} {what}")
                if index[one] == index[other]:
                    raise DataError(f"{where}: {shown(one)} is compared with itself")
                first.append(index[one])
                second.append(index[other])
                same.append(SAME[answer.lower()])
    except OSError as error:
        raise DataError(f"{place} cannot be read: {(error.strerror or type(error).__name__).lower()}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text") from error
    except csv.Error as error:
        raise DataError(f"{place}, line {rows.line_num}: {error}") from error
    if len(set(same)) < 2:
        raise DataError(f"{place} must have both same and different pairs, got {len(same)} trials of one kind at most")
    listed = [[names[a], names[b], s] for a, b, s in zip(first, second, same, strict=True)]  # type: ignore[index]
    return Trials(
        first=np.array(first, np.int64),
        second=np.array(second, np.int64),
        same=np.array(same, bool),
        sha256=sha256_of(listed),
    )


def _index(names: Sequence[str]) -> dict[str, int | None]:
    """Clip of each name and of each key; None for a key of several clips."""
    keys = [name.partition("/")[2] for name in names]
    repeated = {key for key, n in Counter(keys).items() if n > 1}
    return {
        **{key: None if key in repeated else at for at, key in enumerate(keys)},
        **{name: at for at, name in enumerate(names)},
    }

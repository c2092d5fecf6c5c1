"""Reads CSV and JSON lines, and reports files that cannot be read in one line."""

from __future__ import annotations

import contextlib
import csv
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from featstore.errors import DataError, UsageError

__all__ = ["json_rows", "readable", "table_rows"]


_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, csv.Error)
_LIBRARIES = ("pyarrow", "datasets", "safetensors", "safetensors_rust", "huggingface_hub")


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Replace the error of a library that cannot read a file by a DataError of one line."""
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:
        if not isinstance(error, _UNREADABLE) and type(error).__module__.partition(".")[0] not in _LIBRARIES:
            raise
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"{name} cannot be read: {' '.join(reason.split())[:200] or type(error).__name__}") from error


def table_rows(path: Path, *, allow_nan: bool = False) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a CSV or JSON lines file, with their line numbers. Raises DataError.

    With `allow_nan`, a value of a JSON line may be NaN or an infinity.
    """
    with readable(str(path)), path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            yield from json_rows(file, path, allow_nan=allow_nan)
            return
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}, line {reader.line_num}: it has more or fewer columns than the first line")
            yield reader.line_num, row


def json_rows(lines: Iterable[str], path: Path, *, allow_nan: bool = False) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of JSON lines, with their line numbers. Raises DataError, which names the line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=None if allow_nan else _no_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: it is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: it must be a JSON object")
        yield number, row


def _no_constant(text: str) -> None:
    """Reject NaN and Infinity, which Python parses but JSON does not allow."""
    raise ValueError(f"{text} is not a JSON number")

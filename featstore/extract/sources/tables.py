"""Clips of a folder with one sub-folder per label, and of a CSV or JSON lines file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from featstore.errors import DataError, UsageError
from featstore.extract.sources.clips import Clip, file_clip, is_audio, key_of, scalar_text
from featstore.extract.tar_reader import AUDIO_EXTENSIONS
from featstore.tasks.draft import is_split_name

__all__ = ["json_rows", "plan_folder", "plan_table", "split_column_of"]

SPLIT_COLUMNS = ("split", "fold")


def split_column_of(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The column that names the splits, where the user names none: ``split``, else ``fold``, if all rows have it."""
    columns: set[str] = set(SPLIT_COLUMNS)
    for row in rows:
        columns &= {name for name in columns if row.get(name) not in (None, "")}
        if not columns:
            return None
    return next((name for name in SPLIT_COLUMNS if name in columns), None)


def plan_folder(audio_dir: Path, *, split: str | None) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """List the audio files of a folder in path order; the label of each is its sub-folder.

    If the sub-folders are all called like splits (``train``, ``test``) and have sub-folders themselves, they are the
    splits, unless `split` is given.

    Returns
    -------
    clips, notes

    Raises
    ------
    UsageError
        The folder does not exist or has no audio, or a file is in no sub-folder.
    """
    found = sorted(
        (path.relative_to(audio_dir) for path in audio_dir.rglob("*") if is_audio(path)), key=lambda path: path.parts
    )
    if not found:
        raise UsageError(f"{audio_dir} has no audio file ({', '.join(AUDIO_EXTENSIONS)})")
    loose = [path for path in found if len(path.parts) == 1]
    if loose:
        raise UsageError(
            f"{len(loose)} files are in no sub-folder, the first is {loose[0]}: a label is the name of a sub-folder, "
            "or is given by --csv or --jsonl"
        )
    outer = list(dict.fromkeys(path.parts[0] for path in found))
    if split is None and len(outer) > 1 and all(map(is_split_name, outer)) and all(len(p.parts) > 2 for p in found):
        clips = [
            file_clip(audio_dir / path, key=key_of(path.as_posix()), split=path.parts[0], meta={"label": path.parts[1]})
            for path in found
        ]
        return tuple(clips), (f"splits: the sub-folders {', '.join(outer)}",)
    clips = [
        file_clip(audio_dir / path, key=key_of(path.as_posix()), split=split or "all", meta={"label": path.parts[0]})
        for path in found
    ]
    return tuple(clips), ()


def plan_table(
    path: Path,
    *,
    audio_dir: Path | None,
    path_field: str,
    key_field: str | None,
    split_field: str | None,
    split: str | None,
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """List the clips of a table in order; all columns but those of the path and the split become the clip's JSON.

    A path may be absolute; other paths start from `audio_dir` and stay inside it, or start from the table's folder.

    Returns
    -------
    clips, notes

    Raises
    ------
    UsageError
        A line has no path or no split, or its path leaves the folder or is not one of audio. Names the line.
    DataError
        The table cannot be read.
    """
    rows = list(_rows(path))
    if not rows:
        raise UsageError(f"{path} has no rows")
    notes: tuple[str, ...] = ()
    if split_field is None and split is None:
        split_field = split_column_of(row for _, row in rows)
        notes = () if split_field is None else (f"splits: from the column {split_field!r}",)
    clips = []
    for number, row in rows:
        where = f"{path}, line {number}"
        if path_field not in row:
            raise UsageError(f"{where}: no column {path_field!r}: name one of {', '.join(row)} with --path")
        named = scalar_text(row, path_field, where=where)
        file, relative = _located(named, audio_dir=audio_dir, table=path, where=where)
        if file.suffix[1:].lower() not in AUDIO_EXTENSIONS:
            raise UsageError(
                f"{where}: {named} is not an audio file: it must end in one of {', '.join(AUDIO_EXTENSIONS)}"
            )
        reason = scalar_text(row, key_field, where=where) if key_field else relative
        clips.append(
            file_clip(
                file,
                key=key_of(reason, keep_suffix=bool(key_field)),
                split=scalar_text(row, split_field, where=where) if split_field else split or "all",
                meta={name: value for name, value in row.items() if name not in (path_field, split_field)},
            )
        )
    return tuple(clips), notes


def _located(text: str, *, audio_dir: Path | None, table: Path, where: str) -> tuple[Path, str]:
    """The file that a table names, and its path in the folder that relative paths start from."""
    path = Path(text)
    folder = table.parent if audio_dir is None else audio_dir
    if path.is_absolute():
        start = os.path.abspath(folder)  # noqa: PTH100 - links are kept
        return path, (path.relative_to(start) if path.is_relative_to(start) else path).as_posix()
    if audio_dir is not None and ".." in path.parts:
        raise UsageError(f"{where}: {text!r} must be a path inside the audio folder, or an absolute path")
    return folder / path, path.as_posix()


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a table, with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
                yield from json_rows(file, path)
                return
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: it has more or fewer columns than the first line")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read: {reason}") from error


def json_rows(lines: Iterable[str], path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of JSON lines, with their line numbers. Raises DataError, which names the line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: it is not valid JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: it must be a JSON object")
        yield number, row


def _no_constant(text: str) -> None:
    """Reject NaN and Infinity, which Python parses but JSON does not allow."""
    raise ValueError(f"{text} is not a JSON number")

"""Clips of a folder with one sub-folder per label, and of a CSV or JSON lines file."""

from __future__ import annotations

import os
from pathlib import Path

from featstore.errors import UsageError
from featstore.extract.sources.clips import Clip, ClipColumns, file_clip, is_audio, key_of, scalar_text
from featstore.extract.table_rows import table_rows
from featstore.extract.tar_reader import AUDIO_EXTENSIONS
from featstore.tasks.draft import is_split_name

__all__ = ["plan_folder", "plan_table"]


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
    path: Path, columns: ClipColumns, *, audio_dir: Path | None, path_field: str
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
    rows = list(table_rows(path))
    if not rows:
        raise UsageError(f"{path} has no rows")
    columns, notes = columns.completed((row for _, row in rows), "splits: from the column {!r}")
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
        fields = columns.of(row, where=where, key=key_of(relative))
        fields["meta"].pop(path_field, None)
        clips.append(file_clip(file, **fields))
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

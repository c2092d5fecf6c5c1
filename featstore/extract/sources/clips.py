"""A clip to pack: its key, split and JSON, and how its audio is read."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from featstore.errors import UnusableClip, UsageError
from featstore.extract.tar_reader import AUDIO_EXTENSIONS, MAX_MEMBER_BYTES

__all__ = [
    "Clip",
    "ClipColumns",
    "Content",
    "checked_clips",
    "file_clip",
    "is_audio",
    "key_of",
    "read_file",
    "scalar_text",
    "unusable",
]

Content = tuple[str, bytes]
"""Extension of an audio file without the dot, and its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip to pack.

    Attributes
    ----------
    key : str
        Its key in the shard.
    name : str
        How messages name it: the path of its file, or its place in a table.
    split : str
    meta : mapping
        Becomes its JSON.
    read : callable
        Returns the audio. Raises UnusableClip or OSError if there is none.
    files : tuple of Path
        Files that the audio is read from.
    place : tuple
        Which part of the files: a row, or the start and end of a segment.
    """

    key: str
    name: str
    split: str
    meta: Mapping[str, Any]
    read: Callable[[], Content]
    files: tuple[Path, ...] = ()
    place: tuple[Any, ...] = ()


def file_clip(path: Path, *, key: str, split: str, meta: Mapping[str, Any], name: str | None = None) -> Clip:
    """A clip whose audio is one complete file, which is stored unchanged."""
    return Clip(key=key, name=name or str(path), split=split, meta=meta, read=partial(read_file, path), files=(path,))


def unusable(reason: str) -> Callable[[], Content]:
    """The `read` of a clip whose audio cannot be read, for a reason that is known before."""

    def read() -> NoReturn:
        raise UnusableClip(reason)

    return read


def read_file(path: Path) -> Content:
    """Read a regular file that fits a shard. Raises UnusableClip for other files, such as a pipe."""
    try:
        status = path.stat()
    except ValueError as error:
        raise UnusableClip(f"its name is not a valid file name: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnusableClip("it is not a regular file")
    if status.st_size > MAX_MEMBER_BYTES:
        raise UnusableClip(f"it has {status.st_size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return path.suffix[1:].lower(), path.read_bytes()


def is_audio(path: Path) -> bool:
    """Whether the file has an audio extension. Special files and dangling links are listed when packed."""
    return path.suffix[1:].lower() in AUDIO_EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def key_of(text: str, *, keep_suffix: bool = False) -> str:
    """Make a key from a path or a table cell: WebDataset ends a key at its first dot, and treats / as a folder.

    Characters that a file name cannot have (controls, unpaired surrogates) are replaced too.

    >>> key_of("dog/bark 1.take.wav"), key_of("a.b", keep_suffix=True)
    ('dog_bark 1_take', 'a_b')
    """
    stem = text if keep_suffix else text.rpartition(".")[0]
    return re.sub(r"[./\\\x00-\x1f\x7f\ud800-\udfff]+", "_", stem).strip("_") or "_"


def scalar_text(row: Mapping[str, Any], field: str, *, where: str) -> str:
    """The text of a column that every row must have. Raises UsageError, which lists the columns."""
    value = row.get(field)
    if value is None or isinstance(value, dict | list) or not str(value).strip():
        raise UsageError(f"{where}: no value in column {field!r}; the columns are {', '.join(map(str, row))}")
    return str(value).strip()


SPLIT_COLUMNS = ("split", "fold")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipColumns:
    """The columns of keys and of splits, if the user named any.

    Attributes
    ----------
    key, splits : str or None
    split : str or None
        Split of all clips.
    """

    key: str | None = None
    splits: str | None = None
    split: str | None = None

    def completed(self, rows: Iterable[Mapping[str, Any]], note: str) -> tuple[ClipColumns, tuple[str, ...]]:
        """Find the column of splits where the user names none: ``split``, else ``fold``, if all rows have it.

        Returns the columns, and `note` with the name of the found column in it.
        """
        columns = set(SPLIT_COLUMNS) if self.splits is None and self.split is None else set()
        for row in rows:
            if not columns:
                break
            columns &= {name for name in columns if row.get(name) not in (None, "")}
        found = next((name for name in SPLIT_COLUMNS if name in columns), None)
        return (self, ()) if found is None else (replace(self, splits=found), (note.format(found),))

    def of(self, row: Mapping[str, Any], *, where: str, key: str, split: str | None = None) -> dict[str, Any]:
        """Return ``key``, ``split`` and ``meta`` of a clip; `key` and `split` are the defaults."""
        return {
            "key": key_of(scalar_text(row, self.key, where=where), keep_suffix=True) if self.key else key,
            "split": scalar_text(row, self.splits, where=where) if self.splits else self.split or split or "all",
            "meta": {name: value for name, value in row.items() if name != self.splits},
        }


def checked_clips(clips: Iterable[Clip]) -> tuple[Clip, ...]:
    """Return the clips. Raises UsageError if the name of a split is invalid, or two clips of a split have one key."""
    found: Sequence[Clip] = tuple(clips)
    first: dict[tuple[str, str], Clip] = {}
    for clip in found:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", clip.split):
            raise UsageError(f"{clip.split!r} is not a valid split name: use letters, digits, - and _")
        other = first.setdefault((clip.split, clip.key), clip)
        if other is not clip:
            raise UsageError(f"{other.name} and {clip.name} have the same key {clip.key!r}: rename one")
    return tuple(found)

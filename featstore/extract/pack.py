"""Packs audio files into shards, from a folder with one sub-folder per label, a CSV or JSON lines.

Planning lists every clip with its key, split and JSON, without reading audio. Packing streams: one clip is in memory,
and a shard has a temporary name until it is complete.
"""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from featstore.clip_json import parse_clip_json
from featstore.errors import DataError, UnusableClip, UsageError
from featstore.extract.audio import decode
from featstore.extract.tar_reader import AUDIO_EXTENSIONS, MAX_MEMBER_BYTES, write_shard
from featstore.records import SkippedClip

__all__ = ["Clip", "PackRecord", "Table", "pack_clips", "plan_folder", "plan_table"]

CHECK_SAMPLE_RATE_HZ = 16_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip to pack. ``meta`` becomes its JSON."""

    key: str
    path: Path
    split: str
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Column names of a CSV or JSON lines file.

    Attributes
    ----------
    path_field : str
        Column with the path of the audio file, relative to the audio folder.
    key_field, split_field : str or None
        Columns with the clip's key (default: its path) and its split (default: ``split`` for all clips).
    """

    path: Path
    path_field: str
    key_field: str | None
    split_field: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRecord:
    """Result of packing."""

    folder: str
    shards: Mapping[str, int]
    clips: Mapping[str, int]
    skipped: tuple[SkippedClip, ...]

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


def plan_folder(audio_dir: Path, *, split: str) -> tuple[Clip, ...]:
    """List the audio files of a folder in path order; the label of each is its sub-folder.

    Raises
    ------
    UsageError
        The folder does not exist or has no audio, or a file is in no sub-folder.
    """
    if not audio_dir.is_dir():
        raise UsageError(f"there is no folder {audio_dir}")
    found = sorted(
        (path.relative_to(audio_dir) for path in audio_dir.rglob("*") if _is_audio(path)), key=lambda path: path.parts
    )
    if not found:
        raise UsageError(f"{audio_dir} has no audio file ({', '.join(AUDIO_EXTENSIONS)})")
    loose = [path for path in found if len(path.parts) == 1]
    if loose:
        raise UsageError(
            f"{len(loose)} files are in no sub-folder, the first is {loose[0]}: a label is the name of a sub-folder, "
            "or is given by --csv or --jsonl"
        )
    clips = [
        Clip(key=_key_of(path.as_posix()), path=audio_dir / path, split=split, meta={"label": path.parts[0]})
        for path in found
    ]
    return _checked(clips)


def plan_table(audio_dir: Path, table: Table, *, split: str) -> tuple[Clip, ...]:
    """List the clips of a table in order; all other columns become the clip's JSON.

    Raises
    ------
    UsageError
        A line has no path or no split, or its path leaves the folder; or two lines have one key. Names the line.
    DataError
        The table cannot be read.
    """
    clips = []
    for number, row in _rows(table.path):
        where = f"{table.path}, line {number}"
        path = _relative(_text(row, table.path_field, where=where), where=where)
        reason = _text(row, table.key_field, where=where) if table.key_field else path
        clips.append(
            Clip(
                key=_key_of(reason, keep_suffix=bool(table.key_field)),
                path=audio_dir / path,
                split=_text(row, table.split_field, where=where) if table.split_field else split,
                meta={name: value for name, value in row.items() if name not in (table.path_field, table.split_field)},
            )
        )
    if not clips:
        raise UsageError(f"{table.path} has no rows")
    return _checked(clips)


def pack_clips(
    clips: Sequence[Clip], folder: Path, *, clips_per_shard: int, on_clip: Callable[[], None] = lambda: None
) -> PackRecord:
    """Write clips, split by split, as ``SPLIT-000000.tar`` and so on. The bytes depend on the clips only.

    Files that cannot be decoded, or whose JSON `extract` would reject, are skipped and listed. Nothing is overwritten.

    Raises
    ------
    UsageError
        A shard of one of these splits exists already.
    """
    splits = tuple(dict.fromkeys(clip.split for clip in clips))
    there = sorted(path.name for split in splits for path in folder.glob(f"{split}-*.tar"))
    if there:
        raise UsageError(f"{folder} has {there[0]} already: nothing is overwritten, choose another folder or split")
    skipped: list[SkippedClip] = []
    shards: dict[str, int] = {}
    packed: dict[str, int] = {}
    for split in splits:
        n_clips = 0

        def counted(samples: Iterator[dict[str, bytes | str]]) -> Iterator[dict[str, bytes | str]]:
            nonlocal n_clips
            for sample in samples:
                n_clips += 1
                on_clip()
                yield sample

        samples = counted(_samples([clip for clip in clips if clip.split == split], skipped))
        number = 0
        for first in samples:
            write_shard(folder / f"{split}-{number:06d}.tar", chain([first], islice(samples, clips_per_shard - 1)))
            number += 1
        shards[split], packed[split] = number, n_clips
    return PackRecord(folder=str(folder), shards=shards, clips=packed, skipped=tuple(skipped))


def _samples(clips: Sequence[Clip], skipped: list[SkippedClip]) -> Iterator[dict[str, bytes | str]]:
    for clip in clips:
        try:
            meta = _json_of(clip.meta)
            data = _content(clip.path)
            decode(data, sample_rate_hz=CHECK_SAMPLE_RATE_HZ, max_seconds=float("inf"))
        except (OSError, UnusableClip) as error:
            reason = (error.strerror or "it cannot be read").lower() if isinstance(error, OSError) else str(error)
            skipped.append(SkippedClip(shard="", key=str(clip.path), reason=reason))
            continue
        yield {"__key__": clip.key, clip.path.suffix[1:].lower(): data, "json": meta}


def _json_of(meta: Mapping[str, Any]) -> bytes:
    """The JSON of a clip. Raises UnusableClip if `extract` would reject it."""
    try:
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        parse_clip_json(text)
        return text.encode()
    except (ValueError, RecursionError) as error:
        raise UnusableClip(f"its labels are not valid JSON: {' '.join(str(error).split())[:120]}") from error


def _content(path: Path) -> bytes:
    """Content of a regular file that fits a shard. Raises UnusableClip for other files, such as a pipe."""
    try:
        status = path.stat()
    except ValueError as error:
        raise UnusableClip(f"its name is not a valid file name: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnusableClip("it is not a regular file")
    if status.st_size > MAX_MEMBER_BYTES:
        raise UnusableClip(f"it has {status.st_size:,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return path.read_bytes()


def _is_audio(path: Path) -> bool:
    """Whether the file has an audio extension. Special files and dangling links are listed when packed."""
    return path.suffix[1:].lower() in AUDIO_EXTENSIONS and not path.name.startswith(".") and not path.is_dir()


def _key_of(text: str, *, keep_suffix: bool = False) -> str:
    """Make a key from a path or a table cell: WebDataset ends a key at its first dot, and treats / as a folder.

    Characters that a file name cannot have (controls, unpaired surrogates) are replaced too.

    >>> _key_of("dog/bark 1.take.wav"), _key_of("a.b", keep_suffix=True)
    ('dog_bark 1_take', 'a_b')
    """
    stem = text if keep_suffix else text.rpartition(".")[0]
    return re.sub(r"[./\\\x00-\x1f\x7f\ud800-\udfff]+", "_", stem).strip("_") or "_"


def _checked(clips: Sequence[Clip]) -> tuple[Clip, ...]:
    first: dict[tuple[str, str], Clip] = {}
    for clip in clips:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", clip.split):
            raise UsageError(f"{clip.split!r} is not a valid split name: use letters, digits, - and _")
        if clip.path.suffix[1:].lower() not in AUDIO_EXTENSIONS:
            raise UsageError(f"{clip.path} is not an audio file: it must end in one of {', '.join(AUDIO_EXTENSIONS)}")
        other = first.setdefault((clip.split, clip.key), clip)
        if other is not clip:
            raise UsageError(f"{other.path} and {clip.path} have the same key {clip.key!r}: rename one")
    return tuple(clips)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a table, with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
                yield from _json_lines(file, path)
                return
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}, line {reader.line_num}: it has more or fewer columns than the first line")
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read: {reason}") from error


def _json_lines(file: Iterator[str] | Any, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, start=1):
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


def _text(row: Mapping[str, Any], field: str, *, where: str) -> str:
    value = row.get(field)
    if value is None or isinstance(value, dict | list) or not str(value).strip():
        raise UsageError(f"{where}: no value in column {field!r}; the columns are {', '.join(map(str, row))}")
    return str(value).strip()


def _relative(text: str, *, where: str) -> str:
    path = Path(text)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{where}: {text!r} must be a path inside the audio folder")
    return path.as_posix()

"""Clips of a Hugging Face data set: parquet files, a folder of `save_to_disk`, or a name on the hub.

Rows are read as Arrow tables and audio is not decoded. The first pass reads all columns but the audio, the second the
audio of a few rows at a time: memory does not depend on the number of clips, only on the pages of a compressed parquet
file, each of which is decompressed at once. A data set of the hub is downloaded by `datasets` into its own cache, whose
files are memory-mapped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from featstore.errors import DataError, UnusableClip, UsageError, missing_extra
from featstore.extract.sources.clips import Clip, ClipColumns, Content, key_of, read_file
from featstore.extract.tar_reader import AUDIO_EXTENSIONS, MAX_MEMBER_BYTES
from featstore.files import expanded
from featstore.formatting import one_line
from featstore.tasks.draft import split_name_in

__all__ = ["plan_hugging_face"]

_ROWS_PER_BATCH = 8
_EVENT_TIMES = ({"onset", "offset"}, {"start", "end"}, {"begin", "end"})


class _Rows(Protocol):
    """Rows of one file or data set: ``features`` of `datasets`, and the ``files`` that hold them."""

    features: dict[str, Any]
    files: tuple[Path, ...]
    name: str

    def metas(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]: ...

    def value(self, row: int, column: str) -> Any: ...


def plan_hugging_face(
    named: str, columns: ClipColumns, *, audio_field: str | None
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """List the clips of a data set; all columns but the audio become the clip's JSON, a ClassLabel as its name.

    Parameters
    ----------
    named : str
        A parquet file, a folder of parquet files, a folder that `save_to_disk` wrote, or a name on the hub.
    columns : ClipColumns
        By default keys are split and row, and splits are those of the data set, or of a column ``split`` or ``fold``.
    audio_field : str, optional
        Column of the audio. Default: the column of type Audio, or of ``{bytes, path}``.

    Returns
    -------
    clips, notes

    Raises
    ------
    UsageError
        There is no such file, no column of audio, several, or an optional library is missing.
    DataError
        The data set cannot be read.
    """
    parts = _opened(named)
    notes: list[str] = []
    names = list(dict.fromkeys(name for name, _ in parts if name))
    if len(names) > 1 and columns.split is None and columns.splits is None:
        notes.append(f"splits: those of the data set, {', '.join(names)}")
    planned: list[tuple[str | None, _Rows, int, str, dict[str, Any]]] = []
    for own_split, rows in parts:
        column = _audio_column(rows, audio_field)
        others = [name for name, feature in rows.features.items() if name != column and _is_plain(feature)]
        dropped = [name for name in rows.features if name != column and name not in others]
        if dropped:
            notes.append(f"not kept: {', '.join(dropped)} (not text, numbers, lists or objects)")
        try:
            for number, row in enumerate(rows.metas(others)):
                meta = {name: _plain(row[name], rows.features[name]) for name in others}
                planned.append((own_split, rows, number, column, meta))
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise DataError(f"{rows.name} cannot be read: {one_line(error, most=200)}") from error
    if not planned:
        raise UsageError(f"{named} has no rows")
    if len(names) < 2:
        columns, of_splits = columns.completed((meta for *_, meta in planned), "splits: from the column {!r}")
        notes += of_splits
    counts: dict[str, int] = {}
    clips = []
    for own_split, rows, number, column, meta in planned:
        where = f"{rows.name}, row {number}"
        fields = columns.of(meta, where=where, key="", split=own_split)
        prefix = own_split or fields["split"]
        counts[prefix] = counts.get(prefix, -1) + 1
        fields["key"] = fields["key"] or f"{key_of(prefix, keep_suffix=True)}_{counts[prefix]:07d}"
        clips.append(
            Clip(
                **fields,
                name=where,
                read=partial(_audio, rows, number, column),
                files=rows.files,
                place=(number, column),
            )
        )
    return tuple(clips), tuple(dict.fromkeys(notes))


# --- where the rows are -----------------------------------------------------------------------------------------------


def _opened(named: str) -> list[tuple[str | None, _Rows]]:
    """The splits of a data set, each with its name, or None where it has none."""
    path = expanded(named)
    try:
        import datasets
        import pyarrow.parquet  # noqa: F401 - its absence is reported here
    except ImportError as error:
        raise missing_extra("--hf", error, "datasets") from error
    try:
        if path.is_file():
            return [(None, _ParquetRows(path))]
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _splits_of(datasets.load_from_disk(str(path)), named)
        if path.is_dir() and (files := sorted(path.rglob("*.parquet"))):
            return [(_split_of_file(file.relative_to(path)), _ParquetRows(file)) for file in files]
        if not path.is_dir() and (path.suffix or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", named)):
            raise UsageError(f"there is no file or folder {named}")
        name, _, config = named.partition(":")
        return _splits_of(datasets.load_dataset(name, config or None), named)
    except (UsageError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{named} cannot be read as a data set: {one_line(error, most=200, typed=True)}") from error


def _splits_of(found: Any, named: str) -> list[tuple[str | None, _Rows]]:
    if isinstance(found, Mapping):
        return [(str(name), _DatasetRows(each, f"{named}, {name}")) for name, each in found.items()]
    return [(None, _DatasetRows(found, named))]


def _split_of_file(path: Path) -> str | None:
    """The split that a file's name or its folder names, as on the hub: ``data/train-00000-of-00002.parquet``.

    >>> _split_of_file(Path("data/train-00000-of-00002.parquet")), _split_of_file(Path("en/dev/0000.parquet"))
    ('train', 'dev')
    >>> _split_of_file(Path("fold1-00000-of-00001.parquet")), _split_of_file(Path("clips.parquet"))
    ('fold1', None)
    """
    numbered = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", path.stem)
    if numbered:
        return key_of(numbered[1], keep_suffix=True)
    return next((name for part in reversed(path.with_suffix("").parts) if (name := split_name_in(part))), None)


class _ParquetRows:
    """A parquet file. Audio is read forward in small batches; a row before the last one starts its row group again."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet
        from datasets import Features

        self.name = str(path)
        self.files: tuple[Path, ...] = (path,)
        # with a memory map only the batch is in memory; without it pyarrow reads complete row groups ahead
        self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        self.features: dict[str, Any] = dict(Features.from_arrow_schema(self._file.schema_arrow))
        self._first_rows = [0]
        for group in range(self._file.num_row_groups):
            self._first_rows.append(self._first_rows[-1] + self._file.metadata.row_group(group).num_rows)
        self._forward: Iterator[tuple[int, Any]] = iter(())
        self._next, self._column = 0, ""

    def metas(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not columns:
            yield from ({} for _ in range(self._file.metadata.num_rows))
            return
        for batch in self._file.iter_batches(batch_size=1024, columns=list(columns)):
            yield from batch.to_pylist()

    def value(self, row: int, column: str) -> Any:
        group = max(at for at, first in enumerate(self._first_rows[:-1]) if first <= row)
        if column != self._column or not self._next <= row or self._first_rows[group] > self._next:
            self._forward, self._column = self._values(group, column), column
        for number, value in self._forward:
            self._next = number + 1
            if number == row:
                return value.as_py()
        raise DataError(f"{self.name} has no row {row}")

    def _values(self, group: int, column: str) -> Iterator[tuple[int, Any]]:
        groups = list(range(group, self._file.num_row_groups))
        number = self._first_rows[group]
        for batch in self._file.iter_batches(batch_size=_ROWS_PER_BATCH, row_groups=groups, columns=[column]):
            for value in batch.column(0):
                yield number, value
                number += 1


class _DatasetRows:
    """A `datasets.Dataset`, memory-mapped."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.name = name
        self.features: dict[str, Any] = dict(dataset.features)
        self.files = tuple(Path(each["filename"]) for each in dataset.cache_files)
        self._dataset = dataset.with_format("arrow")

    def metas(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not columns:
            yield from ({} for _ in range(len(self._dataset)))
            return
        for table in self._dataset.select_columns(list(columns)).iter(1024):
            yield from table.to_pylist()

    def value(self, row: int, column: str) -> Any:
        return self._dataset[row : row + 1].column(column)[0].as_py()


# --- audio ------------------------------------------------------------------------------------------------------------


def _audio_column(rows: _Rows, asked: str | None) -> str:
    if asked is not None:
        if asked not in rows.features:
            raise UsageError(f"{rows.name} has no column {asked!r}; the columns are {', '.join(rows.features)}")
        return asked
    found = [name for name, feature in rows.features.items() if _is_audio(feature)]
    if len(found) != 1:
        problem = f"{len(found)} columns of audio ({', '.join(found)}): name one" if found else "no column of audio"
        raise UsageError(f"{rows.name} has {problem} with --path; the columns are {', '.join(rows.features)}")
    return found[0]


def _is_audio(feature: Any) -> bool:
    from datasets import Audio

    return isinstance(feature, Audio) or (isinstance(feature, Mapping) and set(feature) == {"bytes", "path"})


def _audio(rows: _Rows, row: int, column: str) -> Content:
    """The audio of a row, as it is stored. Raises UnusableClip if there is none."""
    try:
        value = rows.value(row, column)
    except ValueError as error:
        raise UnusableClip(f"its row cannot be read: {one_line(error, most=200)}") from error
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    if isinstance(data, str):
        data, path = None, data
    if data is None:
        if not path or "://" in path or "::" in path:
            raise UnusableClip("its row has no audio" if not path else f"its row has no bytes, and names {path}")
        return read_file(rows.files[0].parent / path if rows.files else Path(path))
    if not isinstance(data, bytes):
        raise UnusableClip(f"its column {column!r} has no audio, but {type(data).__name__}")
    if len(data) > MAX_MEMBER_BYTES:
        raise UnusableClip(f"it has {len(data):,} bytes, more than {MAX_MEMBER_BYTES:,}")
    return _extension(data, str(path or "")), data


_MAGIC = ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mp3"), (b".snd", "au"), (b"caff", "caf"), (b"riff", "w64"))


def _extension(data: bytes, path: str) -> str:
    """The format of audio, by its first bytes, else by the name that it had.

    >>> _extension(b"fLaC...", "a.wav"), _extension(b"?", "a.mp3")
    ('flac', 'mp3')
    """
    found = next((extension for magic, extension in _MAGIC if data.startswith(magic)), "")
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        found = "wav"
    if data[:4] == b"FORM":
        found = "aiff"
    if not found and len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        found = "mp3"
    found = found or path.rpartition(".")[2].lower()
    if found not in AUDIO_EXTENSIONS:
        raise UnusableClip("its bytes are in no format of audio that featstore knows")
    return found


# --- other columns ----------------------------------------------------------------------------------------------------


def _is_plain(feature: Any) -> bool:
    """Whether a column can be JSON: no audio, images or bytes."""
    from datasets import ClassLabel, Value

    if isinstance(feature, Mapping):
        return not _is_audio(feature) and all(map(_is_plain, feature.values()))
    if isinstance(feature, list):
        return all(map(_is_plain, feature))
    if isinstance(feature, Value):
        return "binary" not in feature.dtype
    inner = getattr(feature, "feature", None)
    return isinstance(feature, ClassLabel) or (inner is not None and _is_plain(inner))


def _plain(value: Any, feature: Any) -> Any:  # noqa: PLR0911 - a case for each type
    """A value as JSON: class numbers become names, NaN null, dates text, columns of events a list of events."""
    if value is None:
        return None
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if isinstance(value, int) and 0 <= value < feature.num_classes else value
    if isinstance(feature, Mapping):
        row = {name: _plain(each, feature[name]) for name, each in value.items()}
        lengths = {len(each) if isinstance(each, list) else -1 for each in row.values()}
        if len(lengths) == 1 and -1 not in lengths and any(times <= row.keys() for times in _EVENT_TIMES):
            return [dict(zip(row, each, strict=True)) for each in zip(*row.values(), strict=True)]
        return row
    if isinstance(value, list):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [_plain(each, inner) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else str(value)

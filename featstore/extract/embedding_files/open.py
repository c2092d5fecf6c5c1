"""Opens files of embeddings that other software made, with a table beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from featstore.errors import DataError, UsageError
from featstore.extract.embedding_files.arrow_files import open_dataset, open_parquet
from featstore.extract.embedding_files.numpy_files import NpyFile, NpzFile
from featstore.extract.embedding_files.rows import Columns, EmbeddingFile, Rows
from featstore.extract.embedding_files.safetensors_file import open_safetensors
from featstore.extract.table_rows import readable, table_rows

__all__ = ["open_embeddings"]


def open_embeddings(path: str | Path, columns: Columns, *, table: Path | None = None) -> EmbeddingFile:
    """Open a file, and find its vectors, frames and columns.

    Parameters
    ----------
    path : str or Path
        ``.npz``, ``.npy``, ``.parquet``, ``.safetensors``, a folder of `datasets.Dataset.save_to_disk`, or the name of
        a data set of the Hugging Face hub.
    columns : Columns
    table : Path, optional
        CSV or JSON lines with a line for each row, in order; for a file of a tensor for each key, with a line for each
        key.

    Raises
    ------
    DataError
        The file cannot be read, or has no vectors or frames that can be stored.
    UsageError
        A column is missing or ambiguous, or a library is not installed.
    """
    reader = _reader_of(str(path))
    name = Path(path).name if Path(path).exists() else str(path)
    with readable(name):
        found = reader(path, columns)
    if table is not None:
        found = _Joined.of(found, table, columns)
    named = {"key": columns.key, "split": columns.split}
    missing = [(what, each) for what, each in named.items() if each is not None and each not in found.columns]
    missing += [("column", each) for each in columns.kept or () if each not in found.columns]
    if missing:
        what, each = missing[0]
        raise UsageError(f"{name} has no column {each!r} for the {what}: it has {', '.join(found.columns) or 'none'}")
    return found


def _reader_of(path: str) -> Callable[[str | Path, Columns], EmbeddingFile]:
    suffixes = {
        ".npz": NpzFile.open,
        ".npy": NpyFile.open,
        ".parquet": open_parquet,
        ".pq": open_parquet,
        ".safetensors": open_safetensors,
    }
    if Path(path).is_dir():
        return open_dataset
    suffix = Path(path).suffix.lower()
    if suffix in suffixes:
        return suffixes[suffix]
    if Path(path).exists() or path.count("/") != 1 or path.startswith((".", "~")):
        kinds = ", ".join(suffixes)
        raise UsageError(
            f"{path} is not a file of embeddings: it must end in {kinds}, be a folder of datasets' save_to_disk, or "
            "OWNER/NAME of a data set on the hub"
        )
    return open_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joined(EmbeddingFile):
    """A file with the columns of a table: line by line, or by key for a file that has keys of its own."""

    inner: EmbeddingFile
    table: Path
    from_table: tuple[str, ...]
    key: str | None

    @classmethod
    def of(cls, inner: EmbeddingFile, table: Path, columns: Columns) -> _Joined:
        first = next(table_rows(table, allow_nan=True), None)
        if first is None:
            raise DataError(f"{table.name} has no rows")
        here = tuple(columns.other(first[1]))
        is_keyed = inner.key_column is not None
        if is_keyed and (columns.key is None or columns.key not in here):
            raise UsageError(
                f"{inner.name} has a tensor for each key: name the column of keys in {table.name} with --key, one of "
                f"{', '.join(first[1])}"
            )
        own = () if is_keyed else inner.columns
        if twice := [name for name in here if name in own]:
            raise UsageError(f"{inner.name} and {table.name} both have a column {twice[0]!r}: choose with --columns")
        return cls(
            inner=inner,
            table=table,
            columns=(*own, *here),
            from_table=here,
            key=columns.key if is_keyed else None,
            name=inner.name,
            stem=inner.stem,
            ignored=inner.ignored,
            split_column=inner.split_column,
        )

    def rows(self) -> Iterator[Rows]:
        lines = table_rows(self.table, allow_nan=True)
        by_key = None if self.key is None else self._by_key(lines)
        first = 0
        for rows in self.inner.rows():
            if by_key is not None:
                keys = rows.columns[self.inner.key_column or ""]
                if lacking := [key for key in keys if key not in by_key]:
                    raise DataError(f"{self.table.name} has no line with key {lacking[0]!r} of {self.inner.name}")
                found = [by_key[key] for key in keys]
            else:
                found = [row for _, row in islice(lines, rows.n)]
                if len(found) < rows.n:
                    raise DataError(
                        f"{self.table.name} has {first + len(found):,} rows, fewer than the embeddings of "
                        f"{self.inner.name}: lengths must agree"
                    )
            first += rows.n
            try:
                values = {name: [row[name] for row in found] for name in self.from_table}
            except KeyError as error:
                raise DataError(f"{self.table.name} has a line without the column {error}") from error
            yield replace(rows, columns=values if by_key is not None else {**rows.columns, **values})
        if by_key is None and next(lines, None) is not None:
            raise DataError(
                f"{self.table.name} has more rows than {self.inner.name}, {first:,} embeddings: lengths must agree"
            )

    def _by_key(self, lines: Iterator[tuple[int, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for number, row in lines:
            key = str(row.get(self.key or ""))
            if key in found:
                raise DataError(f"{self.table.name}, line {number}: the key {key!r} occurs twice")
            found[key] = row
        return found

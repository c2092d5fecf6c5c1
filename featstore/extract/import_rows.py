"""Checks the rows of a file of embeddings, and cuts them into the parts of feature sets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.clip_json import parse_clip_json, printable_key, problem_of_key
from featstore.errors import DataError, UsageError
from featstore.extract.embedding_files import EmbeddingFile, Rows
from featstore.extract.import_settings import ImportSettings
from featstore.records import SkippedClip
from featstore.store.part_writer import WindowBlock

__all__ = ["Block", "PartContent", "checked_blocks", "pieces"]

PART_BYTES = 64 << 20
MAX_PART_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Checked rows of one feature set, in order."""

    feature_set: str
    windows: WindowBlock
    numbers: Sequence[int]
    skipped: Sequence[SkippedClip]

    def cut(self, start: int, stop: int) -> WindowBlock:
        """Return the rows [start, stop)."""
        rows, counts = self.windows, self.windows.frame_counts
        frames = rows.frames
        if frames is not None and counts is not None:
            ends = np.cumsum([0, *counts])
            frames, counts = frames[ends[start] : ends[stop]], counts[start:stop]
        return WindowBlock(
            keys=rows.keys[start:stop],
            metas=rows.metas[start:stop],
            start_seconds=rows.start_seconds[start:stop],
            seconds=rows.seconds[start:stop],
            utterance=rows.utterance[start:stop],
            frames=frames,
            frame_counts=counts,
        )


def checked_blocks(file: EmbeddingFile, settings: ImportSettings) -> Iterator[Block]:
    """Yield the rows that can be stored, by feature set, with those that are skipped.

    Raises
    ------
    DataError
        A row has no valid split, or the file has no frames, although a hop is given.
    """
    columns = settings.columns
    key_column, split_column = columns.key or file.key_column, columns.split or file.split_column
    if split_column is not None and settings.split is not None:
        raise UsageError(f"{file.name} has splits in {split_column!r}: give no split, or no column of splits")
    hidden = {key_column, split_column, file.key_column}
    kept = [name for name in file.columns if name not in hidden or name in (columns.kept or ())]
    split = "all" if settings.split is None and split_column is None else settings.split
    known: dict[Any, str] = {}
    first = 0
    for rows in file.rows():
        if settings.hop_seconds is not None and rows.frames is None:
            raise DataError(f"{file.name} has no frames: without --hop its vectors are imported")
        splits = [split] * rows.n if split_column is None else rows.columns[split_column]
        names = []
        for at, each in enumerate(splits):
            if each not in known:
                known[each] = _feature_set(each, settings, where=f"{file.name}, row {first + at:,}")
            names.append(known[each])
        keys = (
            [_default_key(file.stem, name, split_column, first + at) for at, name in enumerate(names)]
            if key_column is None
            else [_text(value) for value in rows.columns[key_column]]
        )
        metas = [_meta(values, kept) for values in zip(*(rows.columns[name] for name in kept), strict=True)]
        yield from _by_feature_set(
            names, keys, metas or ["{}"] * rows.n, rows, settings=settings, file=file.name, first=first
        )
        first += rows.n
    if not first:
        raise DataError(f"{file.name} has no rows")


def _feature_set(split: Any, settings: ImportSettings, *, where: str) -> str:
    try:
        text = _text(split)
        if not text:
            raise UsageError("it has no split")
        return settings.feature_set(text)
    except UsageError as error:
        raise DataError(f"{where}: {error}") from error


def _default_key(stem: str, split: str, split_column: str | None, number: int) -> str:
    """Key of a row without one: unique in a dataset whose splits are files of different names or in one file."""
    prefix = (
        stem
        if stem and (split_column is not None or split == "all" or split in stem)
        else "-".join(filter(None, (split, stem)))
    )
    return f"{prefix}-{number:06d}"


def _text(value: Any) -> str:
    """Text of a key or split; empty for a missing value. Numbers are written without ``.0``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def _meta(values: Sequence[Any], names: Sequence[str]) -> str | None:
    """The clip's JSON; None if it cannot be stored."""
    try:
        text = json.dumps(dict(zip(names, map(_plain, values), strict=True)), ensure_ascii=False, allow_nan=False)
        parse_clip_json(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return text


def _plain(value: Any) -> Any:
    """A value as JSON has it: NaN, which tables use for a missing value, is null; times and decimals are text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    return str(value) if isinstance(value, date | datetime | time | Decimal) else value


def _by_feature_set(
    names: Sequence[str],
    keys: Sequence[str],
    metas: Sequence[str | None],
    rows: Rows,
    *,
    settings: ImportSettings,
    file: str,
    first: int,
) -> Iterator[Block]:
    frames, counts = _stored_frames(rows, settings)
    with np.errstate(over="ignore", invalid="ignore"):
        utterance = _means(frames, counts) if rows.vectors is None else rows.vectors.astype(np.float32)
    problems = _problems(keys, metas, utterance, frames, counts)
    named, is_usable = np.array(names), np.array([not problem for problem in problems])
    for name in dict.fromkeys(names):
        mine = named == name
        usable = mine & is_usable
        chosen = np.flatnonzero(usable).tolist()
        skipped = [
            SkippedClip(
                shard=file,
                key=printable_key(keys[at]) or f"row {first + at}",
                reason=f"row {first + at:,}: {problems[at]}",
            )
            for at in np.flatnonzero(mine & ~usable).tolist()
        ]
        of_frames = None if counts is None else counts[usable]
        yield Block(
            feature_set=name,
            numbers=[first + at for at in chosen],
            skipped=skipped,
            windows=WindowBlock(
                keys=[keys[at] for at in chosen],
                metas=[metas[at] or "" for at in chosen],
                start_seconds=np.zeros(len(chosen)),
                seconds=np.zeros(len(chosen)) if of_frames is None else of_frames * (settings.hop_seconds or 0.0),
                utterance=np.ascontiguousarray(utterance[usable]),
                frames=None if frames is None or counts is None else frames[np.repeat(usable, counts)],
                frame_counts=of_frames,
            ),
        )


def _stored_frames(
    rows: Rows, settings: ImportSettings
) -> tuple[NDArray[np.floating[Any]] | None, NDArray[np.int64] | None]:
    if rows.frames is None or rows.frame_counts is None or settings.hop_seconds is None:
        return None, None
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.frames.astype(settings.frame_dtype), rows.frame_counts


def _means(frames: NDArray[Any] | None, counts: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Mean of each clip's frames, (n, dim); 0 for a clip without frames."""
    if frames is None or counts is None:
        raise DataError("there are neither vectors nor frames")
    some = np.flatnonzero(counts)
    means = np.zeros((len(counts), frames.shape[1]))
    if len(some):
        starts = np.cumsum([0, *counts[some][:-1]])
        means[some] = np.add.reduceat(frames.astype(np.float64), starts, axis=0) / counts[some, None]
    return means.astype(np.float32)


def _problems(
    keys: Sequence[str],
    metas: Sequence[str | None],
    utterance: NDArray[np.float32],
    frames: NDArray[Any] | None,
    counts: NDArray[np.int64] | None,
) -> list[str]:
    """Reason to skip each row; empty for rows that are stored."""
    finite = np.asarray(np.isfinite(utterance).all(axis=1))
    finite_frames = np.ones(len(keys), bool)
    if frames is not None and counts is not None:
        row_of = np.repeat(np.arange(len(counts)), counts)
        finite_frames[row_of[~np.isfinite(frames).all(axis=1)]] = False
    problems = []
    for at, (key, meta) in enumerate(zip(keys, metas, strict=True)):
        if problem := problem_of_key(key) if key else "it has no key":
            pass
        elif meta is None:
            problem = "its columns are not valid JSON: an infinity, or text that is not UTF-8"
        elif counts is not None and not counts[at]:
            problem = "it has no frames"
        elif not finite_frames[at]:
            problem = f"a frame is missing, NaN or infinite in {frames.dtype if frames is not None else ''}"
        elif not finite[at]:
            problem = "its vector is missing, or has NaN or an infinity"
        problems.append(problem)
    return problems


# --- parts ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class PartContent:
    """Running totals and hash of the rows of one part."""

    rows: int = 0
    frames: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    skipped: list[SkippedClip] = field(default_factory=list)
    _hashes: tuple[Any, ...] = field(default_factory=lambda: tuple(hashlib.sha256() for _ in range(4)))

    @property
    def is_full(self) -> bool:
        """Whether the next row belongs to another part."""
        return self.n_bytes >= PART_BYTES or self.rows >= MAX_PART_ROWS

    @property
    def sha256(self) -> str:
        """Hash of keys, JSON, vectors and frames, whatever the blocks were."""
        return hashlib.sha256("".join(each.hexdigest() for each in self._hashes).encode()).hexdigest()

    def n_fitting(self, block: Block, start: int) -> int:
        """Number of the rows from `start` on that belong to this part: the last of them may exceed its size."""
        counts = block.windows.frame_counts
        costs = np.full(len(block.windows.keys) - start, block.windows.utterance.shape[1] * 4)
        if counts is not None and block.windows.frames is not None:
            costs = costs + counts[start:] * block.windows.frames.shape[1] * block.windows.frames.itemsize
        within = int(np.searchsorted(np.cumsum(costs), PART_BYTES - self.n_bytes)) + 1
        return min(len(costs), within, MAX_PART_ROWS - self.rows)

    def add(self, rows: WindowBlock) -> None:
        """Add rows to the totals and to the hash."""
        of_text, of_vectors, of_counts, of_frames = self._hashes
        for key, meta in zip(rows.keys, rows.metas, strict=True):
            of_text.update(b"%d %d " % (len(key), len(meta)) + key.encode() + meta.encode())
        of_vectors.update(rows.utterance.astype("<f4").tobytes())
        self.rows += len(rows.keys)
        self.n_bytes += rows.utterance.nbytes
        if rows.frames is not None and rows.frame_counts is not None:
            of_counts.update(rows.frame_counts.astype("<i8").tobytes())
            of_frames.update(np.ascontiguousarray(rows.frames).tobytes())
            self.frames += len(rows.frames)
            self.n_bytes += rows.frames.nbytes
        self.seconds += float(rows.seconds.sum())


def pieces(block: Block, contents: list[PartContent]) -> Iterator[tuple[int, WindowBlock]]:
    """Cut a block at the ends of parts. Yields the number of the part and its rows; `contents` grows."""
    start, n = 0, len(block.windows.keys)
    while start < n or not contents:
        if not contents or contents[-1].is_full:
            contents.append(PartContent())
        if start < n:
            stop = start + contents[-1].n_fitting(block, start)
            piece = block.cut(start, stop)
            contents[-1].add(piece)
            yield len(contents) - 1, piece
            start = stop
    contents[-1].skipped += block.skipped

"""Imports embeddings that other software made into a store, in two passes over each file.

The first pass checks every row, and hashes the content of the parts to write. Nothing is written before all files are
checked against each other and against the store. The second pass writes the parts that the store lacks.

A part has one shard, whose name contains the hash of its content, so that an import that is repeated, or was killed,
writes only what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from featstore.clip_json import parse_clip_json
from featstore.errors import DataError, FeatstoreError, UsageError
from featstore.extract.embedding_files import Columns, EmbeddingFile, Rows
from featstore.formatting import counted, one_line
from featstore.records import Recipe, SkippedClip, dataset_group
from featstore.shard_patterns import ShardPattern, is_glob
from featstore.store import (
    FORMAT_VERSION,
    Member,
    ShardIdentity,
    SplitWriter,
    find_split_writer,
    open_split_writer,
    read_encoder_groups,
    recipe_groups,
)
from featstore.store.format import is_group_name
from featstore.store.part_writer import PartWriter, WindowBlock

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["ImportFailure", "ImportRecord", "ImportSettings", "Imported", "Source", "import_sources"]

_log = logging.getLogger("featstore")

PART_BYTES = 64 << 20
MAX_PART_ROWS = 65_536
MAX_KEY_CHARACTERS = 1024
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSettings:
    """What is imported, and its place in the store.

    Attributes
    ----------
    encoder : str
        Name of the encoder in the store.
    source : str
        Words about the origin of the embeddings; part of the encoder's identity.
    dataset : str
    split : str
        Split of all rows, if there is no column of splits.
    columns : Columns
    hop_seconds : float or None
        Time from one frame to the next; None: no frames are stored.
    frame_dtype : "float32" or "float16"
        Type of the stored frames.
    crop_seconds : float or None
        Of the dataset of a task.
    shard_patterns : mapping or None
        Split -> feature set and shard pattern, of a task; None: shards are called SPLIT-*.tar.
    """

    encoder: str
    source: str
    dataset: str
    split: str | None
    columns: Columns
    hop_seconds: float | None
    frame_dtype: str
    crop_seconds: float | None = None
    shard_patterns: Mapping[str, tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        for kind, name in (("encoder", self.encoder), ("dataset", self.dataset)):
            if not is_group_name(name):
                raise UsageError(f"the name of the {kind} may have letters, digits and . _ + @ = -: got {name!r}")
        if "@" in self.encoder:
            raise UsageError(f"the name of the encoder has no '@', which separates its fingerprint: got {self.encoder!r}")
        if not self.source.isprintable():
            raise UsageError("the source must be one line of text")
        if self.hop_seconds is not None and not 0 < self.hop_seconds < math.inf:
            raise UsageError(f"hop must be above 0 seconds: got {self.hop_seconds:g}")
        if self.split is not None:
            self.feature_set(self.split)

    @classmethod
    def of_task(cls, manifest: Manifest, **settings: Any) -> ImportSettings:
        """Settings of an import whose shards are those of a task.

        Raises
        ------
        UsageError
            A pattern of the task lists its shards, instead of having a ``*``.
        """
        stored_as = manifest.feature_sets
        patterns = {split: (stored_as[split], pattern) for split, pattern in manifest.patterns.items()}
        for split, (_, pattern) in patterns.items():
            if len(ShardPattern(pattern).alternatives) != 1 or pattern.count("*") - 2 * pattern.count("**") != 1:
                raise UsageError(
                    f"task {manifest.name}: {split} = {pattern!r} must have one '*' and no list, which names imported "
                    f"shards; import without the task, into a manifest with {split} = '{split}-*.tar'"
                )
        data = manifest.data
        return cls(dataset=data.dataset, crop_seconds=data.crop_seconds, shard_patterns=patterns, **settings)

    def feature_set(self, split: str) -> str:
        """Name of the feature set of a split. Raises UsageError if the name is invalid, or not of the task."""
        if self.shard_patterns is not None:
            if split not in self.shard_patterns:
                raise UsageError(f"the task has no split {split!r}: it has {', '.join(self.shard_patterns)}")
            return self.shard_patterns[split][0]
        if not _SPLIT_NAME.fullmatch(split):
            raise UsageError(f"{split!r} is not a valid split name: use letters, digits and . _ -")
        return split

    def shard(self, feature_set: str, *, file: int, part: int, sha256: str) -> str:
        """Name of the shard of a part; a file's parts are in order."""
        middle = f"{file:04d}-{part:04d}-{sha256[:8]}"
        if self.shard_patterns is None:
            return f"{feature_set}-{middle}.tar"
        pattern = next(pattern for name, pattern in self.shard_patterns.values() if name == feature_set)
        return re.sub(r"\*\*/", "", pattern).replace("*", middle)

    def recipe(self, dim: int) -> Recipe:
        """Recipe of the embeddings. Sample rate, padding, precision and resampler are not known."""
        return Recipe(
            encoder=self.encoder,
            encoder_identity={"imported": self.source},
            sample_rate_hz=1,
            dim=dim,
            hop_seconds=self.hop_seconds or 0.0,
            padding="imported",
            precision="imported",
            frame_dtype=self.frame_dtype,
            resampler="imported",
            format_version=FORMAT_VERSION,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file to import, opened when it is read."""

    name: str
    open: Callable[[], EmbeddingFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRecord:
    """Result of an import for one feature set.

    Attributes
    ----------
    encoder, fingerprint, dataset, split : str
        Names, as the store has them.
    dim : int
    clips, frames : int
        Totals of the feature set after the import.
    parts_written, parts_reused, parts_deleted : int
        Parts that this import wrote, that the store had already, and that were replaced.
    skipped : tuple of SkippedClip
        Rows that are not stored, each with its reason. ``shard`` is the name of the file.
    ignored : tuple of str
        Columns of the files that are not stored.
    notes : tuple of str
        Other imported embeddings under this name.
    """

    encoder: str
    fingerprint: str
    dataset: str
    split: str
    dim: int
    clips: int
    frames: int
    parts_written: int
    parts_reused: int
    parts_deleted: int
    skipped: tuple[SkippedClip, ...]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFailure:
    """A file of which nothing was imported, and the reason."""

    file: str
    error: str
    message: str

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


class Imported(Sequence[ImportRecord]):
    """Result of an import: a record for each feature set, and the files that were refused.

    Attributes
    ----------
    failures : tuple of ImportFailure
    """

    def __init__(self, records: Iterable[ImportRecord], *, failures: Iterable[ImportFailure] = ()) -> None:
        self._records = tuple(records)
        self.failures = tuple(failures)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> ImportRecord: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ImportRecord, ...]: ...
    def __getitem__(self, index: int | slice) -> ImportRecord | tuple[ImportRecord, ...]:
        return self._records[index]

    def raise_failures(self) -> None:
        """Raise one FeatstoreError for all failures; return if there are none."""
        if self.failures:
            raise FeatstoreError(
                f"{counted(len(self.failures), 'file')} not imported: "
                + "; ".join(each.message for each in self.failures)
            )

    def __repr__(self) -> str:
        done = [
            f"  {each.encoder}@{each.fingerprint}/{each.dataset}/{each.split}: {each.clips:,} clips" for each in self
        ]
        failed = [f"  failed: {each.message}" for each in self.failures]
        return "\n".join([f"featstore.Imported: {counted(len(self), 'feature set')}", *done, *failed])


def import_sources(
    sources: Sequence[Source],
    settings: ImportSettings,
    *,
    store_url: str,
    replace: bool = False,
    on_file: Callable[[], object] = lambda: None,
) -> Imported:
    """Import files. The content of all files is the content of their feature sets.

    Parameters
    ----------
    replace : bool
        Replace other content of the feature sets. Nothing is imported if one of the files cannot be.
    on_file : callable
        Is called for each file that was checked.

    Returns
    -------
    Imported
        Of several files, one that cannot be imported is a failure; the error of a single file is raised.

    Raises
    ------
    DataError, UsageError
        The only file cannot be imported; or a feature set has other content, and `replace` is not set.
    StoreError
        The store cannot be written.
    """
    scans: list[_Scan] = []
    failures: list[ImportFailure] = []
    taken: dict[str, dict[str, str]] = {}
    for number, source in enumerate(sources):
        try:
            scan = _scan(source, settings, number=number, taken=taken, dim=scans[0].dim if scans else None)
        except (FeatstoreError, OSError, MemoryError) as error:
            if len(sources) == 1:
                raise
            failures.append(
                ImportFailure(file=source.name, error=type(error).__name__, message=one_line(error, most=500))
            )
            continue
        scans.append(scan)
        on_file()
        for split, keys in scan.keys.items():
            taken.setdefault(split, {}).update(dict.fromkeys(keys, source.name))
    if not scans or (replace and failures):
        untouched = [
            ImportFailure(
                file=scan.source.name, error="", message=f"{scan.source.name}: not imported, to replace all or nothing"
            )
            for scan in scans
        ]
        return Imported((), failures=(*failures, *untouched))
    recipe = settings.recipe(scans[0].dim)
    targets = _targets(scans, settings, recipe, store_url=store_url, replace=replace, n_failed=len(failures))
    notes = _notes(recipe, store_url)
    try:
        for scan in scans:
            _write(scan, settings, targets)
        for target in targets.values():
            target.delete_replaced()
    finally:
        for target in targets.values():
            target.complete()
    ignored = tuple(dict.fromkeys(name for scan in scans for name in scan.ignored))
    return Imported(
        (
            target.record(recipe, settings, ignored=ignored, notes=notes if at == 0 else ())
            for at, target in enumerate(targets.values())
        ),
        failures=failures,
    )


def _notes(recipe: Recipe, store_url: str) -> tuple[str, ...]:
    """A line about other imported embeddings of this name, if these are new: another source, dim or hop."""
    groups = recipe_groups(store_url)
    if recipe.group_name in groups:
        return ()
    alike = [name for name in groups if name.rpartition("@")[0] == recipe.encoder]
    return tuple(
        f"{recipe.group_name} is another encoder than {group.name}: "
        + ", ".join(
            f"{name} {now!r} (was {then!r})"
            for name, then, now in (
                ("source", group.recipe.imported_from, recipe.imported_from),
                ("dim", group.recipe.dim, recipe.dim),
                ("hop", group.recipe.hop_seconds, recipe.hop_seconds),
                ("type of frames", group.recipe.frame_dtype, recipe.frame_dtype),
            )
            if then != now
        )
        for group in read_encoder_groups(store_url, alike)
    )


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
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


def _blocks(file: EmbeddingFile, settings: ImportSettings) -> Iterator[_Block]:
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
    prefix = stem if stem and (split_column is not None or split == "all" or split in stem) else "-".join(filter(None, (split, stem)))
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
) -> Iterator[_Block]:
    frames, counts = _stored_frames(rows, settings)
    with np.errstate(over="ignore", invalid="ignore"):
        utterance = _means(frames, counts) if rows.vectors is None else rows.vectors.astype(np.float32)
    problems = _problems(keys, metas, utterance, frames, counts)
    names_of = np.array(names, object)
    for name in dict.fromkeys(names):
        mine = names_of == name
        usable = mine & np.array([not problem for problem in problems])
        chosen = np.flatnonzero(usable)
        skipped = [
            SkippedClip(shard=file, key=_shown(keys[at]) or f"row {first + at}", reason=f"row {first + at:,}: {problems[at]}")
            for at in np.flatnonzero(mine & ~usable)
        ]
        of_frames = None if counts is None else counts[usable]
        yield _Block(
            feature_set=name,
            numbers=[first + int(at) for at in chosen],
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
    finite = np.isfinite(utterance).all(axis=1)
    finite_frames = np.ones(len(keys), bool)
    if frames is not None and counts is not None:
        row_of = np.repeat(np.arange(len(counts)), counts)
        finite_frames[row_of[~np.isfinite(frames).all(axis=1)]] = False
    problems = []
    for at, (key, meta) in enumerate(zip(keys, metas, strict=True)):
        problem = ""
        if not key:
            problem = "it has no key"
        elif len(key) > MAX_KEY_CHARACTERS:
            problem = f"its key has {len(key):,} characters, more than {MAX_KEY_CHARACTERS:,}"
        elif _CONTROLS.search(key):
            problem = "its key has control characters"
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


def _shown(key: str) -> str:
    text = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", key)
    return text if len(text) <= MAX_KEY_CHARACTERS else f"{text[:64]}... ({len(text):,} characters)"


# --- first pass -------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _PartContent:
    """Running totals and hash of the rows of one part."""

    rows: int = 0
    frames: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    skipped: list[SkippedClip] = field(default_factory=list)
    _hashes: tuple[Any, ...] = field(default_factory=lambda: tuple(hashlib.sha256() for _ in range(4)))

    @property
    def is_full(self) -> bool:
        return self.n_bytes >= PART_BYTES or self.rows >= MAX_PART_ROWS

    @property
    def sha256(self) -> str:
        """Hash of keys, JSON, vectors and frames, whatever the blocks were."""
        return hashlib.sha256("".join(each.hexdigest() for each in self._hashes).encode()).hexdigest()

    def n_fitting(self, block: _Block, start: int) -> int:
        """Number of the rows from `start` on that belong to this part: the last of them may exceed its size."""
        counts = block.windows.frame_counts
        costs = np.full(len(block.windows.keys) - start, block.windows.utterance.shape[1] * 4)
        if counts is not None and block.windows.frames is not None:
            costs = costs + counts[start:] * block.windows.frames.shape[1] * block.windows.frames.itemsize
        within = int(np.searchsorted(np.cumsum(costs), PART_BYTES - self.n_bytes)) + 1
        return min(len(costs), within, MAX_PART_ROWS - self.rows)

    def add(self, rows: WindowBlock) -> None:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """Result of the first pass over a file: the member of each part's commit record, by feature set."""

    source: Source
    dim: int
    parts: Mapping[str, Sequence[Member]]
    keys: Mapping[str, Mapping[str, int]]
    ignored: tuple[str, ...]


def _pieces(block: _Block, contents: list[_PartContent]) -> Iterator[tuple[int, WindowBlock]]:
    """Cut a block at the ends of parts. Yields the number of the part and its rows; `contents` grows."""
    start, n = 0, len(block.windows.keys)
    while start < n or not contents:
        if not contents or contents[-1].is_full:
            contents.append(_PartContent())
        if start < n:
            stop = start + contents[-1].n_fitting(block, start)
            piece = block.cut(start, stop)
            contents[-1].add(piece)
            yield len(contents) - 1, piece
            start = stop
    contents[-1].skipped += block.skipped


def _scan(
    source: Source,
    settings: ImportSettings,
    *,
    number: int,
    taken: Mapping[str, Mapping[str, str]],
    dim: int | None,
) -> _Scan:
    """Check all rows of a file, and plan its parts.

    Raises
    ------
    DataError
        A key occurs twice, the file has another dim than the files before, or no row can be stored.
    """
    file = source.open()
    contents: dict[str, list[_PartContent]] = {}
    keys: dict[str, dict[str, int]] = {}
    n_rows = 0
    for block in _blocks(file, settings):
        name, width = block.feature_set, block.windows.utterance.shape[1]
        if dim is None:
            dim = width
        if width != dim:
            raise DataError(f"{file.name} has {width:,} numbers a vector, and others {dim:,}: an encoder has one dim")
        mine, others = keys.setdefault(name, {}), taken.get(name, {})
        for key, row in zip(block.windows.keys, block.numbers, strict=True):
            if key in mine or key in others:
                where = f"row {mine[key]:,}" if key in mine else others[key]
                raise DataError(
                    f"{file.name}, row {row:,}: the key {key!r} is that of {where} too; keys are unique in a split"
                )
            mine[key] = row
        for _ in _pieces(block, contents.setdefault(name, [])):
            pass
        n_rows += len(block.windows.keys) + len(block.skipped)
    if dim is None or not any(content.rows for of_set in contents.values() for content in of_set):
        first = next(clip for of_set in contents.values() for content in of_set for clip in content.skipped)
        raise DataError(f"{file.name}: none of {counted(n_rows, 'row')} can be stored; the first, {first.reason}")
    return _Scan(
        source=source,
        dim=dim,
        parts={
            name: [
                _planned(content, settings, name, file=number, part=part)
                for part, content in enumerate(of_set)
                if content.rows or content.skipped
            ]
            for name, of_set in contents.items()
        },
        keys=keys,
        ignored=file.ignored,
    )


def _planned(content: _PartContent, settings: ImportSettings, name: str, *, file: int, part: int) -> Member:
    sha256 = content.sha256
    shard = settings.shard(name, file=file, part=part, sha256=sha256)
    return Member(
        shard=ShardIdentity(name=shard, size=content.n_bytes, sha256=sha256),
        clips=content.rows,
        windows=content.rows,
        frames=content.frames,
        audio_seconds=round(content.seconds, 6),
        skipped=tuple(content.skipped),
    )


# --- second pass ------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Target:
    """A feature set: what the store has of it, what is to be written, and what is replaced."""

    writer: SplitWriter | None
    open_writer: Callable[[], SplitWriter]
    planned: Sequence[Member]
    reused: frozenset[str]
    replaced: Sequence[str]
    split: str
    written: int = 0

    def begin(self, member: Member) -> PartWriter:
        if self.writer is None:
            self.writer = self.open_writer()
        return self.writer.begin_part(member.shard.name)

    def delete_replaced(self) -> None:
        if self.writer is not None and self.replaced:
            self.writer.delete(self.replaced)

    def complete(self) -> None:
        """Delete what is superseded, and write the catalogue."""
        if self.writer is None:
            return
        if self.writer.has_leftovers or self.written:
            self.writer.sweep()
        if self.written or self.replaced or not self.writer.is_catalogued:
            self.writer.write_catalogue()

    def record(
        self, recipe: Recipe, settings: ImportSettings, *, ignored: tuple[str, ...], notes: tuple[str, ...]
    ) -> ImportRecord:
        members = self.planned
        return ImportRecord(
            encoder=recipe.encoder,
            fingerprint=recipe.fingerprint,
            dataset=dataset_group(settings.dataset, settings.crop_seconds),
            split=self.split,
            dim=recipe.dim,
            clips=sum(member.clips for member in members),
            frames=sum(member.frames for member in members),
            parts_written=self.written,
            parts_reused=len(self.reused),
            parts_deleted=len(self.replaced),
            skipped=tuple(clip for member in members for clip in member.skipped),
            ignored=ignored,
            notes=notes,
        )


def _targets(
    scans: Sequence[_Scan],
    settings: ImportSettings,
    recipe: Recipe,
    *,
    store_url: str,
    replace: bool,
    n_failed: int,
) -> dict[str, _Target]:
    """Compare the parts of all files with the store, before anything is written.

    Raises
    ------
    UsageError
        A feature set has content that the files do not have, and `replace` is not set.
    """
    found: dict[str, _Target] = {}
    for name in dict.fromkeys(name for scan in scans for name in scan.parts):
        planned = [part for scan in scans for part in scan.parts.get(name, ())]
        place: dict[str, Any] = {
            "recipe": recipe,
            "spec": "imported",
            "dataset": settings.dataset,
            "crop_seconds": settings.crop_seconds,
            "split": name,
        }
        writer = find_split_writer(store_url, **place)
        stored = {} if writer is None else writer.begin_run()
        wanted = {member.shard.sha256 for member in planned}
        others = [segment for segment in stored.values() if segment.member.shard.sha256 not in wanted]
        if others and not replace:
            n_clips = sum(segment.member.clips for segment in others)
            why = f", perhaps from the {counted(n_failed, 'file')} that cannot be read now" if n_failed else ""
            raise UsageError(
                f"{store_url}/{recipe.group_name}/{dataset_group(settings.dataset, settings.crop_seconds)}/{name} has "
                f"{counted(n_clips, 'clip')} of another import{why}: --replace replaces them; or import all files of a "
                "split in one call, or under another encoder, dataset or split"
            )
        replaced = {segment.commit.part for segment in others}
        found[name] = _Target(
            writer=writer,
            open_writer=_opener(store_url, place),
            planned=planned,
            reused=frozenset(
                segment.member.shard.sha256
                for segment in stored.values()
                if segment.commit.part not in replaced  # compacted with a shard that is replaced
                and segment.commit.frames_stored == (settings.hop_seconds is not None)  # a copy may lack frames
            ),
            replaced=sorted(replaced),
            split=name,
        )
    return found


def _opener(store_url: str, place: Mapping[str, Any]) -> Callable[[], SplitWriter]:
    return lambda: open_split_writer(store_url, **place)


def _write(scan: _Scan, settings: ImportSettings, targets: Mapping[str, _Target]) -> None:
    """Write the parts of a file that the store lacks.

    Raises
    ------
    DataError
        The file has changed since the first pass; the part is not committed.
    """
    missing = {
        (name, number)
        for name, members in scan.parts.items()
        for number, member in enumerate(members)
        if member.shard.sha256 not in targets[name].reused
    }
    if not missing:
        return
    versions = {"python": platform.python_version(), "numpy": np.__version__, "featstore": _version()}
    contents: dict[str, list[_PartContent]] = {name: [] for name in scan.parts}
    with contextlib.ExitStack() as stack:
        in_flight: dict[tuple[str, int], PartWriter] = {}

        def writer_of(name: str, number: int) -> PartWriter:
            if (name, number) not in in_flight:
                in_flight[name, number] = stack.enter_context(targets[name].begin(scan.parts[name][number]))
            return in_flight[name, number]

        def commit(name: str, number: int) -> None:
            member = scan.parts[name][number]
            if number >= len(contents[name]) or contents[name][number].sha256 != member.shard.sha256:
                raise DataError(f"{scan.source.name} changed while it was imported: import it again")
            writer_of(name, number).commit(
                [member], frames_stored=settings.hop_seconds is not None, versions=versions
            )
            del in_flight[name, number]
            missing.remove((name, number))
            targets[name].written += 1

        for block in _blocks(scan.source.open(), settings):
            name = block.feature_set
            for number, piece in _pieces(block, contents.setdefault(name, [])):
                if (name, number) in missing:
                    writer_of(name, number).add_block(piece)
                    if contents[name][number].is_full:
                        commit(name, number)
        for name, number in sorted(missing):
            commit(name, number)


def _version() -> str:
    from featstore import __version__

    return __version__

"""Imports embeddings that other software made into a store, in two passes over each file.

The first pass checks every row, and hashes the content of the parts to write. Nothing is written before all files are
checked against each other and against the store. The second pass writes the parts that the store lacks.

A part has one shard, whose name contains the hash of its content, so that an import that is repeated, or was killed,
writes only what is missing.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, overload

import numpy as np

from featstore import __version__
from featstore.errors import DataError, FeatstoreError, UsageError
from featstore.extract.embedding_files import EmbeddingFile
from featstore.extract.import_rows import PartContent, checked_blocks, pieces
from featstore.extract.import_settings import ImportSettings
from featstore.formatting import counted, one_line
from featstore.records import Recipe, SkippedClip, dataset_group
from featstore.store import (
    Member,
    ShardIdentity,
    SplitWriter,
    find_split_writer,
    open_split_writer,
    read_encoder_groups,
    recipe_groups,
)
from featstore.store.part_writer import PartWriter

__all__ = [
    "ImportFailure",
    "ImportRecord",
    "ImportSettings",
    "Imported",
    "Source",
    "check_not_imported",
    "import_sources",
]


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


def check_not_imported(spec: str, store_url: str) -> None:
    """Raise UsageError for the name of imported embeddings in place of an encoder's spec."""
    from featstore.encoders import parse_spec

    try:
        parse_spec(spec)
        return
    except FeatstoreError:  # raised again when the encoder is loaded
        alike = [name for name in recipe_groups(store_url) if spec in (name, name.rpartition("@")[0])]
    for group in read_encoder_groups(store_url, alike):
        if group.recipe.imported_from is not None:
            raise UsageError(
                f"{group.name} was imported: extract needs an encoder that runs; `featstore import` adds splits, and "
                "`featstore probe` and all other commands read it"
            )


# --- first pass -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scan:
    """Result of the first pass over a file: the member of each part's commit record, by feature set."""

    source: Source
    dim: int
    parts: Mapping[str, Sequence[Member]]
    keys: Mapping[str, Mapping[str, int]]
    ignored: tuple[str, ...]


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
    contents: dict[str, list[PartContent]] = {}
    keys: dict[str, dict[str, int]] = {}
    n_rows = 0
    for block in checked_blocks(file, settings):
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
        for _ in pieces(block, contents.setdefault(name, [])):
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


def _planned(content: PartContent, settings: ImportSettings, name: str, *, file: int, part: int) -> Member:
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
            open_writer=partial(open_split_writer, store_url, **place),
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
    versions = {"python": platform.python_version(), "numpy": np.__version__, "featstore": __version__}
    contents: dict[str, list[PartContent]] = {name: [] for name in scan.parts}
    in_flight: dict[tuple[str, int], PartWriter] = {}  # one for each feature set; a committed part frees its memory

    def writer_of(name: str, number: int) -> PartWriter:
        if (name, number) not in in_flight:
            in_flight[name, number] = targets[name].begin(scan.parts[name][number])
        return in_flight[name, number]

    def commit(name: str, number: int) -> None:
        member = scan.parts[name][number]
        if number >= len(contents[name]) or contents[name][number].sha256 != member.shard.sha256:
            raise DataError(f"{scan.source.name} changed while it was imported: import it again")
        writer_of(name, number).commit([member], frames_stored=settings.hop_seconds is not None, versions=versions)
        del in_flight[name, number]
        missing.remove((name, number))
        targets[name].written += 1

    try:
        for block in checked_blocks(scan.source.open(), settings):
            name = block.feature_set
            for number, piece in pieces(block, contents.setdefault(name, [])):
                if (name, number) in missing:
                    writer_of(name, number).add_block(piece)
                    if contents[name][number].is_full:
                        commit(name, number)
        for name, number in sorted(missing):
            commit(name, number)
    finally:
        for writer in in_flight.values():
            writer.abort()

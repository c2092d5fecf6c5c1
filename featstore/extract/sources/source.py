"""Where clips come from, and the plan to pack them: keys, splits, labels and groups, without reading audio."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypedDict

from featstore.errors import UsageError
from featstore.extract.sources.clips import Clip, ClipColumns, checked_clips
from featstore.extract.sources.tables import plan_folder, plan_table
from featstore.files import expanded
from featstore.formatting import counted
from featstore.tasks.draft import FoundLabel, find_label, roles_of_splits, strata_of, value_at

__all__ = ["Plan", "Source", "SourceSettings", "plan_source"]

StrPath = str | os.PathLike[str]


class SourceSettings(TypedDict, total=False):
    """Fields of `Source` as keyword arguments; see there for meanings and defaults."""

    audio: StrPath | None
    csv: StrPath | None
    jsonl: StrPath | None
    hf: StrPath | None
    lhotse: StrPath | Sequence[StrPath]
    kaldi: StrPath | None
    path: str | None
    key: str | None
    label: str
    kind: str | None
    separator: str | None
    split_column: str | None
    split_by: str | None
    folds: int | None
    group: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Labelled audio as people have it.

    Attributes
    ----------
    audio : path, optional
        Folder of audio files. Alone, its sub-folders are the labels; with a table, relative paths start from it.
    csv, jsonl : path, optional
        Table of clips.
    hf : str or path, optional
        Hugging Face data set: a parquet file, a folder of them, a folder of `save_to_disk`, or a name on the hub.
    lhotse : path or sequence of paths
        A CutSet, or a RecordingSet and a SupervisionSet, as JSON lines.
    kaldi : path, optional
        Kaldi data folder.
    path : str, optional
        Column of the audio: of its path in a table (``path`` by default), of the audio in a Hugging Face data set.
    key : str, optional
        Column of keys. Default: the path, or the id.
    label : str
        Column of labels.
    kind : str, optional
        Kind of the task. Default: by the labels, see `featstore.tasks.draft`.
    separator : str, optional
        Separates several classes in one text.
    split_column : str, optional
        Column of splits or folds. Default: ``split``, else ``fold``, if all clips have it.
    split : str, optional
        Split of all clips: no column is used.
    split_by : str, optional
        Draw splits that keep clips with one value of this column together; the column of labels draws without groups.
    folds : int, optional
        Draw this number of folds instead of training, validation and test splits.
    group : str, optional
        Column of the groups (speaker, recording) that the task's own splits and intervals keep together.
    """

    audio: StrPath | None = None
    csv: StrPath | None = None
    jsonl: StrPath | None = None
    hf: StrPath | None = None
    lhotse: StrPath | Sequence[StrPath] = ()
    kaldi: StrPath | None = None
    path: str | None = None
    key: str | None = None
    label: str = "label"
    kind: str | None = None
    separator: str | None = None
    split_column: str | None = None
    split: str | None = None
    split_by: str | None = None
    folds: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        doors = self.table_options
        if len(doors) > 1:
            raise UsageError(f"{' and '.join(f'--{name}' for name in doors)} exclude each other")
        if not doors and self.audio is None:
            raise UsageError("no audio: give --audio DIR, --csv, --jsonl, --hf, --lhotse or --kaldi")
        if self.hf is not None and self.audio is not None:
            raise UsageError("--hf has its own audio: --audio is for tables and folders")
        if not doors and (self.key or self.split_column):
            raise UsageError("--key and --split-column need --csv, --jsonl or another table")
        drawn = self.split_by is not None or self.folds is not None
        if drawn and (self.split_column or self.split):
            raise UsageError("--split-by and --folds draw splits: omit --split-column and --split")
        if self.folds is not None and self.folds < 2:
            raise UsageError(f"folds must be 2 or more: got {self.folds}")

    @property
    def table_options(self) -> list[str]:
        """Names of the options that list clips; at most one. Without them, `audio` is a folder with labels."""
        return [name for name in ("csv", "jsonl", "hf", "lhotse", "kaldi") if getattr(self, name) not in (None, (), [])]

    @property
    def name(self) -> str:
        """Name of a data set: that of the folder or file, without its extensions."""
        named = self.audio or self.csv or self.jsonl or self.hf or self.kaldi or self.lhotse_files[0]
        return Path(os.path.abspath(expanded(named))).name.partition(".")[0]  # noqa: PTH100 - not resolved

    @property
    def lhotse_files(self) -> tuple[Path, ...]:
        """The manifests of lhotse."""
        several = [self.lhotse] if isinstance(self.lhotse, str | os.PathLike) else self.lhotse
        return tuple(Path(path) for path in several)


SOURCE_FIELDS = tuple(field.name for field in fields(Source) if field.name != "split")
"""Those that `featstore.extract` takes too, where ``split`` selects splits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The clips to pack, what their label is, the field of their groups, and what people should know."""

    clips: tuple[Clip, ...]
    label: FoundLabel
    group: str | None
    notes: tuple[str, ...]


def plan_source(source: Source) -> Plan:
    """List the clips of a source, assign their splits and find what the label is.

    Raises
    ------
    UsageError
        The source has no clips, a clip has no path or no key of its own, no split or no group, or there is no label.
    DataError
        A table or manifest cannot be read.
    """
    clips, notes = _listed(source)
    label_field = source.label if source.table_options else "label"
    label = find_label(
        [clip.meta for clip in clips],
        label_field,
        kind=source.kind,
        separator=source.separator,
        is_text=source.csv is not None or source.kaldi is not None,
    )
    group = source.group
    if source.split_by is not None or source.folds is not None:
        by = source.split_by if source.split_by != label_field else None
        clips, drawn = _with_drawn_splits(clips, label, by=by, folds=source.folds)
        notes = (*(note for note in notes if not note.startswith("splits: ")), *drawn)
        group = group or by
    clips = checked_clips(clips)
    if group is not None:
        notes = (*notes, *_divided(clips, group, _groups(clips, group)))
    return Plan(clips=clips, label=label, group=group, notes=notes)


def _listed(source: Source) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    audio_dir = None if source.audio is None else Path(source.audio)
    if audio_dir is not None and not audio_dir.is_dir():
        raise UsageError(f"there is no folder {audio_dir}")
    columns = ClipColumns(key=source.key, splits=source.split_column, split=source.split)
    if source.hf is not None:
        from featstore.extract.sources.huggingface import plan_hugging_face

        return plan_hugging_face(os.fspath(source.hf), columns, audio_field=source.path)
    if source.kaldi is not None:
        from featstore.extract.sources.kaldi import plan_kaldi

        return plan_kaldi(Path(source.kaldi), columns, audio_dir=audio_dir)
    if source.lhotse:
        from featstore.extract.sources.lhotse import plan_lhotse

        return plan_lhotse(source.lhotse_files, columns, audio_dir=audio_dir)
    table = source.csv or source.jsonl
    if table is not None:
        return plan_table(Path(table), columns, audio_dir=audio_dir, path_field=source.path or "path")
    return plan_folder(audio_dir or Path(), split=source.split)


def _groups(clips: Sequence[Clip], field: str) -> list[str]:
    """The group of each clip. Raises UsageError if a clip has none."""
    values = [value_at(clip.meta, field) for clip in clips]
    without = [
        clip.name
        for clip, value in zip(clips, values, strict=True)
        if value is None or value == "" or isinstance(value, list | dict)
    ]
    if without:
        columns = ", ".join(dict.fromkeys(name for clip in clips for name in clip.meta))
        raise UsageError(
            f"{len(without):,} of {counted(len(clips), 'clip')} have no group at {field!r}, such as {without[0]}; "
            f"the columns are {columns}"
        )
    return [str(value) for value in values]


def _with_drawn_splits(
    clips: Sequence[Clip], label: FoundLabel, *, by: str | None, folds: int | None
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    import numpy as np

    from featstore.tasks.splits import draw_splits

    ids = [clip.key for clip in clips]
    if len(set(ids)) < len(ids):
        ids = [f"{clip.split}/{clip.key}" for clip in clips]
    groups = None if by is None else _groups(clips, by)
    strata = np.array(strata_of([clip.meta for clip in clips], label), np.int64)
    try:
        names = draw_splits(ids=ids, strata=strata, groups=groups, n_folds=folds)
    except ValueError as error:
        raise UsageError(f"splits cannot be drawn{f' by {by!r}' if by else ''}: {error}") from error
    what = f"{folds} folds" if folds else "train, valid and test"
    together = f", by {by!r} ({counted(len(set(groups or ())), 'group')})" if by else ""
    drawn = tuple(replace(clip, split=name) for clip, name in zip(clips, names, strict=True))
    return drawn, (f"splits: {what} drawn{together}, stratified by {label.field!r}",)


def _divided(clips: Sequence[Clip], field: str, groups: Sequence[str]) -> tuple[str, ...]:
    """A warning if the splits divide groups between training and test clips."""
    roles = roles_of_splits(list(dict.fromkeys(clip.split for clip in clips)))
    if roles is not None and roles["train"] == roles["test"]:
        return ()
    split_of: dict[str, set[str]] = {}
    for clip, group in zip(clips, groups, strict=True):
        split_of.setdefault(group, set()).add(clip.split)
    both = {roles["train"], roles["test"]} if roles is not None else None
    divided = [group for group, splits in split_of.items() if (both <= splits if both is not None else len(splits) > 1)]
    if not divided:
        return ()
    where = "training and in test" if roles is not None else "several folds"
    return (
        f"warning: {len(divided):,} of {counted(len(split_of), 'group')} of {field!r} are in {where}, such as "
        f"{sorted(divided)[0]}: --split-by {field} keeps them together",
    )

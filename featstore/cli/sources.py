"""Options that name labelled audio, shared by `pack` and `extract`, and the printed result of packing."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.options import HomePath, expand_home, note, say, with_options
from featstore.formatting import counted

if TYPE_CHECKING:
    from featstore.extract.pack import PackRecord

__all__ = ["SOURCE_OPTIONS", "parse_tasks", "print_packed", "source_given", "source_options"]

_SHOWN = 10
_KINDS = ("clip", "multilabel", "regression", "frame", "ctc", "asr", "contrastive")
_FILE = HomePath(dir_okay=False, path_type=Path)
_FOLDER = HomePath(file_okay=False, path_type=Path)
source_options = with_options(  # those that name audio are eager: `parse_tasks` requires tasks only without them
    click.option(
        "--audio",
        is_eager=True,
        type=_FOLDER,
        metavar="DIR",
        help="Folder of audio files. Alone, its sub-folders are the labels; with a table, relative paths start here.",
    ),
    click.option("--csv", is_eager=True, type=_FILE, metavar="FILE", help="CSV of clips."),
    click.option("--jsonl", is_eager=True, type=_FILE, metavar="FILE", help="JSON lines of clips."),
    click.option(
        "--hf",
        is_eager=True,
        metavar="PATH|NAME",
        callback=lambda _, __, value: expand_home(value),
        help="Hugging Face data set: parquet (a file or folder), a folder of save_to_disk, or a hub's NAME[:CONFIG].",
    ),
    click.option(
        "--lhotse",
        is_eager=True,
        type=_FILE,
        metavar="FILE",
        multiple=True,
        help="lhotse CutSet, or recordings and supervisions (the option twice), as JSON lines.",
    ),
    click.option("--kaldi", is_eager=True, type=_FOLDER, metavar="DIR", help="Kaldi data folder."),
    click.option("--path", metavar="NAME", help="Column of file paths, or of the audio of --hf.  [default: path]"),
    click.option("--key", metavar="NAME", help="Column of keys.  [default: the path or id]"),
    click.option("--label", default="label", show_default=True, metavar="NAME", help="Column of labels."),
    click.option(
        "--kind",
        type=click.Choice(_KINDS),
        help="What the label is: a class, several, a number, events, a transcript.  [default: by its values]",
    ),
    click.option("--separator", metavar="TEXT", help="Divides several classes in one text."),
    click.option(
        "--split-column", metavar="NAME", help="Column of splits or folds.  [default: split or fold, if there is one]"
    ),
    click.option(
        "--split-by",
        metavar="NAME",
        help="Draw stratified splits (70, 10, 20 %) that never divide a value of this column, such as speaker; "
        "the column of labels: without groups.",
    ),
    click.option("--folds", type=click.IntRange(min=2), metavar="N", help="Draw N folds instead of three splits."),
    click.option("--group", metavar="NAME", help="Column of groups that featstore's folds and intervals never divide."),
)
"""The fields of `featstore.extract.sources.Source`, but for ``split``."""

SOURCE_OPTIONS = ("audio", "csv", "jsonl", "hf", "lhotse", "kaldi")


def source_given(settings: dict[str, Any]) -> dict[str, Any]:
    """Remove the options of `source_options` from `settings`; return those that differ from their defaults."""
    from featstore.extract.sources import SOURCE_FIELDS, Source

    defaults = {field.name: field.default for field in fields(Source)}
    found = {name: settings.pop(name) for name in SOURCE_FIELDS}
    return {name: value for name, value in found.items() if value != defaults[name]}


def parse_tasks(context: click.Context, _: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """A click callback of tasks that are required unless audio is packed."""
    if not values and not any(context.params.get(name) for name in SOURCE_OPTIONS):
        raise click.UsageError(
            "Missing argument 'TASK...', or audio to pack (--audio, --csv, --hf or another)", context
        )
    return tuple(expand_home(value) or value for value in values)


def print_packed(record: PackRecord, *, err: bool = False) -> None:
    """Print what was skipped, what the label and the splits are, and warnings."""
    for skipped in record.skipped[:_SHOWN]:
        say(f"skipped {skipped.key}: {skipped.reason}", err=err)
    if len(record.skipped) > _SHOWN:
        say(f"skipped {len(record.skipped) - _SHOWN:,} more (--json lists all)", err=err)
    for text in record.notes:
        if not text.startswith("warning: "):
            note(text, err=err)
    note(f"label: {record.label!r}, {record.found}", err=err)
    for name, split in record.splits.items():
        of_shards = "" if name == split else f" ({split}-*.tar)"
        say(
            f"{name}: {counted(record.clips[split], 'clip')} in {counted(record.shards[split], 'shard')}{of_shards}",
            err=err,
        )
    for split, n_clips in record.clips.items():
        if split not in record.splits.values():
            say(f"{split}: {counted(n_clips, 'clip')}, not used by the manifest", err=err)
    for text in record.notes:
        if text.startswith("warning: "):
            say(f"featstore: {text}", err=True)
    if record.n_unlabelled:
        total = counted(sum(record.clips.values()) + len(record.skipped), "clip")
        say(
            f"featstore: {record.n_unlabelled:,} of {total} have no label at {record.label!r}: "
            "scoring needs a label for each",
            err=True,
        )

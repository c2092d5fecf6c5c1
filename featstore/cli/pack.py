"""`featstore pack`: shards and a draft manifest from a folder of audio files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.options import HomePath, emit_json, json_option, say
from featstore.errors import DataError, UsageError
from featstore.files import write_whole
from featstore.formatting import counted

if TYPE_CHECKING:
    from featstore.extract.pack import Clip, PackRecord

__all__ = ["pack"]

_VALID_NAMES = ("valid", "validation", "val", "dev")


@click.command()
@click.argument("out", metavar="OUT", type=HomePath(file_okay=False, path_type=Path))
@click.option(
    "--audio",
    "audio_dir",
    type=HomePath(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of audio files; without a table, the name of a subfolder is the label of its files.",
)
@click.option("--csv", "csv_path", type=HomePath(dir_okay=False, path_type=Path), metavar="FILE", help="CSV of clips.")
@click.option(
    "--jsonl",
    "jsonl_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSONL of clips.",
)
@click.option("--path", "path_field", default="path", show_default=True, metavar="NAME", help="Column of file paths.")
@click.option("--key", "key_field", metavar="NAME", help="Column of keys.  [default: the path]")
@click.option("--label", "label_field", default="label", show_default=True, metavar="NAME", help="Column of labels.")
@click.option("--split-column", "split_field", metavar="NAME", help="Column of splits or folds.")
@click.option("--split", default="all", show_default=True, metavar="NAME", help="Split of all other clips.")
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=1024,  # a multiple of the 16 clips of an X-ARES batch: no batch spans two shards
    show_default=True,
    metavar="N",
    help="Clips per shard.",
)
@click.option(
    "--manifest",
    "manifest_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file of the manifest.  [default: OUT.toml]",
)
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if a file was skipped.")
@json_option
def pack(
    *,
    out: Path,
    audio_dir: Path,
    csv_path: Path | None,
    jsonl_path: Path | None,
    path_field: str,
    key_field: str | None,
    label_field: str,
    split_field: str | None,
    split: str,
    shard_size: int,
    manifest_path: Path | None,
    fail_on_skip: bool,
    as_json: bool,
) -> None:
    """Pack audio files into shards, with a draft manifest.

    OUT gets WebDataset shards. Files are stored unchanged. Undecodable files are skipped and listed; nothing is
    overwritten.
    """
    from featstore.cli.progress import counting
    from featstore.extract.pack import Table, pack_clips, plan_folder, plan_table
    from featstore.tasks import load_manifest

    if csv_path and jsonl_path:
        raise UsageError("--csv and --jsonl exclude each other")
    table_path = csv_path or jsonl_path
    if table_path is None and (key_field or split_field):
        raise UsageError("--key and --split-column need --csv or --jsonl")
    toml = _manifest_path(out, requested=manifest_path)
    if table_path is None:
        clips, label_field = plan_folder(audio_dir, split=split), "label"
    else:
        table = Table(path=table_path, path_field=path_field, key_field=key_field, split_field=split_field)
        clips = plan_table(audio_dir, table, split=split)
    text = _manifest(clips, dataset=out.name, label_field=label_field)
    with counting("clips packed") as tick:
        record = pack_clips(clips, out, clips_per_shard=shard_size, on_clip=tick)
    if not any(record.clips.values()):
        n_files, first = counted(len(record.skipped), "file"), record.skipped[0]
        raise DataError(f"no clip can be packed, {n_files} skipped; the first, {first.key}: {first.reason}")
    toml.parent.mkdir(parents=True, exist_ok=True)
    write_whole(toml, text)
    load_manifest(toml)
    if as_json:
        emit_json([record])
    else:
        _print(record, out=out, toml=toml)
    without = [clip.key for clip in clips if _at(clip.meta, label_field) is None]
    if without:
        some = f"{len(without):,} of {counted(len(clips), 'clip')}"
        say(
            f"featstore: {some} have no label at {label_field!r}, such as {without[0]}: scoring needs a label for each",
            err=True,
        )
    if record.skipped and fail_on_skip:
        raise click.exceptions.Exit(1)


def _manifest_path(out: Path, *, requested: Path | None) -> Path:
    """Path of the manifest. Raises UsageError if it exists, or if OUT cannot be the folder of a dataset."""
    if not out.name:
        raise UsageError(f"the name of OUT is the name of the dataset: got '{out}'; try data/NAME")
    toml = out.with_name(f"{out.name}.toml") if requested is None else requested
    if toml.exists():
        raise UsageError(f"{toml} exists and is not overwritten: give another file with --manifest")
    return toml


def _print(record: PackRecord, *, out: Path, toml: Path) -> None:
    """Print the packed and the skipped files, and the next command."""
    for skipped in record.skipped:
        say(f"skipped {skipped.key}: {skipped.reason}")
    for name, n_clips in record.clips.items():
        say(f"{name}: {counted(n_clips, 'clip')} in {counted(record.shards[name], 'shard')}")
    task, data = quote(str(toml)), quote(str(out.parent))
    say(
        f"Wrote {toml}. Review title, kind and metric, then run:\n"
        f"  featstore extract {task} --encoder logmel \\\n    --data {data} --store embeddings.zarr"
    )


def _manifest(clips: Sequence[Clip], *, dataset: str, label_field: str) -> str:
    """A draft manifest: the kind follows from the labels, the splits from their names."""
    labels = [_at(clip.meta, label_field) for clip in clips]
    if all(label is None for label in labels):
        fields = dict.fromkeys(name for clip in clips for name in clip.meta)
        if label_field in fields:
            raise UsageError(f"{label_field!r} cannot be the column of labels: a dot reaches into an object, rename it")
        raise UsageError(f"no clip has a label at {label_field!r}: name one of {', '.join(fields)} with --label")
    several = any(isinstance(label, list) for label in labels)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", dataset).strip("-._") or "task"
    if name != dataset:
        raise UsageError(
            f"{dataset!r} cannot be the name of a dataset: letters, digits, '_', '-' and '.'; try {name!r}"
        )
    lines = [
        f"name = {_toml(name)}",
        f"title = {_toml(name)}",
        f"kind = {_toml('multilabel' if several else 'clip')}",
        f"metric = {_toml('mAP' if several else 'accuracy')}",
        "eval_weight = 1.0  # weight in averages; tasks of X-ARES have their number of test clips",
        "",
        "[data]",
        f"dataset = {_toml(name)}",
        "# crop_seconds = 10.0  # cut longer clips into windows",
        "",
        *_splits(list(dict.fromkeys(clip.split for clip in clips))),
        "",
        "[label]",
        f"field = {_toml(label_field)}",
        "",
        "[retrieve]",
        f"enabled = {'false' if several else 'true'}",
    ]
    return "\n".join(lines) + "\n"


def _at(meta: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None."""
    value: Any = meta
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _splits(names: Sequence[str]) -> list[str]:
    if "train" in names and "test" in names:
        valid = next((name for name in _VALID_NAMES if name in names), "test")
        comments = ["# no validation split: strict selects on a tenth of training"] if valid == "test" else []
        comments += [f"# not used: {name}" for name in names if name not in ("train", valid, "test")]
        pairs = [("train", "train"), ("valid", valid), ("test", "test")]
        return ["[splits]", *comments, *(f"{role} = {_toml(f'{name}-*.tar')}" for role, name in pairs)]
    if len(names) > 1:
        return ["[folds]", *(f"{_toml(name)} = {_toml(f'{name}-*.tar')}" for name in sorted(names))]
    pattern = _toml(f"{names[0]}-*.tar")
    comment = "# one set: strict makes five folds, retrieval leaves one clip out"
    return ["[splits]", comment, *(f"{role} = {pattern}" for role in ("train", "valid", "test"))]


def _toml(text: Any) -> str:
    """A basic string of TOML, which for printable text is a string of JSON."""
    return json.dumps(str(text), ensure_ascii=False)

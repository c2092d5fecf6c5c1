"""`featstore import`: embeddings that other software made, and a draft manifest for them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.completion import complete_tasks
from featstore.cli.options import HomePath, json_option, note, parse_names, say, say_json, store_option
from featstore.errors import FeatstoreError, UsageError
from featstore.files import write_whole
from featstore.formatting import counted, printable

if TYPE_CHECKING:
    from featstore.extract.import_embeddings import Imported, ImportRecord

__all__ = ["import_"]

_SHOWN = 5


@click.command("import")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=HomePath())
@click.option("--encoder", required=True, metavar="NAME", help="Name of the encoder in the store.")
@store_option()
@click.option("--dataset", metavar="NAME", help="Name of the dataset.  [default: that of --task]")
@click.option("--split", metavar="NAME", help="Split of all rows.  [default: all]")
@click.option("--split-column", metavar="NAME", help="Column of splits or folds.")
@click.option("--key", metavar="NAME", help="Column of keys.  [default: file name and number of the row]")
@click.option("--label", "label_field", default="label", show_default=True, metavar="NAME", help="Label of --manifest.")
@click.option(
    "--columns",
    callback=parse_names,
    metavar="NAME,NAME",
    help="Columns of the clips' JSON.  [default: all others]",
)
@click.option("--vector", metavar="NAME", help="Column, array or tensor of embeddings.  [default: the only one]")
@click.option("--frames", metavar="NAME", help="Column, array or tensor of frames.  [default: the only one]")
@click.option("--hop", type=float, metavar="SECONDS", help="Time from one frame to the next: stores the frames.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Data type of stored frames.",
)
@click.option(
    "--table",
    type=HomePath(dir_okay=False),
    metavar="FILE",
    multiple=True,
    help="CSV or JSONL with the columns of FILE, a line for each row; repeated for each FILE.",
)
@click.option(
    "--source", default="", metavar="TEXT", help="Origin of the embeddings, such as 'BEATs iter3, layer 9, 16 kHz'."
)
@click.option(
    "--task",
    metavar="TASK",
    shell_complete=complete_tasks,
    help="Task that has these splits, a name or a manifest.",
)
@click.option(
    "--manifest",
    "manifest_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write a draft manifest, unless FILE exists.",
)
@click.option("--replace", is_flag=True, help="Replace other content of the same splits.")
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if a row was skipped.")
@json_option
def import_(
    *,
    files: tuple[str, ...],
    store: str,
    label_field: str,
    task: str | None,
    source: str,
    table: tuple[str, ...],
    manifest_path: Path | None,
    fail_on_skip: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Import embeddings that other software made.

    FILE is .npz, .npy, .parquet, .safetensors, a folder of datasets' save_to_disk, or OWNER/NAME of a data set on the
    Hugging Face hub. All files of a split belong in one call; the same import again changes nothing.

    Rows without a key or with NaN are skipped and listed; rows are counted from 0. A file with any other error is
    refused, and the others are imported.

    \b
    featstore import train.npz --encoder E --dataset D --split train --store S
    featstore import X.npy --table X.csv --key id --split-column split \\
        --encoder E --dataset D --store S
    """  # noqa: D301 - click takes the character itself
    from featstore import api
    from featstore.cli.progress import counting

    if task is not None and manifest_path is not None:
        raise UsageError("--task names a manifest and --manifest drafts one: give one of them")
    with counting("files checked") as tick:
        imported = api.import_embeddings(
            files, store=store, task=task, source=source, table=table or None, progress=tick, **settings
        )
    if as_json:
        say_json([each.as_json() for each in (*imported, *imported.failures)])
    else:
        _print(imported, source=source)
    drafted = None
    if manifest_path is not None and imported:
        drafted = manifest_path
        wrote = _draft(imported[0], store, manifest_path, label_field=label_field)
        note(f"Wrote {drafted}" if wrote else f"{drafted} exists and is kept", err=as_json)
    if imported and not as_json:
        _print_next(imported[0], store, task=task, manifest=drafted)
    if imported.failures:
        for failure in imported.failures:
            say(f"featstore: {failure.message}", err=True)
        n_files = counted(len(files), "file")
        raise FeatstoreError(
            f"{len(imported.failures)} of {n_files} not imported{'; the others are in the store' if imported else ''}"
        )
    n_skipped = sum(len(record.skipped) for record in imported)
    if fail_on_skip and n_skipped:
        raise FeatstoreError(f"{counted(n_skipped, 'row')} skipped (--fail-on-skip)")


def _print(imported: Imported, *, source: str) -> None:
    """Print a line for each feature set, and below it what is not stored."""
    if imported:
        first = imported[0]
        words = f", {printable(source)}" if source else ""
        note(f"{first.encoder}@{first.fingerprint}: imported, dim {first.dim:,}{words}")
    for record in imported:
        frames = f", {counted(record.frames, 'frame')}" if record.frames else ""
        note(f"  {record.dataset}/{record.split}: {counted(record.clips, 'clip')}{frames}{_parts(record)}")
        for text in record.notes:
            note(f"    note: {printable(text, most=500)}")
        for clip in record.skipped[:_SHOWN]:
            note(f"    skipped: {printable(clip.shard)} {printable(clip.key)!r}, {clip.reason}")
        if len(record.skipped) > _SHOWN:
            note(f"    skipped: {len(record.skipped) - _SHOWN} more (--json lists all)")
    if imported and imported[0].ignored:
        note(f"  not stored: {', '.join(map(printable, imported[0].ignored))}")


def _parts(record: ImportRecord) -> str:
    written, deleted = record.parts_written, record.parts_deleted
    if not written and not deleted:
        return ", unchanged"
    text = f", {counted(written, 'part')} written"
    text += f", {record.parts_reused} reused" if record.parts_reused else ""
    return text + (f", {deleted} replaced" if deleted else "")


def _print_next(record: ImportRecord, store_url: str, *, task: str | None, manifest: Path | None) -> None:
    named = quote(task) if task is not None else "MANIFEST" if manifest is None else quote(str(manifest))
    encoder = f"{record.encoder}@{record.fingerprint}" if record.notes else record.encoder
    intro = "Next:"
    if named == "MANIFEST":
        intro = f"Next, with a manifest of dataset {record.dataset!r}, or after the same import with --manifest FILE:"
    elif manifest is not None:
        intro = f"Review title, kind and metric of {manifest}, then run:"
    note(f"{intro}\n  featstore probe {named} --encoder {encoder} --store {quote(store_url)}")


def _draft(record: ImportRecord, store_url: str, path: Path, *, label_field: str) -> bool:
    """Write a manifest of all splits that the store has of the dataset, unless the file exists."""
    from featstore.store import open_store
    from featstore.tasks import load_manifest
    from featstore.tasks.draft import draft_manifest, find_label

    if path.exists():
        load_manifest(path)
        return False
    encoder = f"{record.encoder}@{record.fingerprint}"
    feature_sets = open_store(store_url).feature_sets(encoder=encoder, dataset=record.dataset)
    label = find_label([meta for each in feature_sets for meta in each.meta], label_field)
    text = draft_manifest(dataset=record.dataset, label=label, splits=[each.split for each in feature_sets])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    load_manifest(path)
    return True

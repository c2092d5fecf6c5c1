"""`featstore verify`, `gc`, `compact`, `rename`, `copy` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from featstore.cli.completion import complete_folders
from featstore.cli.options import (
    HomePath,
    emit_json,
    feature_set_options,
    json_option,
    parse_store,
    say,
    store_argument,
    store_option,
)
from featstore.formatting import counted, redacted, spoken_bytes

__all__ = ["compact", "copy", "export", "gc", "rename", "verify"]


@click.command()
@store_option()
@click.option(
    "--repair", is_flag=True, help="Drop damaged parts, which the next extract encodes again, and repair documents."
)
@json_option
def verify(*, store: str, repair: bool, as_json: bool) -> None:
    """Check every checksum of a store, and list damaged parts.

    The exit code is 1 if damage remains.
    """
    from featstore import api
    from featstore.cli.progress import counting

    shown = redacted(store)
    with counting("parts verified") as tick:
        report = api.verify(store, repair=repair, on_part=lambda _: tick())
    if as_json:
        emit_json([report])
    else:
        for finding in report.findings:
            done = f" [repaired: {finding.remedy}]" if finding.repaired else ""
            say(f"{finding.where or shown}: {finding.problem}{done}")
        state = "sound" if not report.findings else "repaired" if report.sound else "DAMAGED"
        say(
            f"{shown}: {state}; {counted(report.parts, 'part')}, {counted(report.objects, 'object')}, "
            f"{spoken_bytes(report.bytes_read)} read, {counted(len(report.findings), 'finding')}"
        )
        if not repair and report.repairable:
            say(
                f"run `featstore verify --store {shown} --repair` to drop or repair damaged parts, then "
                "`featstore extract` again"
            )
    if not report.sound:
        raise click.exceptions.Exit(1)


@click.command()
@store_option()
@json_option
def gc(*, store: str, as_json: bool) -> None:
    """Delete superseded parts and the leftovers of killed runs."""
    from featstore import api

    records = api.gc(store)
    if as_json:
        emit_json(records)
        return
    for record in records:
        for name in record.deleted:
            say(f"deleted {record.path}/{name}" if record.path else f"deleted {name}")
        for name in record.left:
            say(f"kept {record.path}/{name}, which featstore did not write")
    say(f"{redacted(store)}: {sum(len(record.deleted) for record in records)} deleted")


@click.command()
@store_option()
@click.option(
    "--part-megabytes", type=click.FloatRange(min=1), default=256.0, show_default=True, help="Target size of a part."
)
@json_option
def compact(*, store: str, part_megabytes: float, as_json: bool) -> None:
    """Merge small neighbouring parts into larger ones. Nothing is encoded again."""
    from featstore import api

    records = api.compact(store, part_bytes=round(part_megabytes * 1e6))
    if as_json:
        emit_json(records)
        return
    for record in records:
        say(f"{record.path}: {record.parts_before} parts are now {record.parts_after}")
    if not records:
        say(f"{redacted(store)}: nothing to do")


@click.command()
@store_argument
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@json_option
def rename(*, store: str, old: str, new: str, as_json: bool) -> None:
    """Change the name that a store has for an encoder. Nothing is encoded again.

    OLD is a name (`logmel`: every recipe of that name) or one recipe (`logmel@3f9c2a71`). Layers and pools of the
    encoder are renamed with it. Scores keep the name under which they were computed.
    """
    from featstore import api

    records = api.rename(store, old, new)
    if as_json:
        emit_json(records)
        return
    for record in records:
        say(f"{record.before} is now {record.after}")


@click.command()
@click.argument("source", metavar="SRC", callback=parse_store, shell_complete=complete_folders)
@click.argument("target", metavar="DST", callback=parse_store, shell_complete=complete_folders)
@click.option("--only", type=click.Choice(["utterance"]), help="Copy the utterance vectors only, without frames.")
@feature_set_options
@json_option
def copy(*, source: str, target: str, only: str | None, as_json: bool, **chosen: Any) -> None:
    """Copy feature sets from one store to another.

    SRC and DST are folders or URLs. Every object is checked, and a part is copied completely or not at all: an
    interrupted copy resumes. Parts that DST has with the same shard content are skipped; parts with other content are
    replaced.
    """
    from featstore import api
    from featstore.cli.progress import counting

    with counting("parts copied") as tick:
        contents: Literal["utterance", "everything"] = "utterance" if only else "everything"
        records = api.copy(source, target, only=contents, on_part=lambda _: tick(), **chosen)
    if as_json:
        emit_json(records)
        return
    for record in records:
        say(
            f"{record.path}: {record.copied:,} of {counted(record.parts, 'part')} copied "
            f"({spoken_bytes(record.bytes)}), {record.there:,} skipped"
            + (f", {record.replaced:,} replaced" if record.replaced else "")
        )


@click.command()
@click.argument("out", type=HomePath(path_type=Path))
@store_option()
@feature_set_options
@click.option(
    "--format",
    type=click.Choice(["npz", "parquet", "zarr", "hf"]),
    help="npz: one NumPy file. parquet: one table. zarr: one group of dense arrays. hf: a folder of `datasets`.  "
    "[default: by the suffix of OUT (.npz, .parquet, .zarr)]",
)
@click.option("--frames", is_flag=True, help="Also write the frames.")
@click.option("--label", metavar="FIELD", help="Field of the clips' JSON for column `label`, with dots.")
@click.option("--force", is_flag=True, help="Replace an earlier export at OUT.")
@json_option
def export(*, out: Path, store: str, as_json: bool, **settings: Any) -> None:
    """Export one feature set for other programs.

    OUT is a file, or a folder for the formats zarr and hf.

    \b
    featstore export words.npz --store S --encoder logmel \\
      --dataset words --split train --label word
    """  # noqa: D301 - click takes the character itself
    from featstore import api

    record = api.export(store, out, **settings)
    if as_json:
        emit_json([record])
        return
    frames_too = "" if record.frames is None else f" and {counted(record.frames, 'frame')}"
    say(
        f"{record.out}: {counted(record.windows, 'window')}{frames_too} of {record.path}, {spoken_bytes(record.bytes)} "
        f"({', '.join(record.columns)})"
    )

"""`featstore export`: a feature set for another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featstore.cli.options import emit_json, feature_set_options, json_option, say, store_option
from featstore.wording import counted, spoken_bytes

if TYPE_CHECKING:
    from featstore.store.export import ExportFormat

__all__ = ["export"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@store_option
@feature_set_options
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["npz", "parquet", "zarr", "hf"]),
    required=True,
    help="npz: one NumPy file. parquet: one table. zarr: one group of dense arrays. hf: a folder of `datasets`.",
)
@click.option("--frames", is_flag=True, help="Write the frames too.")
@click.option("--label", metavar="FIELD", help="Field of the clips' JSON to be a column, `label`; dots reach inside.")
@click.option("--force", is_flag=True, help="Replace what an earlier export left at OUT.")
@json_option
def export(
    *,
    out: Path,
    store_url: str,
    encoder: str | None,
    dataset: str | None,
    split: str | None,
    file_format: ExportFormat,
    frames: bool,
    label: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write one feature set to OUT, a file or folder that other programs read.

    \b
    featstore export words.npz --store S --encoder logmel --dataset words --split train --format npz --label word
    """  # noqa: D301 - click takes the character itself
    from featstore.store import open_store
    from featstore.store.export import export_feature_set

    fs = open_store(store_url).select(encoder=encoder, dataset=dataset, split=split)
    record = export_feature_set(fs, out, file_format=file_format, frames=frames, label=label, force=force)
    if as_json:
        emit_json([record])
        return
    frames_too = "" if record.frames is None else f" and {counted(record.frames, 'frame')}"
    say(
        f"{record.out}: {counted(record.windows, 'window')}{frames_too} of {record.path}, {spoken_bytes(record.bytes)} "
        f"({', '.join(record.columns)})"
    )

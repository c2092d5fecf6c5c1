"""`featstore pack`: shards and a draft manifest from labelled audio."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

import click

from featstore.cli.options import HomePath, emit_json, json_option, say
from featstore.cli.sources import print_packed, source_options

__all__ = ["pack"]


@click.command()
@click.argument("out", metavar="OUT", type=HomePath(file_okay=False, path_type=Path))
@source_options
@click.option("--split", metavar="NAME", help="Split of all clips; no column of splits is used.  [default: all]")
@click.option(
    "--shard-size",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    metavar="N",
    help="Clips per shard.",
)
@click.option(
    "--manifest",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Output file of the manifest.  [default: OUT.toml]",
)
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if a file was skipped.")
@json_option
def pack(
    *, out: Path, shard_size: int, manifest: Path | None, fail_on_skip: bool, as_json: bool, **source: Any
) -> None:
    """Pack labelled audio into shards, with a draft manifest.

    The audio is a folder (--audio), a table (--csv, --jsonl), a Hugging Face data set (--hf), lhotse manifests
    (--lhotse) or a Kaldi data folder (--kaldi). OUT gets WebDataset shards. Files are stored unchanged, segments of
    recordings without loss. Undecodable files are skipped and listed; nothing is overwritten.
    """
    from featstore import api
    from featstore.cli.progress import counting

    with counting("clips packed") as tick:
        record = api.pack(out, manifest=manifest, shard_size=shard_size, progress=tick, **source)
    if as_json:
        emit_json([record])
    else:
        print_packed(record)
        task, data = quote(record.manifest), quote(str(out.parent))
        say(
            f"Wrote {record.manifest}. Review title, kind and metric, then run:\n"
            f"  featstore extract {task} --encoder logmel \\\n    --data {data} --store embeddings.zarr"
        )
    if record.skipped and fail_on_skip:
        raise click.exceptions.Exit(1)

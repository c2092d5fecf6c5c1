"""`featstore fetch`: shards from Zenodo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.options import HomePath, emit_json, json_option, note, tasks_argument
from featstore.formatting import counted, spoken_bytes

if TYPE_CHECKING:
    from featstore.fetch import FetchRecord

__all__ = ["fetch"]


@click.command()
@tasks_argument
@click.option(
    "--data",
    type=HomePath(file_okay=False, path_type=Path),
    required=True,
    envvar="FEATSTORE_DATA",
    show_envvar=True,
    metavar="DIR",
    help="Output folder, with a folder of shards for each dataset.",
)
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True, metavar="N", help="Parallel files.")
@click.option("--zenodo-url", default="https://zenodo.org", envvar="FEATSTORE_ZENODO_URL", hidden=True)
@json_option
def fetch(*, tasks: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Download the shards of tasks from their Zenodo records.

    Interrupted downloads resume. Each file is checked against the MD5 of its record and appears when it is complete.
    """
    from featstore import api
    from featstore.cli.progress import downloading

    records = api.fetch(tasks, progress=downloading, on_task=None if as_json else _print_record, **settings)
    if as_json:
        emit_json(records)


def _print_record(record: FetchRecord) -> None:
    n_new = len(record.files) - len(record.reused)
    note(
        f"{record.task}: {counted(len(record.shards), 'shard')} in {record.folder}; "
        f"{counted(n_new, 'file')} downloaded ({spoken_bytes(record.bytes_downloaded)}), {len(record.reused)} reused"
    )

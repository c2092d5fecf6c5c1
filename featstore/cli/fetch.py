"""`featstore fetch`: shards from Zenodo."""

from __future__ import annotations

from pathlib import Path

import click

from featstore.cli.options import HomePath, emit_json, json_option, note, tasks_argument
from featstore.formatting import counted, spoken_bytes

__all__ = ["fetch"]


@click.command()
@tasks_argument
@click.option(
    "--data",
    "data_dir",
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
def fetch(*, tasks: tuple[str, ...], data_dir: Path, jobs: int, zenodo_url: str, as_json: bool) -> None:
    """Download the shards of tasks from their Zenodo records.

    Interrupted downloads resume. Each file is checked against the MD5 of its record and appears when it is complete.
    """
    from featstore.cli.progress import downloading
    from featstore.fetch import fetch_task
    from featstore.tasks import find_task

    records = []
    for manifest in [find_task(task) for task in tasks]:
        with downloading() as watcher:
            record = fetch_task(manifest, data_dir, watcher=watcher, base_url=zenodo_url, jobs=jobs)
        records.append(record)
        if not as_json:
            n_new = len(record.files) - len(record.reused)
            note(
                f"{record.task}: {counted(len(record.shards), 'shard')} in {record.folder}; "
                f"{counted(n_new, 'file')} downloaded "
                f"({spoken_bytes(record.bytes_downloaded)}), {len(record.reused)} reused"
            )
    if as_json:
        emit_json(records)

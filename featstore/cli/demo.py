"""`featstore demo`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from featstore.cli.options import HomePath, emit_json, json_option, note

__all__ = ["demo"]


@click.command()
@click.option(
    "--dir",
    "directory",
    type=HomePath(file_okay=False, path_type=Path),
    default=Path("featstore-demo"),
    show_default=True,
    metavar="DIR",
    help="Output folder of data/, embeddings.zarr, results/ and report.html.",
)
@json_option
def demo(*, directory: Path, as_json: bool) -> None:
    """Run every stage once, on synthesised audio.

    Two encoders are extracted, probed and retrieved; the leaderboard is printed, and an HTML report is written. Nothing
    is downloaded. A second run reuses the audio and the embeddings.
    """
    from featstore.cli.progress import progress_bar
    from featstore.cli.tables import leaderboard_tables, show
    from featstore.demo import run_demo

    def write(line: str) -> None:
        note(line, err=as_json)

    with progress_bar() as progress:
        outcome = run_demo(directory, say=write, progress=progress)
    if as_json:
        emit_json(outcome.scores)
        return
    show(leaderboard_tables(outcome.leaderboard))
    total = sum(outcome.seconds.values())
    store, data, page = (quote(str(path)) for path in (outcome.store_path, outcome.data_dir, directory / "map.html"))
    note(f"Finished in {total:.1f} s. Next steps:")
    note(f"  featstore inspect {store} --health")
    note(f"  featstore probe demo-scenes --store {store} --protocol xares")
    note(f"  featstore explore logmel/demo-scenes/fold1 --store {store} \\")
    note(f"    --data {data} --out {page}")
    note(f"Report: {outcome.report_path}")

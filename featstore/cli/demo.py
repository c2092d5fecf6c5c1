"""`featstore demo`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from featstore.cli.options import emit_json, json_option, say

__all__ = ["demo"]


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("featstore-demo"),
    show_default=True,
    metavar="DIR",
    help="Gets data/, embeddings.zarr, results/ and report.html.",
)
@json_option
def demo(*, directory: Path, as_json: bool) -> None:
    """Make labelled audio, extract it with two encoders, probe, retrieve, print the leaderboard and write the report.

    Nothing is downloaded. A second run finds everything there.
    """
    from featstore.cli.progress import progress_bar
    from featstore.cli.tables import leaderboard_tables, show
    from featstore.demo import run_demo

    def tell(line: str) -> None:
        say(line, err=as_json)

    with progress_bar() as progress:
        outcome = run_demo(directory, say=tell, progress=progress)
    if as_json:
        emit_json(outcome.scores)
        return
    show(leaderboard_tables(outcome.leaderboard))
    total = sum(outcome.seconds.values())
    store, data, page = (quote(str(path)) for path in (outcome.store_path, outcome.data_dir, directory / "map.html"))
    say(f"{total:.1f} s in all. Look further:")
    say(f'  python -c "import featstore; print(featstore.open({str(outcome.store_path)!r}))"')
    say(f"  featstore probe demo-scenes --store {store} --protocol xares")
    say(f"  featstore inspect --store {store} --health")
    say(f"  featstore explore logmel/demo-scenes/fold1 --store {store} --data {data} --out {page}")
    say(f"Every score, curve and confusion on one page: {outcome.report_path}")

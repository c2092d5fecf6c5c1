"""`featstore report`."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report"]


@click.command()
@click.option(
    "--results",
    "results_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Where `probe` and `retrieve` wrote their scores.",
)
@click.option(
    "--format", "form", type=click.Choice(["table", "markdown", "csv", "json"]), default="table", show_default=True
)
@click.option(
    "--out",
    "out_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there instead of to the terminal.",
)
def report(*, results_dir: Path, form: str, out_path: Path | None) -> None:
    """Leaderboard: tasks by encoders for each track and protocol, with weighted averages."""
    from featstore.cli.console import leaderboard_tables, show
    from featstore.report import build, read_scores, to_csv, to_json, to_markdown

    scores = read_scores(results_dir)
    if form == "table":
        if out_path is None:
            show(leaderboard_tables(build(scores)))
            return
        with out_path.open("w", encoding="utf-8") as file:
            show(leaderboard_tables(build(scores)), stream=file)
        return
    text = {
        "markdown": lambda: to_markdown(build(scores)),
        "csv": lambda: to_csv(build(scores)),
        "json": lambda: to_json(scores),
    }[form]()
    if out_path is None:
        click.echo(text.rstrip("\n"))
    else:
        out_path.write_text(text, encoding="utf-8")

"""`featstore report`."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from featstore.cli.options import optional_store_option, require_folder_of, say, say_json_text
from featstore.errors import ResultsError, UsageError
from featstore.files import write_whole
from featstore.formatting import counted, spoken_bytes

if TYPE_CHECKING:
    from featstore.records import ScoreRecord
    from featstore.report import Grid

Form = Literal["table", "markdown", "csv", "json", "html"]

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
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "csv", "json", "html"]),
    default="table",
    show_default=True,
    help="html: one page that needs no other file and no network.",
)
@click.option(
    "--out",
    "out_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there instead of to the terminal.",
)
@click.option(
    "--published", is_flag=True, help="Add the published scores of X-ARES to tables of protocol xares, for reference."
)
@optional_store_option("With --format html: also the state of the embedding spaces that the scores were made from.")
@click.option("--title", metavar="TEXT", default="Audio encoders", show_default=True, help="Of the page.")
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A B",
    help="Instead: differences between two encoders, with 95 % intervals and tests on the same clips.",
)
def report(
    *,
    results_dir: Path,
    form: Form,
    out_path: Path | None,
    published: bool,
    store_url: str | None,
    title: str,
    pair: tuple[str, str] | None,
) -> None:
    """Leaderboard: tasks by encoders for each track and protocol, with weighted averages."""
    from featstore.report import read_results

    require_folder_of(out_path)
    if pair and published:
        raise UsageError("--compare and --published do not go together: published scores have no clips to pair")
    if store_url is not None and form != "html":
        raise UsageError("--store is for --format html: `featstore inspect --health` shows a store in a terminal")
    if form == "html" and pair:
        raise UsageError("--compare has no page: take --format table, markdown, csv or json")
    if form == "html" and out_path is None and sys.stdout.isatty():
        raise UsageError("--format html is a page for a browser: say --out FILE for where to write it")
    results = read_results(results_dir)
    if not results.scores and len(results.failures) == 1:
        raise results.failures[0]
    for failure in results.failures:
        say(f"featstore: {failure}", err=True)
    if results.unsealed:
        n_unsealed, first = counted(len(results.unsealed), "file"), results.unsealed[0]
        say(f"featstore: {n_unsealed} without a seal, whose values nothing guards, the first is {first}", err=True)
    if results.scores:
        _report(results.scores, form, out_path, published=published, store_url=store_url, title=title, pair=pair)
    if results.failures:
        raise ResultsError(f"{counted(len(results.failures), 'file')} of results skipped in {results_dir}")


def _report(
    scores: tuple[ScoreRecord, ...],
    form: Form,
    out_path: Path | None,
    *,
    published: bool,
    store_url: str | None,
    title: str,
    pair: tuple[str, str] | None,
) -> None:
    """Write what was asked for."""
    from featstore.report import build, grid, published_scores
    from featstore.report.render import render

    if pair:
        _write(*_comparison(scores, pair, form), out_path, form)
        return
    protocol = published_scores().protocol
    if published and form != "html" and not any(score.protocol == protocol for score in scores):
        nothing = f"nothing here was scored with --protocol {protocol}, so --published adds nothing"
        say(f"featstore: {nothing}", err=True)
        published = False
    if form == "table":
        board = build(scores, published=published_scores() if published else None)
        _write("", tuple(grid(table) for table in board.tables), out_path, form)
        return
    store = None
    if store_url is not None:
        from featstore.store import open_store

        store = open_store(store_url)
    _write(render(scores, form, title=title, published=published, store=store), (), out_path, form)


def _comparison(scores: tuple[ScoreRecord, ...], pair: tuple[str, str], form: Form) -> tuple[str, tuple[Grid, ...]]:
    """Text, or the tables to paint."""
    from featstore.report import compare, comparison_grids, comparison_to_csv, comparison_to_json, grids_to_markdown

    found = compare(scores, *pair)
    if form == "table":
        return "", comparison_grids(found)
    if form == "markdown":
        return grids_to_markdown(comparison_grids(found)), ()
    return comparison_to_csv(found) if form == "csv" else comparison_to_json(found), ()


def _write(text: str, grids: tuple[Grid, ...], out_path: Path | None, form: Form) -> None:
    """Print, or write to a file."""
    from featstore.cli.tables import painted, show

    if out_path is not None:
        if grids:
            drawn = StringIO()
            show(painted(grids), stream=drawn)
            text += drawn.getvalue()
        write_whole(out_path, text)
        say(f"{out_path}: {spoken_bytes(out_path.stat().st_size)}", err=True)
    elif grids:
        show(painted(grids))
    elif text:
        tell = say_json_text if form == "json" else say
        tell(text.rstrip("\n"))

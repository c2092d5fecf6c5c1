"""`featstore report`."""

from __future__ import annotations

import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from featstore.cli.options import (
    HomePath,
    note,
    report_problem,
    require_folder_of,
    say,
    say_json_text,
    store_option,
)
from featstore.errors import ResultsError, UsageError
from featstore.files import write_whole
from featstore.formatting import counted, spoken_bytes

if TYPE_CHECKING:
    from featstore.records import ScoreRecord
    from featstore.report import Grid

Form = Literal["table", "markdown", "latex", "csv", "json", "leaderboard-json", "html"]

__all__ = ["report"]


@click.command()
@click.argument("folders", metavar="[RESULTS]...", nargs=-1, type=HomePath(path_type=Path))
@click.option(
    "--results",
    "more_folders",
    type=HomePath(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Folder that `probe` and `retrieve` wrote scores to; may be repeated. Same as RESULTS.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "markdown", "latex", "csv", "json", "leaderboard-json", "html"]),
    help="json: the score records. leaderboard-json: the tables. html: one page.  [default: by the suffix of --out "
    "(.html, .md, .tex, .csv, .json, .txt), else table]",
)
@click.option(
    "--out",
    "out_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file instead of the terminal.",
)
@click.option(
    "--published", is_flag=True, help="Add the published scores of X-ARES to tables of protocol xares, for reference."
)
@store_option(
    "With --format html: also show the health of the embedding spaces of the scores.",
    required=False,
    from_environment=False,
)
@click.option("--title", metavar="TEXT", default="Audio encoders", show_default=True, help="Title of the page.")
@click.option(
    "--compare",
    "pair",
    nargs=2,
    metavar="A B",
    help="Show the differences between two encoders instead, with 95 % intervals and paired tests.",
)
def report(
    *,
    folders: tuple[Path, ...],
    more_folders: tuple[Path, ...],
    form: Form | None,
    out_path: Path | None,
    published: bool,
    store: str | None,
    title: str,
    pair: tuple[str, str] | None,
) -> None:
    """Print the leaderboard of scores.

    A table for each track, protocol and measure has encoders as rows, tasks as columns, weighted averages, rank
    intervals, tie groups, and the smallest difference that the test clips can resolve. RESULTS are folders that `probe`
    and `retrieve` wrote scores to; the newest of repeated scores is shown. A check mark is a score that a certificate
    of `featstore audit` in RESULTS covers.

    \b
    featstore report results
    featstore report results more-results --out report.html --store S
    featstore report results --compare logmel mfcc
    """  # noqa: D301 - click takes the character itself
    from featstore.report import read_results
    from featstore.report.results import renamed_encoders

    folders += more_folders
    if not folders:
        raise click.UsageError("Missing argument 'RESULTS': a folder that `probe --results` wrote to.")
    require_folder_of(out_path)
    form = form or ("table" if out_path is None else _format_of(out_path))
    if pair and published:
        raise UsageError("--compare and --published exclude each other: published scores have no clips to pair")
    if store is not None and form != "html":
        raise UsageError("--store needs --format html; `featstore inspect --health` prints the health of a store")
    if form in ("html", "leaderboard-json") and pair:
        raise UsageError(f"--compare has no --format {form}: use table, markdown, latex, csv or json")
    if form == "html" and out_path is None and sys.stdout.isatty():
        raise UsageError("--format html writes a page for a browser: give --out FILE")
    results = read_results(*folders)
    if not results.scores and len(results.failures) == 1:
        raise results.failures[0]
    for failure in results.failures:
        report_problem(str(failure))
    if results.unsealed:
        n_unsealed, first = counted(len(results.unsealed), "file"), results.unsealed[0]
        report_problem(f"{n_unsealed} without a seal, so changes cannot be detected; the first is {first}")
    for names in renamed_encoders(results.scores):
        report_problem(
            f"{', '.join(names)} are names of one encoder with the same embeddings, each with a row: delete the score "
            "files of the old name"
        )
    certified = _certified(folders)
    if results.scores:
        text, grids = (
            _comparison(results.scores, pair, form)
            if pair
            else _leaderboard(results.scores, form, published=published, store=store, title=title, certified=certified)
        )
        _write(text, grids, out_path, form)
    if results.failures:
        where = ", ".join(map(str, folders))
        raise ResultsError(f"skipped {counted(len(results.failures), 'damaged file')} in {where}")


def _certified(folders: tuple[Path, ...]) -> frozenset[str]:
    """Hashes of the scores that certificates in the folders cover; a certificate that covers none is reported."""
    from featstore.diagnostics.certificate import certified_scores
    from featstore.report import read_certificates

    certificates, failures = read_certificates(*folders)
    for failure in failures:
        report_problem(str(failure))
    for each in certificates:
        if not each.certified:
            found = counted(len(each.findings), "finding")
            report_problem(f"the audit of {each.recipes[0].group} has {found}: no score is certified by it")
    return certified_scores(certificates)


def _format_of(path: Path) -> Form:
    """The format that the suffix of a file names."""
    from featstore.report.render import FORMAT_OF_SUFFIX

    formats: dict[str, Form] = {**FORMAT_OF_SUFFIX, ".txt": "table"}
    form = formats.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"the suffix of {path.name!r} names no format: it is {', '.join(formats)}, or give --format")
    return form


def _leaderboard(
    scores: tuple[ScoreRecord, ...],
    form: Form,
    *,
    published: bool,
    store: str | None,
    title: str,
    certified: frozenset[str],
) -> tuple[str, tuple[Grid, ...]]:
    """The leaderboard as text, or as tables for the terminal."""
    from featstore.report import build, grid, published_scores
    from featstore.report.render import render
    from featstore.store import open_store

    protocol = published_scores().protocol
    if published and form != "html" and not any(score.protocol == protocol for score in scores):
        report_problem(f"no score has --protocol {protocol}, so --published adds nothing")
        published = False
    if form == "table":
        board = build(scores, published=published_scores() if published else None, certified=certified)
        return "", tuple(grid(table) for table in board.tables)
    opened = None if store is None else open_store(store)
    return render(scores, form, title=title, published=published, store=opened, certified=certified), ()


def _comparison(scores: tuple[ScoreRecord, ...], pair: tuple[str, str], form: Form) -> tuple[str, tuple[Grid, ...]]:
    """A comparison as text, or as tables for the terminal."""
    from featstore import api
    from featstore.report import (
        comparison_grids,
        comparison_to_csv,
        comparison_to_json,
        grids_to_latex,
        grids_to_markdown,
    )

    found = api.compare(scores, *pair)
    if form == "table":
        return "", comparison_grids(found)
    if form == "markdown":
        return grids_to_markdown(comparison_grids(found)), ()
    if form == "latex":
        return grids_to_latex(comparison_grids(found)), ()
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
        note(f"{out_path}: {spoken_bytes(out_path.stat().st_size)}", err=True)
    elif grids:
        show(painted(grids))
    elif text:
        write = say_json_text if form in ("json", "leaderboard-json") else say
        write(text.rstrip("\n"))

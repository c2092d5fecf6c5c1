"""`featstore audit`: proof that a store holds an encoder's vectors, and that scores follow from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.completion import complete_encoders, complete_folders, complete_tasks
from featstore.cli.options import (
    HomePath,
    emit_json,
    expand_home,
    json_option,
    loading_options,
    note,
    require_folder_of,
    store_argument,
)
from featstore.formatting import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from featstore.diagnostics.certificate import Certificate

__all__ = ["audit"]

_SHOWN = 10


@click.command()
@store_argument
@click.option(
    "--encoder",
    metavar="SPEC",
    required=True,
    shell_complete=complete_encoders,
    help="The encoder, as for `featstore extract`; all of its layers, pools and options in the store are audited.",
)
@click.option(
    "--data",
    metavar="DIR",
    required=True,
    envvar="FEATSTORE_DATA",
    show_envvar=True,
    shell_complete=complete_folders,
    callback=lambda _, __, value: expand_home(value),
    help="Folder or URL with one folder of shards per dataset.",
)
@click.option(
    "--sample",
    metavar="N%|N",
    default="1%",
    show_default=True,
    help="Clips of each recipe to encode again: a percentage, or a number.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Repeat the sample of a certificate.  [default: drawn by the operating system]",
)
@click.option("--dataset", metavar="NAME", help="Audit this dataset alone (`words`, or `words+crop5s`).")
@click.option(
    "--results",
    type=HomePath(path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Compute the encoder's scores in this folder again; may be repeated.",
)
@click.option(
    "--task",
    "tasks",
    metavar="FILE",
    multiple=True,
    callback=lambda _, __, values: tuple(map(expand_home, values)),
    shell_complete=complete_tasks,
    help="Manifest of a score that is neither built in nor in --data; may be repeated.",
)
@click.option(
    "--score-tolerance",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Accepted difference of a score.  [default: 0.001]",
)
@loading_options()
@click.option(
    "--out",
    "out_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File of the certificate.  [default: NAME.certificate.json in the first --results, else here]",
)
@json_option
def audit(*, store: str, results: tuple[Path, ...], out_path: Path | None, as_json: bool, **settings: Any) -> None:
    """Prove that a store holds an encoder's vectors.

    Verifies checksums, encodes a random sample of clips again, compares vectors, windows and labels with the stored
    ones, computes the scores in --results again, and writes a certificate. The exit code is 1 if anything differs.

    \b
    featstore audit S --encoder logmel --data D
    featstore audit S --encoder ./mine.py --data D --sample 5% --results R
    """  # noqa: D301 - click takes the character itself
    from featstore import api
    from featstore.cli.progress import steps

    require_folder_of(out_path)
    # an encoder may print, and stdout is for results
    with steps(prefix="auditing") as on_step, redirect_stdout(sys.stderr):
        found = api.audit(store, results=results, on_step=on_step, **settings)
    path = found.write(out_path or _default_path(found, results))
    if as_json:
        emit_json([found])
    else:
        _print(found)
        note(f"{path}: the certificate, seed {found.seed}")
    if not found.certified:
        raise click.exceptions.Exit(1)


def _default_path(found: Certificate, results: tuple[Path, ...]) -> Path:
    from featstore.diagnostics.certificate import CERTIFICATE_SUFFIX

    folder = results[0] if results else Path()
    return folder / f"{found.recipes[0].group}{CERTIFICATE_SUFFIX}"


def _print(found: Certificate) -> None:
    from featstore.cli.tables import lines_below, plain_table, show

    rows = [
        (
            each.group,
            f"{each.sampled:,} of {each.clips:,}",
            "-" if each.largest_change is None else f"{each.largest_change:.1g}",
            f"{each.tolerance:g}",
            *(f"{probability:.3f}" for probability in each.missed.values()),
        )
        for each in found.recipes
    ]
    fractions = [f"{float(fraction):.0%}" for fraction in found.recipes[0].missed]
    header = ("recipe", "clips encoded", "change", "tolerance", *(f"missed {each}" for each in fractions))
    tables: list[RenderableType] = [
        plain_table(header, rows),
        lines_below(
            [
                "change: largest change of a vector, relative to its norm",
                f"missed {fractions[0]}: probability of missing a forgery of {fractions[0]} of the clips",
            ]
        ),
    ]
    if found.scores:
        scored = [
            (
                each.task,
                each.track,
                each.protocol,
                each.metric,
                f"{each.value:.4f}",
                "-" if each.recomputed is None else f"{each.recomputed:.4f}",
                "yes" if each.agrees else "NO",
            )
            for each in found.scores
        ]
        tables.append(plain_table(("task", "track", "protocol", "metric", "score", "from store", "agrees"), scored))
    if found.other_scores:
        tables.append(lines_below([f"not audited: {counted(len(found.other_scores), 'score')} of other encoders"]))
    show(*tables, lines_below(_findings(found)), lines_below([_line(found)]))


def _findings(found: Certificate) -> Iterator[str]:
    for each in found.findings[:_SHOWN]:
        yield f"{each.kind.upper()} {each.where}: {each.problem}"
    if len(found.findings) > _SHOWN:
        yield f"and {counted(len(found.findings) - _SHOWN, 'more finding')}; --json and the certificate list all"


def _line(found: Certificate) -> str:
    """The certificate in one line."""
    groups = ", ".join(each.group for each in found.recipes[:3]) + (", ..." if len(found.recipes) > 3 else "")
    digest = found.as_json()["sha256"][:16]
    if not found.certified:
        return f"NOT CERTIFIED: {counted(len(found.findings), 'finding')} in {groups}; certificate {digest}"
    most = max(each.forged_at_most for each in found.recipes)
    follow = f" and {counted(len(found.scores), 'score')}" if found.scores else ""
    return (
        f"CERTIFIED: {groups}{follow}; at most {most:.2%} of the clips forged (95 % confidence); certificate {digest}"
    )

"""`featstore diff`: two embedding spaces on the same clips."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featstore.cli.completion import complete_folders
from featstore.cli.options import emit_json, json_option, parse_store, report_problem, store_option
from featstore.errors import UsageError
from featstore.formatting import counted

if TYPE_CHECKING:
    from featstore.diagnostics.diff import SpaceDiff
    from featstore.metrics.similarity import Estimate

__all__ = ["diff"]

_SHOWN = 5

_WORDS = {
    "cka": ("linear CKA", "1: equal up to rotation and scale"),
    "overlap": ("neighbour overlap", "share of the {k} nearest clips that both have"),
    "index_overlap": ("index overlap", "the same for queries by B in an index of A"),
    "procrustes": ("Procrustes residual", "share that rotation and scale do not explain; 0: none"),
    "rank_correlation": ("rank correlation", "of the similarities of pairs (Spearman)"),
}


def _limits(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """A click callback that reads MEASURE=X pairs."""
    limits: dict[str, float] = {}
    for pair in values:
        name, _equals, text = pair.partition("=")
        try:
            limits[name.replace("-", "_")] = float(text)
        except ValueError:
            raise click.BadParameter(f"{pair!r} is not MEASURE=X, such as overlap=0.9", param=option) from None
    if unknown := sorted(limits.keys() - _WORDS.keys()):
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(_WORDS)}", param=option)
    return limits


@click.command()
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@store_option()
@click.option(
    "--store-b",
    metavar="URL",
    callback=parse_store,
    shell_complete=complete_folders,
    help="Store of B.  [default: that of A]",
)
@click.option("--dataset", metavar="NAME", help="Dataset of the clips (`words`, or `words+crop5s`).")
@click.option("--split", metavar="NAME", help="Split or fold of the clips.")
@click.option(
    "--k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Number of neighbours."
)
@click.option(
    "--max-clips",
    type=click.IntRange(min=3),
    default=5000,
    show_default=True,
    metavar="N",
    help="Compare a random sample of this size if more clips are common.",
)
@click.option(
    "--min",
    "at_least",
    multiple=True,
    metavar="MEASURE=X",
    callback=_limits,
    help="Exit with 1 if a measure is below X: overlap, index_overlap, cka, rank_correlation; may be repeated.",
)
@click.option(
    "--max",
    "at_most",
    multiple=True,
    metavar="MEASURE=X",
    callback=_limits,
    help="Exit with 1 if a measure is above X, for example procrustes=0.1; may be repeated.",
)
@json_option
def diff(*, store: str, at_least: dict[str, float], at_most: dict[str, float], as_json: bool, **settings: Any) -> None:
    """Compare two encoders, layers, precisions or versions on the same clips.

    A and B are names in the store (`logmel`, or `logmel@3f9c2a71`). Imported embeddings can be compared too. Clips are
    matched by dataset, split and key.

    \b
    featstore diff wav2vec2 logmel --store S
    featstore diff model@1b2c3d4e model@5f607182 --store S \\
      --min index_overlap=0.95              may the old index stay?
    """  # noqa: D301 - click takes the character itself
    from featstore import api

    found = api.diff(store, **settings)
    for name in (*at_least, *at_most):
        if found.value_of(name) is None:
            raise UsageError(f"{name} is undefined for {found.a} and {found.b}: choose another measure")
    if as_json:
        emit_json([found])
    else:
        _print(found)
    failed = [
        f"{name} is {value:.4f}, {'below' if low else 'above'} {limit:g}"
        for limits, low in ((at_least, True), (at_most, False))
        for name, limit in limits.items()
        if (value := found.value_of(name)) is not None and (value < limit if low else value > limit)
    ]
    for each in failed:
        report_problem(each)
    if failed:
        raise click.exceptions.Exit(1)


def _print(found: SpaceDiff) -> None:
    from featstore.cli.tables import lines_below, plain_table, show

    rows, meanings = [], []
    for name, (title, meaning) in _WORDS.items():
        estimate: Estimate | None = getattr(found, name)
        if estimate is not None:
            interval = "-" if estimate.low is None else f"{estimate.low:.3f} to {estimate.high:.3f}"
            value = "-" if estimate.value is None else f"{estimate.value:.3f}"
            rows.append((title, value, interval))
            meanings.append(f"{title}: {meaning.format(k=found.k)}")
    drawn = "" if found.clips == found.common else f", a random sample of {found.common:,},"
    lines = [f"{counted(found.clips, 'clip')}{drawn} of {', '.join(found.feature_sets)}"]
    if found.only_a or found.only_b:
        lines.append(f"not compared: {found.only_a:,} clips that only A has, {found.only_b:,} that only B has")
    if found.largest_change is not None:
        lines.append(f"largest change of a vector, without rotation: {found.largest_change:.2g} of its norm")
    title = f"A: {found.a}, {found.dim_a} dimensions\nB: {found.b}, {found.dim_b} dimensions"
    show(plain_table(("measure", "value", "95 % interval"), rows, title=title), lines_below([*meanings, *lines]))
    if found.moved:
        moved = [f"{each.moved:.3f}  {each.overlap:4.0%}  {each.clip}" for each in found.moved[:_SHOWN]]
        show(
            lines_below(["clips that moved most: 1 - cosine after A is rotated onto B; neighbours kept", *moved]),
        )

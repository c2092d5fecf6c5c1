"""`featstore check`: tests of an encoder before its embeddings are stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.completion import complete_encoders
from featstore.cli.options import emit_json, json_option, loading_options, recipe_options
from featstore.errors import EncoderError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from featstore.encoders.check import Check, EncoderReport

__all__ = ["check"]


@click.command()
@click.argument("spec", metavar="ENCODER", shell_complete=complete_encoders)
@loading_options()
@recipe_options
@json_option
def check(*, spec: str, as_json: bool, **settings: Any) -> None:
    """Test an encoder on synthesised audio.

    \b
    embeddings:  dependence on batch, padding and chance; declared hop
    failures:    10 ms, 10 min, silence, clipping, range of float16
    cost:        speed and memory by batch size, and the suggested size

    Settings are those of `featstore extract`. The exit code is 1 if a check failed; warnings do not count.
    """  # noqa: D301 - click takes the character itself
    from featstore import api
    from featstore.cli.progress import steps
    from featstore.cli.tables import show, verdict_table

    # an encoder may print, and stdout is for results
    with steps() as on_step, redirect_stdout(sys.stderr):
        report = api.check(spec, on_step=on_step, **settings)
    if as_json:
        emit_json(report.checks)
    else:
        rows = [(each.name, each.verdict, each.measured, each.advice) for each in report.checks]
        show(verdict_table(rows, title=_title(report)), *_speeds(report.checks))
    if report.failed:
        first, *rest = report.failed
        others = f" and {len(rest)} more checks" if rest else ""
        raise EncoderError(f"{report.encoder} fails {first.name}{others}: {first.advice}")


def _title(report: EncoderReport) -> str:
    ran = report.checks[0].figures
    if not ran:
        return report.encoder
    return f"{report.encoder}@{ran['fingerprint']} on {ran['device']}, {ran['precision']}, --padding {ran['padding']}"


def _speeds(checks: Sequence[Check]) -> Iterator[RenderableType]:
    """A table of batch sizes, if the speed was measured."""
    from featstore.cli.tables import plain_table
    from featstore.encoders.check import times

    for figures in (each.figures for each in checks if "batches" in each.figures):
        rows = [
            (
                f"{each['batch_seconds']:g}",
                times(each["times_real_time"]),
                "-" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:,.0f}",
                "→ --batch-seconds" if each["batch_seconds"] == figures["suggested_batch_seconds"] else "",
            )
            for each in figures["batches"]
        ]
        title = f"Speed by batch size (windows of {figures['window_seconds']:g} s)"
        yield plain_table(("batch seconds", "x real time", "peak memory, MB", ""), rows, title=title)

"""`featstore check`: tests of an encoder before its embeddings are stored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.completion import complete_encoders
from featstore.cli.options import emit_json, encoder_settings, json_option, parse_arguments
from featstore.errors import EncoderContractError, EncoderError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from featstore.encoders.check import Check
    from featstore.encoders.encoder import Encoder
    from featstore.extract import ExtractOptions

__all__ = ["check"]


@click.command()
@click.argument("spec", metavar="ENCODER", shell_complete=complete_encoders)
@encoder_settings(device_help="auto, cpu, cuda or cuda:N.")
@json_option
def check(
    *,
    spec: str,
    encoder_args: tuple[str, ...],
    trust_remote_code: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Test an encoder on synthesised audio.

    \b
    embeddings:  dependence on batch, padding and chance; declared hop
    failures:    10 ms, 10 min, silence, clipping, range of float16
    cost:        speed and memory by batch size, and the suggested size

    Settings are those of `featstore extract`. The exit code is 1 if a check failed; warnings do not count.
    """  # noqa: D301 - click takes the character itself
    from featstore.cli.progress import steps
    from featstore.cli.tables import show, verdict_table
    from featstore.encoders import load_encoder
    from featstore.encoders.check import broken_contract
    from featstore.extract import ExtractOptions

    options = ExtractOptions(**settings)
    arguments = parse_arguments(encoder_args)
    # an encoder may print, and stdout is for results
    with steps() as on_step, redirect_stdout(sys.stderr):
        on_step(f"loading {spec}")
        try:
            encoder = load_encoder(spec, arguments=arguments, trust_remote_code=trust_remote_code)
        except EncoderContractError as error:
            name, checks = spec, _alone(broken_contract(error))
        else:
            name, checks = encoder.name, _checks(encoder, options, on_step)
    if as_json:
        emit_json(checks)
    else:
        rows = [(each.name, each.verdict, each.measured, each.advice) for each in checks]
        show(verdict_table(rows, title=_title(name, checks)), *_speeds(checks))
    failed = [each for each in checks if each.verdict == "failed"]
    if failed:
        others = f" and {len(failed) - 1} more checks" if len(failed) > 1 else ""
        raise EncoderError(f"{name} fails {failed[0].name}{others}: {failed[0].advice}")


def _alone(check: Check) -> tuple[Check, ...]:
    return (check,)


def _checks(encoder: Encoder, options: ExtractOptions, on_step: Callable[[str], None]) -> tuple[Check, ...]:
    """Run every check with the recipe and padding rule of an extraction with these options."""
    from featstore.encoders.check import Budget, check_encoder
    from featstore.encoders.devices import pick_device
    from featstore.extract import plan_recipe
    from featstore.extract.windows import Padding, plan_windows

    device = pick_device(options.device)
    recipe = plan_recipe(encoder, encoder.outputs[0], device=device, options=options)
    plan = partial(
        plan_windows,
        crop_seconds=None,
        padding=Padding.parse(options.padding),
        sample_rate_hz=recipe.sample_rate_hz,
        longest_seconds=encoder.longest_window_seconds(options.max_window_seconds),
        input_seconds=encoder.facts.input_seconds,
    )
    return check_encoder(encoder, recipe=recipe, device=device, plan=plan, budget=Budget(), on_step=on_step)


def _title(name: str, checks: Sequence[Check]) -> str:
    ran = checks[0].figures
    if not ran:
        return name
    return f"{name}@{ran['fingerprint']} on {ran['device']}, {ran['precision']}, --padding {ran['padding']}"


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

"""`featstore extract`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from featstore.cli.options import (
    emit_json,
    encoder_settings,
    json_option,
    parse_arguments,
    parse_layers,
    parse_names,
    store_option,
    tasks_argument,
)
from featstore.errors import DataError

if TYPE_CHECKING:
    from featstore.records import ExtractRecord

__all__ = ["extract"]


@click.command()
@tasks_argument
@click.option(
    "--encoder",
    "spec",
    metavar="SPEC",
    required=True,
    help="logmel, mfcc, hf:NAME_OR_PATH[#layer=K] (a transformers audio model), dasheng:base|0.6b|1.2b|PATH, "
    "./file.py[:Class] or package.module:Class.",
)
@encoder_settings
@click.option(
    "--layers",
    metavar="K,K,last",
    callback=parse_layers,
    help="Hidden states to keep, each a feature set NAME.layerK, all from one pass.  [default: last]",
)
@click.option(
    "--pool",
    "pools",
    metavar="mean,max,std",
    default="mean",
    show_default=True,
    callback=parse_names,
    help="Utterance vectors to keep: mean, max or std over frames; the last two are feature sets NAME.max, NAME.std.",
)
@click.option(
    "--data",
    "data_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Holds one folder of shards for each dataset.",
)
@store_option
@click.option("--split", "splits", metavar="NAME", multiple=True, help="Only this split or fold; may be repeated.")
@click.option(
    "--frames",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Store frames. auto: where the task scores frames.",
)
@click.option(
    "--batch-seconds",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Audio in a batch.  [default: what a GPU is measured to be busy with; 16 on a CPU, 64 without weights]",
)
@click.option(
    "--workers", type=click.IntRange(min=0), default=0, help="Decoding threads.  [default: one per core, at most 16]"
)
@click.option(
    "--max-clip-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Leave out clips that claim to be longer.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder with torch.compile; the start is slow.")
@click.option(
    "--profile",
    "profile_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write a trace of the first batches, to open in chrome://tracing or Perfetto.",
)
@click.option("--prune", is_flag=True, help="Drop embeddings of shards whose files are no longer there.")
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if any clip was left out.")
@json_option
def extract(
    *,
    tasks: tuple[str, ...],
    spec: str,
    encoder_args: tuple[str, ...],
    layers: tuple[int | None, ...],
    pools: tuple[Any, ...],
    trust_remote_code: bool,
    data_dir: Path,
    store_url: str,
    splits: tuple[str, ...],
    fail_on_skip: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Encode the shards of tasks into a store, each shard once.

    What the store has already, under the same encoder and settings, is not encoded again. A run that was killed goes on
    where it was.
    """
    from featstore.cli.console import progress_bar
    from featstore.encoders import load_encoder
    from featstore.extract import ExtractOptions, extract_task
    from featstore.manifest import find_task

    options = ExtractOptions(**settings)
    manifests = [find_task(task) for task in tasks]
    arguments = parse_arguments(encoder_args)
    with _its_prints_on_stderr():
        encoder = load_encoder(
            spec, arguments=arguments, layers=layers, pools=pools, trust_remote_code=trust_remote_code
        )
    records: list[ExtractRecord] = []
    for manifest in manifests:
        with progress_bar() as progress, _its_prints_on_stderr():
            done = extract_task(
                manifest,
                encoder,
                data_dir=data_dir,
                store_url=store_url,
                options=options,
                splits=splits,
                progress=progress,
            )
        records += done
        options = replace(options, profile_path=None)  # the trace is of the first batches
        if not as_json:
            for record, following in zip_longest(done, done[1:]):
                _tell(record, timed=following is None or following.split != record.split)
    if as_json:
        emit_json(records)
    n_skipped = sum(len(record.skipped) for record in records)
    if fail_on_skip and n_skipped:
        raise DataError(
            f"{n_skipped} clips were left out, and --fail-on-skip was given: `featstore extract ... --json` lists them"
        )


def _its_prints_on_stderr() -> redirect_stdout[TextIO]:
    """An encoder is somebody's own code and may print, but stdout is for what the command has to say."""
    return redirect_stdout(sys.stderr)


def _tell(record: ExtractRecord, *, timed: bool) -> None:
    """Print what was done; the time of the pass that made several feature sets of a split once, after the last."""
    what = f"{record.encoder}@{record.fingerprint}  {record.dataset}/{record.split}"
    click.echo(
        f"{what}: {record.clips:,} clips, {record.windows:,} windows, {record.audio_seconds / 60:,.1f} min; "
        f"{record.shards_done} shards encoded, {record.shards_reused} reused"
    )
    if record.shards_done and timed:
        seconds, settings = record.seconds, record.settings
        click.echo(
            f"  on {settings['device']} in {settings['precision']}, batches of {settings['batch_seconds']:g} s, "
            f"{settings['workers']} decoding threads; {record.bytes_written / 1e6:,.1f} MB written"
        )
        click.echo(
            f"  {seconds['total']:.1f} s, the device busy {seconds['busy'] / max(seconds['total'], 1e-9):.0%} of them; "
            f"the run waited on {record.bottleneck} (encode {seconds['encode']:.1f} s, "
            f"waiting for clips {seconds['wait_clips']:.1f} s, for the store {seconds['wait_write']:.1f} s)"
        )
    shown = 10
    for clip in record.skipped[:shown]:
        click.echo(f"  left out: {clip.shard} {clip.key!r}: {clip.reason}")
    if record.gone:
        click.echo(
            f"  {len(record.gone)} shards are in the store and no longer in --data, {record.gone[0]} among them: "
            "they count as before; --prune drops them"
        )
    if len(record.skipped) > shown:
        click.echo(f"  left out: {len(record.skipped) - shown} more (all of them with --json)")

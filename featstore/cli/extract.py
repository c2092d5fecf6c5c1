"""`featstore extract`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from featstore.cli.advice import advice
from featstore.cli.completion import complete_encoders, complete_folders
from featstore.cli.options import (
    emit_json,
    encoder_settings,
    json_option,
    parse_arguments,
    parse_layers,
    parse_names,
    say,
    store_option,
    tasks_argument,
)
from featstore.errors import DataError
from featstore.wording import counted, lasting, spoken_bytes

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
    shell_complete=complete_encoders,
    help="logmel, mfcc, hf:NAME_OR_PATH (a transformers audio model) or dasheng:base|0.6b|1.2b|PATH, both with "
    "#layer=K for a hidden state, ./file.py[:Class] or package.module:Class.",
)
@encoder_settings(
    device_help="auto, cpu, cuda or cuda:N; all (every GPU) or a list such as cuda:0,cuda:2: a process for each."
)
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
    required=True,
    metavar="DIR|URL",
    shell_complete=complete_folders,
    help="Holds one folder of shards for each dataset: a folder, or s3://, gs://, az://, hf:// or https://.",
)
@store_option
@click.option("--split", "splits", metavar="NAME", multiple=True, help="Only this split or fold; may be repeated.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: this machine. ray: a Ray cluster, a worker for each GPU; every node must reach --data and --store.",
)
@click.option(
    "--ray-address", metavar="auto|HOST:PORT", help="Ray cluster to use.  [default: one is started on this machine]"
)
@click.option(
    "--cpus-per-worker", type=click.IntRange(min=1), help="Cores of each Ray worker.  [default: its share, or 4]"
)
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
    help="Audio in a batch.  [default: what a GPU is measured to be busy with; 16 on a CPU, 64 for a light encoder]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    help="Decoding threads, of each process.  [default: one per core that is its share, at most 16]",
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
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Encode though the encoder returns other numbers than when its embeddings were stored, or others each time.",
)
@click.option(
    "--share",
    "share_text",
    metavar="K/N",
    help="Encode only the K-th of N shares of the shards.  [default: as RANK and WORLD_SIZE, or SLURM, say]",
)
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
    data_dir: str,
    store_url: str,
    splits: tuple[str, ...],
    share_text: str | None,
    engine: Literal["local", "ray"],
    ray_address: str | None,
    cpus_per_worker: int | None,
    fail_on_skip: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Encode the shards of tasks into a store, each shard once.

    What the store has already, under the same encoder and settings, is not encoded again. A run that was killed goes on
    where it was.
    """
    from featstore.cli.console.progress import progress_bar
    from featstore.extract import EncoderRequest, ExtractOptions, extract_task, open_engine
    from featstore.extract.ranks import local_rank, parse_share, share_from_environment
    from featstore.manifest import find_task

    share = parse_share(share_text) if share_text else share_from_environment(os.environ)
    if not share.is_whole:
        say(f"{share}: other shards are left to other processes", err=True)
    options = ExtractOptions(**settings)
    manifests = [find_task(task) for task in tasks]
    request = EncoderRequest(
        spec=spec,
        arguments=parse_arguments(encoder_args),
        layers=layers,
        pools=pools,
        trust_remote_code=trust_remote_code,
    )
    records: list[ExtractRecord] = []
    stdout = sys.stdout
    with (
        _other_prints_on_stderr(),
        open_engine(
            request,
            device=options.device,
            engine=engine,
            ray_address=ray_address,
            cpus_per_worker=cpus_per_worker,
            local_rank=local_rank(os.environ),
        ) as encoding,
    ):
        for manifest in manifests:
            with progress_bar() as progress:
                done = extract_task(
                    manifest,
                    encoding,
                    data_dir=data_dir,
                    store_url=store_url,
                    options=options,
                    splits=splits,
                    progress=progress,
                    share=share,
                )
            records += done
            if not as_json:
                with redirect_stdout(stdout):
                    _tell_all(done)
    if options.profile_path is not None:
        encoded = any(record.shards_done for record in records)
        told = f"trace in {options.profile_path}" if encoded else "nothing was encoded, so there is no trace"
        say(told, err=True)
    if as_json:
        emit_json(records)
    n_skipped = sum(len(record.skipped) for record in records)
    if fail_on_skip and n_skipped:
        raise DataError(
            f"{n_skipped} clips were left out, and --fail-on-skip was given: `featstore extract ... --json` lists them"
        )


def _other_prints_on_stderr() -> redirect_stdout[TextIO]:
    """An encoder is somebody's own code and may print, as may Ray; but stdout is for what the command has to say."""
    return redirect_stdout(sys.stderr)


def _tell_all(done: Sequence[ExtractRecord]) -> None:
    for record, following in zip_longest(done, done[1:]):
        _tell(record, timed=following is None or following.split != record.split)
    held = dict.fromkeys(f"{record.encoder}@{record.fingerprint}" for record in done if record.asked_as)
    if held:
        say(f"  the store has this encoder as {', '.join(held)}")


def _where(record: ExtractRecord) -> str:
    device = record.settings["device"]
    return str(device) if record.workers == 1 else f"{record.workers} devices like {device}"


def _who(record: ExtractRecord) -> str:
    return "the run" if record.workers == 1 else f"{record.workers} workers, their seconds added up,"


def _filled(record: ExtractRecord) -> str:
    """How full batches were, where it matters: a CPU is as fast at any size."""
    fill = record.settings["batch_fill"]
    return "" if fill is None or record.settings["device"] == "cpu" else f", {fill:.0%} full"


def _tell(record: ExtractRecord, *, timed: bool) -> None:
    """Print what was done; the time of the pass that made several feature sets of a split once, after the last."""
    what = f"{record.encoder}@{record.fingerprint}  {record.dataset}/{record.split}"
    say(
        f"{what}: {counted(record.clips, 'clip')}, {counted(record.windows, 'window')}, "
        f"{lasting(record.audio_seconds)}; "
        f"{counted(record.shards_done, 'shard')} encoded, {record.shards_reused:,} reused"
    )
    if record.shards_done and timed:
        seconds, settings = record.seconds, record.settings
        say(
            f"  on {_where(record)} in {settings['precision']}, "
            f"batches of {settings['batch_seconds']:g} s{_filled(record)}, "
            f"{settings['workers']} decoding threads; {spoken_bytes(record.bytes_written)} written"
        )
        busy = seconds["busy"] / max(seconds["total"] * record.workers, 1e-9)
        say(
            f"  {seconds['total']:.1f} s, for {busy:.0%} of which the device was busy; "
            f"{_who(record)} waited on {record.bottleneck} (encode {seconds['encode']:.1f} s, "
            f"waiting for clips {seconds['wait_clips']:.1f} s, for the store {seconds['wait_write']:.1f} s)"
        )
        for death in record.deaths:
            say(f"  {death}")
        for line in advice(record):
            say(f"  {line}")
    for note in record.notes:
        say(f"  note: {note}")
    shown = 10
    for clip in record.skipped[:shown]:
        say(f"  left out: {clip.shard} {clip.key!r}: {clip.reason}")
    if record.gone:
        say(
            f"  {len(record.gone)} shards are in the store and no longer in --data, {record.gone[0]} among them: "
            "they count as before; --prune drops them"
        )
    if len(record.skipped) > shown:
        say(f"  left out: {len(record.skipped) - shown} more (all of them with --json)")

"""`featstore extract`."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from featstore.cli.completion import complete_encoders, complete_folders
from featstore.cli.options import (
    advice,
    emit_json,
    encoder_settings,
    expand_home,
    json_option,
    parse_arguments,
    parse_layers,
    parse_names,
    say,
    store_option,
    tasks_argument,
)
from featstore.errors import DataError, FeatstoreError
from featstore.formatting import counted, lasting, spoken_bytes
from featstore.system import CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS

if TYPE_CHECKING:
    from featstore.extract import TaskPlan
    from featstore.records import ExtractFailure, ExtractRecord

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
    envvar="FEATSTORE_DATA",
    show_envvar=True,
    callback=lambda _, __, value: expand_home(value),
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
    help="Audio in a batch.  [default: auto-tuned on a GPU; "
    f"{CPU_BATCH_SECONDS:g} on a CPU, {LIGHT_BATCH_SECONDS:g} for a light encoder]",
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
    help="Skip clips that claim to be longer; a later run with a higher limit encodes those within it.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder with torch.compile; the start is slow.")
@click.option(
    "--profile",
    "profile_path",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write a trace of the first batches, to open in chrome://tracing or Perfetto.",
)
@click.option("--prune", is_flag=True, help="Drop embeddings of shards whose files are no longer in --data.")
@click.option(
    "--check-shards",
    is_flag=True,
    help="Read and hash every shard, and encode again those that were replaced without a new size or time.",
)
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
@click.option("--fail-on-skip", is_flag=True, help="Exit with 1 if any clip was skipped.")
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

    What the store has already, under the same encoder and settings, is not encoded again. A run that was killed
    resumes.

    The shards of all tasks are looked up first. A task whose shards are missing, or a shard that cannot be read, does
    not stop the others: it is reported, and the exit code is 1. An encoder that does not keep its contract and a store
    that cannot be written end the run.
    """
    from featstore.extract import EncoderRequest, ExtractOptions, open_engine, plan_tasks
    from featstore.extract.distributed import local_rank, parse_share, share_from_environment
    from featstore.tasks import find_task

    share = parse_share(share_text) if share_text else share_from_environment(os.environ)
    if not share.is_complete:
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
    run = _Run(as_json=as_json, stdout=sys.stdout)
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
        plans = plan_tasks(
            manifests,
            encoding,
            data_dir=data_dir,
            store_url=store_url,
            options=options,
            splits=splits,
            share=share,
        )
        run.extract_all(plans)
    if options.profile_path is not None:
        encoded = any(record.shards_done for record in run.records)
        told = f"trace in {options.profile_path}" if encoded else "nothing was encoded, so there is no trace"
        say(told, err=True)
    if as_json:
        emit_json((*run.records, *run.failures))
    run.raise_failures()
    n_skipped = sum(len(record.skipped) for record in run.records)
    if fail_on_skip and n_skipped:
        raise DataError(
            f"{n_skipped} clips were skipped, and --fail-on-skip was given: `featstore extract ... --json` lists them"
        )


@dataclass(slots=True, kw_only=True)
class _Run:
    """The records of all tasks, and what failed: an error that ends the run is raised when the rest is printed."""

    as_json: bool
    stdout: TextIO
    records: list[ExtractRecord] = field(default_factory=list)
    failures: list[ExtractFailure] = field(default_factory=list)
    fatal: FeatstoreError | OSError | MemoryError | None = None

    def extract_all(self, plans: Sequence[TaskPlan | ExtractFailure]) -> None:
        """Extract one task after another, and print the result of each."""
        from featstore.cli.progress import progress_bar
        from featstore.extract import extract_plans
        from featstore.records import ExtractFailure

        unready = [plan for plan in plans if isinstance(plan, ExtractFailure)]
        if len(unready) < len(plans):
            for failure in unready:  # now, and not after the hours that the others may take; and at the end once more
                say(f"featstore: {failure.task} is not extracted: {_one_line(failure.message)}", err=True)
        for done in extract_plans(plans, watch=progress_bar):
            self.records += done.records
            self.failures += [] if done.failure is None else [done.failure]
            self.fatal = self.fatal or done.fatal
            if not self.as_json:
                with redirect_stdout(self.stdout):
                    _tell_all(done.records)

    def raise_failures(self) -> None:
        """Print a line for each failure, and raise one error for all.

        Raises
        ------
        FeatstoreError, OSError, MemoryError
            The error that ended the run; else a FeatstoreError that counts what failed.
        """
        broken = {
            (record.dataset, record.split, each.shard): f"{record.dataset}/{record.split}: {each.reason}"
            for record in self.records
            for each in record.broken
        }
        lines = [*broken.values(), *(f"{each.task}: {each.message}" for each in self.failures if each.error)]
        if self.fatal is not None:
            unrun = [each.task for each in self.failures if not each.error]
            lines = lines[:-1]  # the error itself is the last line
            lines += [f"not run: {', '.join(unrun)}"] if unrun else []
        elif not lines:
            return
        if self.fatal is not None or len(lines) > 1:
            for line in lines:
                say(f"featstore: {_one_line(line)}", err=True)
        if self.fatal is not None:
            raise self.fatal
        raise self._sum(broken, lines)

    def _sum(self, broken: Collection[object], lines: Sequence[str]) -> FeatstoreError:
        """What failed, counted; with the reason where it is one thing."""
        counts = [f"{len(broken):,} of {counted(self._n_shards(), 'shard')} could not be read"] if broken else []
        if self.failures:
            n_tasks = len({record.task for record in self.records} | {each.task for each in self.failures})
            counts.append(f"{len(self.failures)} of {counted(n_tasks, 'task')} failed")
        done = ", all others are in the store" if self.records else ""
        codes = {1} if broken else {each.exit_code for each in self.failures}
        told = f"{', '.join(counts)}{done}"
        if len(lines) == 1:
            told = f"{told}: {lines[0]}" if self.records else self.failures[0].message
        error = FeatstoreError(told)
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        return error

    def _n_shards(self) -> int:
        """Shards of this run, each feature set's once."""
        return sum({(record.dataset, record.split): record.shards_total for record in self.records}.values())


def _one_line(text: str) -> str:
    return " ".join(text.split())


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


def _changes(record: ExtractRecord) -> Iterator[str]:
    """How the shards in the store differ from those in --data that the manifest names."""
    if record.changed:
        yield f"{_some(record.changed)}: encoded again, for the files changed"
    if record.gone:
        yield f"{_some(record.gone)}: no longer in --data; the embeddings stay until --prune drops them"
    if record.unnamed:
        yield f"{_some(record.unnamed)}: not named by this manifest; the embeddings stay, and it is not scored on them"


def _some(shards: Sequence[str]) -> str:
    """How many shards, and the first of them."""
    return f"{counted(len(shards), 'shard')} ({shards[0]}{', ...' if len(shards) > 1 else ''})"


def _tell(record: ExtractRecord, *, timed: bool) -> None:
    """Print what was done; the time of the pass that made several feature sets of a split once, after the last."""
    what = f"{record.encoder}@{record.fingerprint}  {record.dataset}/{record.split}"
    say(
        f"{what}: {counted(record.clips, 'clip')}, {counted(record.windows, 'window')}, "
        f"{lasting(record.audio_seconds)}; "
        f"{counted(record.shards_done, 'shard')} encoded, {record.shards_reused:,} reused"
        + (f", {len(record.broken):,} broken" if record.broken else "")
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
    for line in _changes(record):
        say(f"  {line}")
    if len(record.skipped) > shown:
        say(f"  left out: {len(record.skipped) - shown} more (all of them with --json)")

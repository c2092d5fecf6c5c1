"""`featstore extract`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from featstore.cli.completion import complete_encoders, complete_folders, complete_tasks
from featstore.cli.options import (
    HomePath,
    advice,
    emit_json,
    encoder_settings,
    expand_home,
    json_option,
    note,
    parse_arguments,
    parse_layers,
    parse_names,
    say,
    store_option,
)
from featstore.cli.sources import SOURCE_OPTIONS, parse_tasks, print_packed, source_options
from featstore.errors import DataError, FeatstoreError, UsageError
from featstore.formatting import counted, lasting, spoken_bytes
from featstore.system import CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS

if TYPE_CHECKING:
    from featstore.extract import TaskPlan
    from featstore.extract.distributed import Share
    from featstore.records import ExtractFailure, ExtractRecord

__all__ = ["extract"]

COLUMNS = 80
_SHOWN = 10
_log = logging.getLogger("featstore")


@click.command()
@click.argument(
    "tasks",
    metavar="[TASK...]",
    nargs=-1,
    callback=parse_tasks,
    shell_complete=complete_tasks,
)
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
    envvar="FEATSTORE_DATA",
    show_envvar=True,
    callback=lambda _, __, value: expand_home(value),
    metavar="DIR|URL",
    shell_complete=complete_folders,
    help="Folder or URL (s3://, gs://, az://, hf://, https://) with a folder of shards for each dataset.  "
    "[default for packed audio: beside the store]",
)
@store_option
@source_options
@click.option("--split", "splits", metavar="NAME", multiple=True, help="Only this split or fold; may be repeated.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: this machine. ray: a Ray cluster, one worker per GPU; every node must reach --data and --store.",
)
@click.option("--ray-address", metavar="auto|HOST:PORT", help="Ray cluster.  [default: start one on this machine]")
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
    help="Decoding threads of each process.  [default: its share of the cores, at most 16]",
)
@click.option(
    "--max-clip-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Skip longer clips; a later run with a higher limit encodes them.",
)
@click.option("--compile", "compiled", is_flag=True, help="Compile the encoder with torch.compile: a slow start.")
@click.option(
    "--profile",
    "profile_path",
    type=HomePath(dir_okay=False, path_type=Path),
    metavar="FILE.json",
    help="Write a trace of the first batches, to open in chrome://tracing or Perfetto.",
)
@click.option("--prune", is_flag=True, help="Drop embeddings of shards whose files are no longer in --data.")
@click.option(
    "--check-shards",
    is_flag=True,
    help="Hash every shard, and encode again those whose content changed without a new size or time.",
)
@click.option(
    "--allow-drift",
    is_flag=True,
    help="Encode although the encoder's output differs from the stored reference output, or between two calls.",
)
@click.option(
    "--share",
    "share_text",
    metavar="K/N",
    help="Encode only the K-th of N shares of the shards.  [default: from RANK and WORLD_SIZE, or from SLURM]",
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
    data_dir: str | None,
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

    Shards that the store has under the same encoder and settings are reused. A killed run resumes. --audio, --csv,
    --jsonl, --hf, --lhotse or --kaldi pack labelled audio first, unless an earlier run did and nothing has changed.

    A task whose shards are missing, and a shard that cannot be read, do not stop the others: they are reported, and the
    exit code is 1. An encoder that breaks its contract and a store that cannot be written end the run.
    """
    from featstore.extract import EncoderRequest, ExtractOptions, open_engine, plan_tasks
    from featstore.extract.distributed import local_rank, parse_share, share_from_environment
    from featstore.tasks import find_task

    share = parse_share(share_text) if share_text else share_from_environment(os.environ)
    if not share.is_complete:
        note(f"{share}: other processes encode the other shards", err=True)
    tasks, data_dir, settings = _with_packed(tasks, data_dir, settings, store_url, share=share, as_json=as_json)
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
        redirect_stdout(sys.stderr),  # an encoder or Ray may print, and stdout is for results
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
        note(f"trace in {options.profile_path}" if encoded else "no trace, because nothing was encoded", err=True)
    if as_json:
        emit_json((*run.records, *run.failures))
    run.raise_failures()
    n_skipped = sum(len(record.skipped) for record in run.records)
    if fail_on_skip and n_skipped:
        raise DataError(
            f"{counted(n_skipped, 'clip')} skipped (--fail-on-skip); `featstore extract ... --json` lists them"
        )


def _with_packed(
    tasks: tuple[str, ...],
    data_dir: str | None,
    settings: dict[str, Any],
    store_url: str,
    *,
    share: Share,
    as_json: bool,
) -> tuple[tuple[str, ...], str, dict[str, Any]]:
    """Pack the audio that options name: the tasks with its manifest, the folder of shards, and the other options."""
    from featstore.extract.sources.source import SOURCE_FIELDS

    others = {name: value for name, value in settings.items() if name not in SOURCE_FIELDS}
    if any(settings[name] for name in SOURCE_OPTIONS):
        from featstore.cli.progress import counting
        from featstore.extract.pack import pack_for_store
        from featstore.extract.sources import Source

        if not share.is_complete:
            raise UsageError("audio is packed by one process: run `featstore pack` first, then extract in shares")
        if tasks and data_dir is None:
            raise click.UsageError("Missing option '--data': the folder of shards of the named tasks")
        source = Source(**{name: settings[name] for name in SOURCE_FIELDS})
        with counting("clips packed") as tick:
            packed = pack_for_store(source, store_url=store_url, data_dir=data_dir, on_clip=tick)
        state = "up to date" if packed.reused else "packed"
        note(f"{packed.folder}: {state}; the task is {packed.manifest}", err=as_json)
        print_packed(packed, err=as_json)
        tasks, data_dir = (*tasks, packed.manifest), str(Path(packed.folder).parent)
    if data_dir is None:
        raise click.UsageError("Missing option '--data'")
    return tasks, data_dir, others


@dataclass(slots=True, kw_only=True)
class _Run:
    """The records and failures of all tasks; an error that ended the run is raised after they are printed."""

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
            for failure in unready:  # before the others, which may take hours, and again at the end
                say(f"featstore: {failure.task} is not extracted: {_one_line(failure.message)}", err=True)
        for done in extract_plans(plans, watch=progress_bar):
            self.records += done.records
            self.failures += [] if done.failure is None else [done.failure]
            self.fatal = self.fatal or done.fatal
            if not self.as_json:
                with redirect_stdout(self.stdout):
                    _print_records(done.records)

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
        """One error that counts the failures; a single failure is given with its reason."""
        counts = [f"{len(broken):,} of {counted(self._n_shards(), 'shard')} could not be read"] if broken else []
        if self.failures:
            n_tasks = len({record.task for record in self.records} | {each.task for each in self.failures})
            counts.append(f"{len(self.failures)} of {counted(n_tasks, 'task')} failed")
        done = "; the others are in the store" if self.records else ""
        codes = {1} if broken else {each.exit_code for each in self.failures}
        message = f"{', '.join(counts)}{done}"
        if len(lines) == 1:
            message = f"{message}: {lines[0]}" if self.records else self.failures[0].message
        error = FeatstoreError(message)
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        return error

    def _n_shards(self) -> int:
        """Number of shards of this run, each counted once for all feature sets."""
        return sum({(record.dataset, record.split): record.shards_total for record in self.records}.values())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _print_records(done: Sequence[ExtractRecord]) -> None:
    """Print the feature sets, one line for each split, and below it what the user may have to act on."""
    names = list(dict.fromkeys(f"{record.encoder}@{record.fingerprint}" for record in done))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    if names:
        note(f"{', '.join(names[:2])}{more}")
    for _, of_split in groupby(done, key=lambda record: (record.dataset, record.split)):
        records = list(of_split)
        lines = {_split_line(record): record for record in records}
        for line, record in lines.items():
            note(f"  {line}" if len(lines) == 1 else f"  {line}  [{record.encoder}@{record.fingerprint}]")
        _log_details(records)
        for line in dict.fromkeys(line for record in records for line in _remarks(record)):
            note(f"    {line}")
        if records[-1].shards_done:
            for line in (*records[-1].deaths, *advice(records[-1])):
                note(f"    {line}")
    known_as = dict.fromkeys(f"{record.encoder}@{record.fingerprint}" for record in done if record.asked_as)
    if known_as:
        note(f"  the store has this encoder as {', '.join(known_as)}")


def _split_line(record: ExtractRecord) -> str:
    """The result of a split on one line of 80 columns: counts, then as much of the speed as fits.

    The speed is audio seconds per second of the pass that encoded the split.
    """
    line = f"{record.dataset}/{record.split}: {counted(record.clips, 'clip')}"
    counts = {"encoded": record.shards_done, "reused": record.shards_reused, "broken": len(record.broken)}
    for state in [state for state, n_shards in counts.items() if n_shards] or ["encoded"]:
        line += f", {counted(counts[state], 'shard')} {state}"
    if record.shards_done:
        for part in (f"{record.seconds['total']:.1f} s", f"bottleneck: {record.bottleneck}"):
            line += f", {part}" if len(line) + len(part) + 4 <= COLUMNS else ""
    return line


def _log_details(records: Sequence[ExtractRecord]) -> None:
    """Log the feature sets of a split, and the settings and stages of the pass that encoded it (--verbose)."""
    for record in records:
        name = f"{record.encoder}@{record.fingerprint}/{record.dataset}/{record.split}"
        _log.info("%s: %s, %s", name, counted(record.windows, "window"), lasting(record.audio_seconds))
    record = records[-1]
    if not record.shards_done:
        return
    seconds, settings = record.seconds, record.settings
    device = str(settings["device"]) if record.workers == 1 else f"{record.workers} devices like {settings['device']}"
    fill = "" if settings["batch_fill"] is None else f" ({settings['batch_fill']:.0%} full)"
    busy = seconds["busy"] / max(seconds["total"] * record.workers, 1e-9)
    _log.info(
        "%s, %s, batches of %g s%s, %d decoding threads, %s written",
        *(device, settings["precision"], settings["batch_seconds"], fill, settings["workers"]),
        spoken_bytes(record.bytes_written),
    )
    _log.info(
        "device %.0f %% busy; bottleneck: %s; encode %.1f s, wait for clips %.1f s, wait for the store %.1f s%s",
        *(100 * busy, record.bottleneck, seconds["encode"], seconds["wait_clips"], seconds["wait_write"]),
        "" if record.workers == 1 else f" (sums over {record.workers} workers)",
    )


def _remarks(record: ExtractRecord) -> Iterator[str]:
    """Notes, skipped clips, and shards that differ between the store and --data."""
    for text in record.notes:
        yield f"note: {text}"
    for clip in record.skipped[:_SHOWN]:
        yield f"skipped: {clip.shard} {clip.key!r}: {clip.reason}"
    if len(record.skipped) > _SHOWN:
        yield f"skipped: {len(record.skipped) - _SHOWN} more (--json lists all)"
    if record.changed:
        yield f"{_some(record.changed)}: encoded again, because the files changed"
    if record.gone:
        yield f"{_some(record.gone)}: no longer in --data; --prune drops the embeddings"
    if record.unnamed:
        yield f"{_some(record.unnamed)}: not named by this manifest; kept, and not scored"


def _some(shards: Sequence[str]) -> str:
    """The number of shards, and the first of them."""
    return f"{counted(len(shards), 'shard')} ({shards[0]}{', ...' if len(shards) > 1 else ''})"

"""`featstore extract`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from featstore.cli.completion import complete_encoders, complete_folders, complete_tasks
from featstore.cli.options import (
    HomePath,
    advice,
    emit_json,
    expand_home,
    json_option,
    loading_options,
    note,
    parse_encoder_name,
    parse_layers,
    parse_names,
    recipe_options,
    report_problem,
    store_option,
)
from featstore.cli.sources import parse_tasks, print_packed, source_given, source_options
from featstore.errors import DataError, FeatstoreError
from featstore.formatting import counted, lasting, spoken_bytes
from featstore.system import CPU_BATCH_SECONDS, LIGHT_BATCH_SECONDS

if TYPE_CHECKING:
    from featstore.extract import Progress, TaskExtraction
    from featstore.extract.pack import PackRecord
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
    metavar="SPEC",
    required=True,
    shell_complete=complete_encoders,
    help="logmel, mfcc, hf:NAME_OR_PATH (a transformers audio model) or dasheng:base|0.6b|1.2b|PATH, both with "
    "#layer=K for a hidden state, hear:MODULE[=WEIGHTS], onnx:FILE, torchscript:FILE, st:NAME_OR_PATH (a "
    "sentence-transformers model), ./file.py[:NAME] or package.module:NAME (a class, or a function that returns an "
    "nn.Module).",
)
@click.option(
    "--name",
    metavar="NAME",
    callback=parse_encoder_name,
    help="Name of the feature sets, NAME@fingerprint/...  [default: the class, or the last part of the path]",
)
@loading_options("auto, cpu, cuda or cuda:N; all (every GPU) or a list such as cuda:0,cuda:2: a process for each.")
@recipe_options
@click.option(
    "--layers",
    metavar="0-3,6,last|all",
    callback=parse_layers,
    help="Hidden states to keep, each a feature set NAME.layerK, all from one pass. last: the output of the encoder. "
    "all: every hidden state, without last (all,last has both).  [default: last]",
)
@click.option(
    "--pool",
    metavar="mean,max,std",
    default="mean",
    show_default=True,
    callback=parse_names,
    help="Utterance vectors to keep: mean, max or std over frames; the last two are feature sets NAME.max, NAME.std.",
)
@click.option(
    "--data",
    envvar="FEATSTORE_DATA",
    show_envvar=True,
    callback=lambda _, __, value: expand_home(value),
    metavar="DIR|URL",
    shell_complete=complete_folders,
    help="Folder or URL (s3://, gs://, az://, hf://, https://) with a folder of shards for each dataset.  "
    "[default for packed audio: beside the store]",
)
@store_option()
@source_options
@click.option("--split", metavar="NAME", multiple=True, help="Only this split or fold; may be repeated.")
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
    share_text: str | None,
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
    from featstore import api
    from featstore.extract.distributed import local_rank, parse_share, share_from_environment

    share = parse_share(share_text) if share_text else share_from_environment(os.environ)
    if not share.is_complete:
        note(f"{share}: other processes encode the other shards", err=True)
    source = source_given(settings)
    run = _Run(as_json=as_json, stdout=sys.stdout)
    with run.packing, redirect_stdout(sys.stderr):  # an encoder or Ray may print, and stdout is for results
        try:
            api.extract(
                tasks,
                share=share,
                local_rank=local_rank(os.environ),
                progress=run.open_progress,
                on_task=run.add,
                on_clip_packed=run.count_packed() if source else None,
                on_packed=run.show_packed,
                **source,
                **settings,
            )
        except (FeatstoreError, OSError, MemoryError) as error:
            if error is not run.fatal:
                raise
    if settings["profile_path"] is not None:
        encoded = any(record.shards_done for record in run.records)
        trace = f"trace in {settings['profile_path']}"
        note(trace if encoded else "no trace, because nothing was encoded", err=True)
    if as_json:
        emit_json((*run.records, *run.failures))
    run.raise_failures()
    n_skipped = sum(len(record.skipped) for record in run.records)
    if fail_on_skip and n_skipped:
        raise DataError(
            f"{counted(n_skipped, 'clip')} skipped (--fail-on-skip); `featstore extract ... --json` lists them"
        )


class _Run:
    """The results of all tasks, each printed when it is known."""

    def __init__(self, *, as_json: bool, stdout: TextIO) -> None:
        self._as_json = as_json
        self._stdout = stdout
        self._results: list[TaskExtraction] = []
        self._started = False
        self.packing = ExitStack()

    def count_packed(self) -> Callable[[], None]:
        """Show the number of packed clips until all are packed."""
        from featstore.cli.progress import counting

        return self.packing.enter_context(counting("clips packed"))

    def show_packed(self, packed: PackRecord) -> None:
        """Print what was packed."""
        self.packing.close()
        state = "up to date" if packed.reused else "packed"
        with redirect_stdout(self._stdout):
            note(f"{packed.folder}: {state}; the task is {packed.manifest}", err=self._as_json)
            print_packed(packed, err=self._as_json)

    @contextmanager
    def open_progress(self) -> Iterator[Progress]:
        """Show the progress of one task; before the first, print the tasks whose shards cannot be found."""
        from featstore.cli.progress import progress_bar

        if not self._started:  # the tasks that follow may take hours
            for failure in self.failures:
                report_problem(f"{failure.task} is not extracted: {failure.message}")
        self._started = True
        with progress_bar() as progress:
            yield progress

    def add(self, result: TaskExtraction) -> None:
        """Keep the result of a task, and print its records."""
        self._results.append(result)
        if not self._as_json:
            with redirect_stdout(self._stdout):
                _print_records(result.records)

    @property
    def records(self) -> list[ExtractRecord]:
        """The records of all tasks."""
        return [record for each in self._in_order() for record in each.records]

    @property
    def failures(self) -> list[ExtractFailure]:
        """The failed tasks."""
        return [each.failure for each in self._in_order() if each.failure is not None]

    @property
    def fatal(self) -> FeatstoreError | OSError | MemoryError | None:
        """The error that ended the run."""
        return next((each.fatal for each in self._results if each.fatal is not None), None)

    def _in_order(self) -> list[TaskExtraction]:
        return sorted(self._results, key=lambda each: each.number)

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
        failed = [each.failure for each in self._in_order() if each.failure is not None and each.fatal is None]
        lines = [*broken.values(), *(f"{each.task}: {each.message}" for each in failed if each.error)]
        if self.fatal is not None:
            unrun = [each.task for each in failed if not each.error]
            lines += [f"not run: {', '.join(unrun)}"] if unrun else []
        elif not lines:
            return
        if self.fatal is not None or len(lines) > 1:
            for line in lines:
                report_problem(line)
        if self.fatal is not None:
            raise self.fatal
        raise self._sum(broken, lines)

    def _sum(self, broken: Collection[object], lines: Sequence[str]) -> FeatstoreError:
        """One error that counts the failures; a single failure is given with its reason."""
        counts = [f"{len(broken):,} of {counted(self._n_shards(), 'shard')} could not be read"] if broken else []
        records, failures = self.records, self.failures
        if failures:
            n_tasks = len({record.task for record in records} | {each.task for each in failures})
            counts.append(f"{len(failures)} of {counted(n_tasks, 'task')} failed")
        done = "; the others are in the store" if records else ""
        codes = {1} if broken else {each.exit_code for each in failures}
        message = f"{', '.join(counts)}{done}"
        if len(lines) == 1:
            message = f"{message}: {lines[0]}" if records else failures[0].message
        error = FeatstoreError(message)
        error.exit_code = codes.pop() if len(codes) == 1 else 1
        return error

    def _n_shards(self) -> int:
        """Number of shards of this run, each counted once for all feature sets."""
        return sum({(record.dataset, record.split): record.shards_total for record in self.records}.values())


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

"""Shared options and arguments of commands, and functions that print."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from featstore.cli.completion import complete_folders, complete_tasks
from featstore.errors import UsageError
from featstore.files import expanded
from featstore.formatting import counted, harmless, harmless_json, redacted
from featstore.records import check_encoder_name

if TYPE_CHECKING:
    from featstore.encoders.specs import Layers
    from featstore.records import ExtractRecord

__all__ = [
    "HomePath",
    "advice",
    "emit_json",
    "encoder_names",
    "expand_home",
    "feature_set_options",
    "is_quiet",
    "is_store",
    "jobs_option",
    "json_option",
    "loading_options",
    "note",
    "parse_encoder_name",
    "parse_layers",
    "parse_names",
    "parse_numbers",
    "parse_store",
    "protocol_option",
    "recipe_options",
    "report_problem",
    "require_folder_of",
    "results_option",
    "say",
    "say_json",
    "say_json_text",
    "selection",
    "set_up_logging",
    "shots_option",
    "store_argument",
    "store_option",
    "tasks_argument",
    "with_options",
    "with_verbosity",
]


# --- --verbose and --quiet: the level of the logger "featstore" is their state ----------------------------------------

_LOG = logging.getLogger("featstore")


class _StderrHandler(logging.Handler):
    """Writes log records as lines to the current sys.stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        report_problem(record.getMessage())


def set_up_logging() -> None:
    """Write errors of the logger to stderr: commands print their own results, warnings and failures."""
    for handler in [each for each in _LOG.handlers if isinstance(each, _StderrHandler)]:
        _LOG.removeHandler(handler)
    _LOG.addHandler(_StderrHandler())
    _LOG.setLevel(logging.ERROR)


def is_quiet() -> bool:
    """Whether --quiet was given."""
    return _LOG.level > logging.ERROR


def _sets(level: int) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback of a flag that sets the level of the logger."""

    def callback(_: click.Context, __: click.Parameter, value: Any) -> Any:
        if value:
            _LOG.setLevel(level)
        return value

    return callback


def with_verbosity(command: click.Command) -> click.Command:
    """Add --verbose and --quiet to a command; one that has --verbose already keeps its meaning."""
    shared: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    if not any("--verbose" in each.opts for each in command.params):
        verbose, meaning = ["--verbose", "-v"], "Log details to stderr."
        command.params.append(click.Option(verbose, callback=_sets(logging.DEBUG), help=meaning, **shared))
    quiet, meaning = ["--quiet", "-q"], "Print results and errors only, no progress and no status."
    command.params.append(click.Option(quiet, callback=_sets(logging.CRITICAL), help=meaning, **shared))
    return command


_LONG_SECONDS = 20.0


def advice(record: ExtractRecord) -> Iterator[str]:
    """Suggestions after an extraction that took long."""
    if record.seconds["encode"] < _LONG_SECONDS:
        return
    if _gains_from_bfloat16(record):
        yield ("this CPU computes about twice as fast in bfloat16: --precision bfloat16 makes a separate feature set")
    if idle := _idle_gpus(record):
        yield f"{counted(idle, 'more GPU')} of this machine idle: --device all uses all"


def _gains_from_bfloat16(record: ExtractRecord) -> bool:
    """Whether bfloat16 would be faster on this CPU; the default is float32, which every CPU computes."""
    settings = record.settings
    if (settings["device"], settings["precision"], record.bottleneck) != ("cpu", "float32", "encode"):
        return False
    from featstore.encoders import BUILT_IN
    from featstore.encoders.devices import cpu_multiplies_bfloat16

    multiplies = record.encoder not in BUILT_IN  # built-in encoders are Fourier transforms
    return multiplies and cpu_multiplies_bfloat16()


def _idle_gpus(record: ExtractRecord) -> int:
    """Number of GPUs that the run did not use."""
    if record.settings["device"] != "cuda" or record.workers > 1:
        return 0
    from featstore.encoders.devices import idle_gpus

    return idle_gpus(record.settings["device"])


_F = TypeVar("_F", bound=Callable[..., Any])


def is_store(text: str) -> bool:
    """Whether an argument names a store (a URL or an existing folder) rather than a feature set."""
    return "://" in text or text.startswith("~") or Path(text).is_dir()


def parse_store(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A click callback that expands ``~`` and refuses a file: a store is a folder or a URL."""
    value = expand_home(value)
    if value is not None and Path(value).is_file():
        raise click.BadParameter(f"{value!r} is a file: a store is a folder, or a URL", param=option)
    return value


class HomePath(click.Path):
    """A path whose leading ``~`` is the user's home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand and check the path."""
        path = os.fspath(value)
        return super().convert(expand_home(path) or path, param, ctx)


def expand_home(value: str | None) -> str | None:
    """Expand a leading ``~``, which shells keep in ``--store=~/x``.

    >>> expand_home("s3://bucket/store.zarr")
    's3://bucket/store.zarr'
    """
    return str(expanded(value)) if value is not None and value.startswith("~") else value


def parse_numbers(_: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """A click callback that reads comma-separated positive integers; an empty tuple for None."""
    if value is None:
        return ()
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of positive integers such as 1,5,10", param=option)
    numbers = tuple(int(part) for part in parts)
    if len(set(numbers)) < len(numbers):
        raise click.BadParameter(f"{value!r} has a duplicate number", param=option)
    return numbers


def parse_names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A click callback that reads comma-separated names."""
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise click.BadParameter(f"{value!r} is not a comma-separated list of distinct names", param=option)
    return names


def parse_layers(_: click.Context, option: click.Parameter, value: str | None) -> Layers:
    """A click callback that reads a selection of layers; an empty tuple for None."""
    from featstore.encoders.specs import parse_layers

    try:
        return () if value is None else parse_layers(value)
    except UsageError as error:
        raise click.BadParameter(str(error), param=option) from error


def parse_encoder_name(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A click callback that checks a name that the user chooses for an encoder."""
    try:
        if value is not None:
            check_encoder_name(value)
    except UsageError as error:
        raise click.BadParameter(str(error), param=option) from error
    return value


def parse_arguments(pairs: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` pairs; a value that is not JSON is text.

    >>> parse_arguments(["mels=64", "name=base"])
    {'mels': 64, 'name': 'base'}
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--encoder-arg takes name=value: got {pair!r}")
        if name in arguments:
            raise UsageError(f"--encoder-arg {name} is given twice")
        try:
            arguments[name] = json.loads(value, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            arguments[name] = value
    return arguments


def _no_constant(text: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(text)


def emit_json(records: Iterable[Any]) -> None:
    """Print records as one JSON array."""
    say_json([record.as_json() for record in records])


def selection(path: str | None, *options: str | None) -> tuple[str | None, ...]:
    """Encoder, dataset and split of a path and the options."""
    given = (path or "").strip("/").split("/") if path else []
    if len(given) > len(options):
        raise UsageError(f"PATH is ENCODER/DATASET/SPLIT: got {path!r}")
    named = [*given, *[""] * (len(options) - len(given))]
    for option, in_path in zip(options, named, strict=True):
        if option and in_path and option != in_path:
            raise UsageError(f"PATH has {in_path!r} and the option has {option!r}: give one of them")
    return tuple(option or in_path or None for option, in_path in zip(options, named, strict=True))


def require_folder_of(path: Path | None) -> None:
    """Raise UsageError before the work if the folder of an output file does not exist."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder: create it first, or write {path.name} elsewhere")


# --- options that several commands have -------------------------------------------------------------------------------


def with_options(*options: Callable[[_F], _F]) -> Callable[[_F], _F]:
    """Combine options into one decorator, in order."""

    def with_all(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return with_all


def store_option(
    meaning: str = "Folder or URL of the store.", *, required: bool = True, from_environment: bool = True
) -> Callable[[_F], _F]:
    """``--store URL``; ``meaning`` is its help."""
    return click.option(
        "--store",
        metavar="URL",
        required=required,
        envvar="FEATSTORE_STORE" if from_environment else None,
        show_envvar=True,
        callback=parse_store,
        shell_complete=complete_folders,
        help=meaning,
    )


_OF_PROTOCOL = {
    "strict": "strict: sound evaluation.",
    "xares": "xares: the rules of X-ARES, comparable with its published scores.",
    "maeb": "maeb: the definitions of mteb's audio benchmark.",
}


def protocol_option(*names: str) -> Callable[[_F], _F]:
    """``--protocol``: one of some names."""
    return click.option(
        "--protocol",
        type=click.Choice(names),
        default="strict",
        show_default=True,
        help=" ".join(_OF_PROTOCOL[name] for name in names),
    )


def loading_options(device_help: str = "auto, cpu, cuda or cuda:N.") -> Callable[[_F], _F]:
    """The options that load an encoder, and its device."""
    return with_options(
        click.option(
            "--encoder-arg",
            "arguments",
            metavar="NAME=VALUE",
            multiple=True,
            callback=lambda _, __, values: parse_arguments(values),
            help="Constructor argument of the encoder; may be repeated.",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run the code of an hf: or st: model. Review it first."),
        click.option("--device", default="auto", show_default=True, help=device_help),
    )


tasks_argument = click.argument(
    "tasks",
    metavar="TASK...",
    nargs=-1,
    required=True,
    callback=lambda _, __, values: tuple(map(expand_home, values)),
    shell_complete=complete_tasks,
)
store_argument = click.argument("store", metavar="STORE", callback=parse_store, shell_complete=complete_folders)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout, and nothing else.")
feature_set_options = with_options(
    click.option("--encoder", metavar="NAME", help="Encoder of the feature sets (`logmel`, or `logmel@3f9c2a71`)."),
    click.option("--dataset", metavar="NAME", help="Dataset of the feature sets (`words`, or `words+crop5s`)."),
    click.option("--split", metavar="NAME", help="Split or fold of the feature sets."),
)
encoder_names = click.option(
    "--encoder",
    metavar="NAME",
    multiple=True,
    help="Encoder in the store (`logmel`, or `logmel@3f9c2a71`); may be repeated.  [default: all that have the task]",
)
shots_option = click.option(
    "--shots",
    callback=parse_numbers,
    metavar="N,N",
    help="Few-shot curve: also score with N training clips per class, over 20 random draws.",
)
jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of processes that score pairs of task and encoder; they share the cores.",
)
results_option = click.option(
    "--results",
    type=HomePath(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write each score to this folder, for `featstore report`.",
)
recipe_options = with_options(
    click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "tf32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the encoder. auto: bfloat16 on a GPU that supports it, else float32. "
        "tf32: float32 with products that a GPU may round.",
    ),
    click.option(
        "--dtype",
        "frame_dtype",
        type=click.Choice(["float16", "float32"]),
        default="float16",
        show_default=True,
        help="Data type of stored frames; utterance vectors are always float32.",
    ),
    click.option(
        "--padding",
        metavar="SECONDS|exact|xares",
        default="0.25",
        show_default=True,
        help="Round the length of windows up to a multiple, not at all, or as X-ARES does.",
    ),
    click.option(
        "--max-window-seconds",
        type=click.FloatRange(min=0.1),
        help="Encode longer clips in windows of equal length, at most this.  [default: the limit of the encoder]",
    ),
)


# --- output: every command prints by these functions ------------------------------------------------------------------


def say(text: str, *, err: bool = False) -> None:
    """Print lines on stdout or stderr; control characters are escaped."""
    click.echo(harmless(text, keep="\n"), err=err)


def note(text: str, *, err: bool = False) -> None:
    """Print status lines, which are not the result of a command; --quiet suppresses them."""
    if not is_quiet():
        say(text, err=err)


def report_problem(text: str) -> None:
    """Print a problem on stderr, as one line without credentials; --quiet does not suppress it."""
    say(f"featstore: {redacted(' '.join(text.split()))}", err=True)


def say_json(value: Any) -> None:
    """Print a value as JSON."""
    say_json_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def say_json_text(text: str) -> None:
    """Print equivalent JSON, with control characters and characters that stdout cannot encode escaped."""
    escaped = harmless_json(text)
    try:
        escaped.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        escaped = escaped.translate({ord(each): json.dumps(each)[1:-1] for each in set(escaped) if not each.isascii()})
    click.echo(escaped)

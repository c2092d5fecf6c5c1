"""The command line: commands parse, call the library and print; heavy libraries are imported when a command runs."""

from __future__ import annotations

import sys
from io import TextIOWrapper

import click

from featstore import __version__
from featstore.cli.audit import audit
from featstore.cli.check import check
from featstore.cli.completion import completion
from featstore.cli.demo import demo
from featstore.cli.diff import diff
from featstore.cli.explore import explore
from featstore.cli.extract import extract
from featstore.cli.fetch import fetch
from featstore.cli.import_ import import_
from featstore.cli.inspect import inspect
from featstore.cli.maintain import compact, copy, export, gc, rename, verify
from featstore.cli.options import set_up_logging, with_verbosity
from featstore.cli.pack import pack
from featstore.cli.probe import probe
from featstore.cli.query import query
from featstore.cli.report import report
from featstore.cli.retrieve import retrieve
from featstore.cli.tasks import tasks
from featstore.errors import FeatstoreError
from featstore.formatting import harmless, redacted

__all__ = ["cli", "main"]

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="featstore")
@click.option("--traceback", is_flag=True, help="Print the traceback of an error, for a bug report.")
def cli(*, traceback: bool) -> None:  # read in `main`
    """Run an audio encoder once, store its embeddings, and evaluate them from the store.

    \b
    featstore demo                             everything, on synthesised audio
    featstore check    ENCODER                 test an encoder
    featstore extract  TASK... --encoder E --data D --store S
                                               encode shards (GPU machine)
    featstore import   FILE... --encoder E --dataset N --store S
                                               store embeddings made elsewhere
    featstore probe    TASK... --store S       Track A: linear probe (laptop)
    featstore retrieve TASK... --store S       Track B: nearest neighbours (laptop)
    featstore report   RESULTS                 leaderboard
    featstore inspect  S                       feature sets of a store
    featstore diff     A B --store S           compare two encoders
    featstore audit    S --encoder E --data D  prove what a store holds
    featstore query    AUDIO|KEY --store S     nearest cached clips
    featstore explore  --store S --out F.html  map of cached clips

    --verbose and --quiet work with every command, before or after its name.
    """  # noqa: D301 - click takes the character itself


for command in (
    demo, fetch, pack, check, extract, import_, probe, retrieve, report, query, explore, tasks, inspect, diff, audit,
    copy, export, verify, gc, compact, rename, completion,
):  # fmt: skip
    cli.add_command(with_verbosity(command))
with_verbosity(cli)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is printed as one line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # characters that the encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    set_up_logging()
    try:
        code = cli.main(args=arguments, prog_name="featstore", standalone_mode=False)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _fail(_with_help(error), error.exit_code)
    except FeatstoreError as error:
        _raise_if_asked(arguments)
        code = _fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted; everything committed is kept, and the same command resumes", _INTERRUPTED)
    except BrokenPipeError:
        code = 1
    except MemoryError as error:
        _raise_if_asked(arguments)
        code = _fail(f"there is not enough memory{f': {error}' if str(error) else ''}", 1)
    except RuntimeError as error:
        from featstore.evaluation.runner import out_of_memory_message

        message = out_of_memory_message(error)
        if message is None:
            raise
        _raise_if_asked(arguments)
        code = _fail(message, 1)
    except OSError as error:
        _raise_if_asked(arguments)
        where = f" ({error.filename})" if error.filename else ""
        code = _fail(f"{error.strerror or error}{where}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> int:
    line = redacted(" ".join(message.split()))
    click.echo(click.style("featstore: ", fg="red") + harmless(line), err=True)
    return code


def _with_help(error: click.ClickException) -> str:
    """The message of click on one line, with the command that prints help."""
    message = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{message}; see `{context.command_path} --help`" if context is not None else message


def _raise_if_asked(arguments: list[str] | None) -> None:
    if "--traceback" in (sys.argv[1:] if arguments is None else arguments):
        raise  # noqa: PLE0704 - called while an error is handled

"""Generate the page of the command line from click's commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from docs.made.markdown import code, table


def command_page(group: click.Group) -> str:
    """Build the page: every command with its arguments and options."""
    context = click.Context(group, info_name="featstore")
    sections = [_command_section(command, context) for command in group.commands.values() if not command.hidden]
    shared = table(("option", "meaning"), _option_rows(group, context))
    return "\n".join(
        [
            "# Command line\n",
            "A store is given by its folder or URL, a task by its name or by the path of its manifest. [JSON output]"
            "(json.md) describes the output of `--json`. The exit code is 0 on success, 1 on failure and 2 for an "
            "invalid call; an error is one line on stderr.\n",
            *sections,
            "## All commands\n",
            shared,
        ]
    )


def _command_section(command: click.Command, parent: click.Context) -> str:
    context = click.Context(command, info_name=command.name, parent=parent)
    usage = " ".join(("featstore", command.name or "", *command.collect_usage_pieces(context)))
    options = table(("option", "meaning", "default"), _rows(command, context))
    return f"## {command.name}\n\n```text\n{usage}\n```\n\n{help_text(command.help or '')}\n\n{options}"


def help_text(text: str) -> str:
    r"""Convert the help of click to Markdown; paragraphs that ``\b`` protects from wrapping become code blocks.

    >>> help_text("Do it.\n\n\b\nrun  me")
    'Do it.\n\n```text\nrun  me\n```'
    """
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{paragraph.lstrip(chr(8)).strip(chr(10))}\n```" if paragraph.startswith("\b") else paragraph
        for paragraph in paragraphs
    )


def _option_rows(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield code(record[0]), record[1]


def _rows(command: click.Command, context: click.Context) -> Iterator[tuple[str, str, str]]:
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if not isinstance(option, click.Option) or record is None or "--help" in option.opts:
            continue
        extra = option.get_help_extra(context)
        # the help text contains a default that is computed at run time
        meaning, _, computed = (option.help or "").partition("  [default: ")
        default = computed.rstrip("]") or code(extra.get("default", ""))
        limits = f" ({code(extra['range'])})" if "range" in extra else ""
        names = re.sub(r"(FLOAT|INTEGER) RANGE$", "NUMBER", record[0])
        yield code(names), f"{meaning}{limits}", "required" if "required" in extra else default

"""The page of the command line, from click's commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from docs.made.markdown import code, table


def command_page(group: click.Group) -> str:
    """Every command with its arguments and options."""
    context = click.Context(group, info_name="featstore")
    sections = [_command_section(command, context) for command in group.commands.values() if not command.hidden]
    shared = table(("option", "meaning"), _option_rows(group, context))
    return "\n".join(
        [
            "# The command line\n",
            "A store is named by its folder, a task by its name or by the path of its manifest. What a command "
            "prints with `--json` is on [a page of its own](json.md). A command ends with 0 when it is done, with 1 "
            "when it failed, and with 2 when it was called wrongly; an error is one line on stderr.\n",
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
    r"""Help as click lays it out, in Markdown: what ``\b`` keeps as it is typed becomes a block.

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
        # a default that the code finds out is told in the words of the help
        meaning, _, found_out = (option.help or "").partition("  [default: ")
        default = found_out.rstrip("]") or code(extra.get("default", ""))
        limits = f" ({code(extra['range'])})" if "range" in extra else ""
        names = re.sub(r"(FLOAT|INTEGER) RANGE$", "NUMBER", record[0])
        yield code(names), f"{meaning}{limits}", "required" if "required" in extra else default

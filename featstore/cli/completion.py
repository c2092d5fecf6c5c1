"""`featstore completion`, and the completions of arguments. Each Tab runs this module, so it imports names only."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from featstore.encoders import BUILT_IN
from featstore.shipped import manifest_files

__all__ = ["complete_encoders", "complete_folders", "complete_tasks", "completion"]

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell.

    It completes commands, options, tasks and built-in encoders.

    \b
    bash, in ~/.bashrc:  eval "$(featstore completion bash)"
    zsh, in ~/.zshrc:    eval "$(featstore completion zsh)"
    fish, once:          featstore completion fish \\
                           > ~/.config/fish/completions/featstore.fish
    """  # noqa: D301 - click takes the character itself
    root = context.find_root()
    name = root.info_name or "featstore"
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"click has no completion for {shell}; it has {', '.join(SHELLS)}")
    click.echo(script(root.command, {}, name, f"_{name}_complete".upper()).source().rstrip())


def complete_tasks(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Built-in tasks and files, for ``TASK``."""
    return _names_and_files(manifest_files(), incomplete)


def complete_encoders(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Built-in encoders and files, for a spec."""
    return _names_and_files(BUILT_IN, incomplete)


def complete_folders(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Folders, for an argument that may also be a URL."""
    return [CompletionItem(incomplete, type="dir")]


def _names_and_files(names: dict[str, Path] | tuple[str, ...], incomplete: str) -> list[CompletionItem]:
    """Files, then names: bash lists the names that follow the file entry, and files if no name matches."""
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [CompletionItem(incomplete, type="file"), *found]

"""The built-in tasks, and how the command line resolves a task by name or path."""

from __future__ import annotations

import os
from pathlib import Path

from featstore.errors import UnknownTask
from featstore.shipped import manifest_files
from featstore.tasks.manifest import Manifest, load_manifest
from featstore.tasks.rules import did_you_mean, shown

__all__ = ["builtin_tasks", "find_task"]


def find_task(name_or_path: str | os.PathLike[str]) -> Manifest:
    """Load the manifest of a built-in task, or read one from a file.

    Parameters
    ----------
    name_or_path : str or os.PathLike
        Name of a built-in task, or the path of a manifest: it ends in ``.toml`` or is an existing file.

    Raises
    ------
    featstore.errors.UnknownTask
        The argument is neither. The message suggests built-in tasks with a similar name.
    featstore.errors.ManifestError
        The file is not a valid manifest.
    """
    name_or_path = os.fspath(name_or_path)
    builtin = manifest_files()
    if name_or_path in builtin:
        return load_manifest(builtin[name_or_path])
    if name_or_path.endswith(".toml") or _is_file(name_or_path):
        return load_manifest(Path(name_or_path))
    guess = did_you_mean(name_or_path, builtin)
    msg = f"no task is named {shown(name_or_path)}{guess or ';'} `featstore tasks` lists them; a path ends in .toml"
    raise UnknownTask(msg)


def builtin_tasks() -> tuple[Manifest, ...]:
    """Load the manifests of all built-in tasks, sorted by name."""
    return tuple(load_manifest(path) for _, path in sorted(manifest_files().items()))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # the text is longer than a file name can be, or contains NUL
        return False

"""The tasks that come with featstore, and how a task is named on a command line."""

from __future__ import annotations

import os
from pathlib import Path

from featstore.errors import UnknownTask
from featstore.shipped import manifest_files
from featstore.tasks.manifest import Manifest, load_manifest
from featstore.tasks.rules import did_you_mean, shown

__all__ = ["builtin_tasks", "find_task"]


def find_task(name_or_path: str | os.PathLike[str]) -> Manifest:
    """Find the manifest of a built-in task, or read one from a file.

    Parameters
    ----------
    name_or_path : str or os.PathLike
        Name of a built-in task; else a path, when it ends in ``.toml`` or a file is there.

    Raises
    ------
    featstore.errors.UnknownTask
        It is neither. The message names the built-in tasks that are spelt nearly so.
    featstore.errors.ManifestError
        The file is not a manifest.
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
    """Every task that comes with featstore, sorted by name."""
    return tuple(load_manifest(path) for _, path in sorted(manifest_files().items()))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a file name may be, or a NUL in it
        return False

"""The manifests that come with featstore, as files: apart from what reads them, so that names are quick to have."""

from __future__ import annotations

from pathlib import Path

__all__ = ["manifest_files"]


def manifest_files() -> dict[str, Path]:
    """Task name to file: in an installed package beside its modules, in a checkout beside the package."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "manifests", package.parent / "manifests"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}

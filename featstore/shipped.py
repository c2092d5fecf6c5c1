"""Files of the built-in manifests. A separate module, so that listing their names imports no parser."""

from __future__ import annotations

from pathlib import Path

__all__ = ["manifest_files"]


def manifest_files() -> dict[str, Path]:
    """Map task names to files. An installed package contains them; in a checkout they are next to the package."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "manifests", package.parent / "manifests"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}

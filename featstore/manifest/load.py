"""A manifest file to a manifest, or to every problem that it has."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from featstore.errors import ManifestError
from featstore.manifest.model import Manifest
from featstore.manifest.wording import place_of

__all__ = ["load_manifest"]


def load_manifest(path: Path) -> Manifest:
    """Read a task's manifest.

    Raises
    ------
    featstore.errors.ManifestError
        The file cannot be read, is not TOML, or breaks manifest format 1: all of its problems, each with its place.
    """
    raw = _read_toml(path)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        problems = tuple(f"{place_of(each['loc'])}: {each['msg']}" for each in error.errors())
        raise ManifestError(str(path), problems) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Windows editors put a byte-order mark before the text; it is no part of it.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problem = f"cannot be read: {(error.strerror or type(error).__name__).lower()}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
    except tomllib.TOMLDecodeError as error:
        problem = f"is not TOML: {error}"
    except RecursionError:
        problem = "is not a manifest: it is nested too deeply"
    raise ManifestError(str(path), (problem,))

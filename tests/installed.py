"""A `featstore` and a `python` on PATH that are this checkout's, for scripts that type them as a user does."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def path_with_featstore(folder: Path) -> str:
    """PATH that begins with a folder of both. `handmade.environment` says where featstore is imported from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in (("featstore", f"{sys.executable} -m featstore"), ("python", sys.executable)):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"

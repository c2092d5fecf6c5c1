"""The virtual environment of X-ARES, beside that of featstore, and jobs that are run in it.

It is made once. A ``.pth`` file lends it what featstore's environment has, so that torch is installed once, and the
stand-ins for what X-ARES imports and does not need here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["NoPeerError", "make_environment", "run_xares", "why_not"]

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / ".venv-xares"
BIN = FOLDER / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"
REQUIREMENTS = HERE / "requirements.txt"
MADE_FROM = FOLDER / "made-from.txt"


class NoPeerError(RuntimeError):
    """X-ARES could not be installed, or failed."""


def make_environment() -> Path:
    """Make the environment unless it is there; returns its folder. Raises NoPeerError, with what pip said."""
    if why_not() is not None:
        shutil.rmtree(FOLDER, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(FOLDER)])
        (FOLDER / ".gitignore").write_text("*\n")
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _call([*pip, "--requirement", str(REQUIREMENTS)])
        MADE_FROM.write_text(_recipe())
    return FOLDER


def why_not() -> str | None:
    """Why X-ARES cannot be run as things are, or None."""
    if not MADE_FROM.exists() or MADE_FROM.read_text() != _recipe():
        return "X-ARES has no environment: `python -m benchmarks.peer` makes it"
    return None


def run_xares(action: str, **arguments: Any) -> Any:
    """Call a function of `benchmarks.peer.driver` in the environment of X-ARES; arguments and result are JSON."""
    _lend()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryFile("w+") as stderr:
        done = subprocess.run(
            [str(PYTHON), "-P", str(HERE / "driver.py"), action],
            input=json.dumps(arguments),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode:
            stderr.seek(0)
            raise NoPeerError(f"X-ARES failed at {action}:\n{stderr.read()[-4000:]}")
    return json.loads(done.stdout)


def _recipe() -> str:
    return f"Python {sys.version_info.major}.{sys.version_info.minor}\n{REQUIREMENTS.read_text()}"


def _lend() -> None:
    """Put the stand-ins, then what this process has installed, behind what the environment has itself."""
    (packages,) = FOLDER.glob("[Ll]ib/**/site-packages")
    lent = dict.fromkeys([str(HERE / "standins"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    text = "".join(f"{path}\n" for path in lent)
    path = packages / "lent.pth"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(FOLDER, ignore_errors=True)
        raise NoPeerError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")

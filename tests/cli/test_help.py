"""`featstore --help` is quick because it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from handmade import environment

HEAVY = ["numpy", "torch", "sklearn", "faiss", "webdataset", "zarr", "rich", "pydantic", "soundfile", "soxr", "scipy"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["extract", "--help"], ["check", "--help"], ["probe", "--help"], []]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from featstore.cli import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit as done:\n    code = done.code\n"
        f"print('loaded:', [name for name in {HEAVY!r} if name in sys.modules], 'exit', code)\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.splitlines()[-1].startswith("loaded: [] exit")


def test_importing_featstore_imports_nothing_heavy() -> None:
    code = f"import featstore, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert child.stdout.strip() == "[]"

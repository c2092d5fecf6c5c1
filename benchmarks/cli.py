"""What it costs to start: ``featstore --help`` in a new process, beside Python itself and what it must not import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import child_environment, timed
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "featstore --help": ("-m", "featstore", "--help"),
    "featstore extract --help": ("-m", "featstore", "extract", "--help"),
    "import click": ("-c", "import click"),
    "import numpy": ("-c", "import numpy"),
    "import zarr": ("-c", "import zarr"),
    "import torch": ("-c", "import torch"),
}
TARGETS = {"featstore --help": (at_most(0.2),)}


def tables(options: Options) -> Iterator[Table]:
    repeats = 3 if options.quick else 20
    yield Table(
        title="Start of the command line",
        measures=f"Wall time of a new process: median of up to {repeats}, after a first that warms the page cache.",
        unit="s",
        baseline="python -c pass",
        rows=tuple(
            Row(name, _seconds(arguments, repeats=repeats), TARGETS.get(name, ()))
            for name, arguments in COMMANDS.items()
        ),
    )


def _seconds(arguments: tuple[str, ...], *, repeats: int) -> float:
    command, environment = [sys.executable, *arguments], child_environment()

    def run() -> None:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    return timed(run, repeats=repeats, budget_seconds=15.0).median


if __name__ == "__main__":
    main(only="cli")

"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import datetime
import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.machine import machine_line, versions_line
from benchmarks.table import Table

__all__ = ["Options", "main"]

NAMES = ("cli", "extract", "encode", "store", "tracks", "evaluation", "parity")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure. ``quick`` shrinks everything to a smoke test; ``frames_clips`` None fits the machine."""

    quick: bool = False
    frames_clips: int | None = None
    search_rows: int = 200_000


class Benchmark(Protocol):
    """A module of this package."""

    def tables(self, options: Options) -> Iterator[Table]:
        """Measure, and yield each table when it is done."""


def main(arguments: Sequence[str] | None = None, *, only: str | None = None) -> None:
    """Run benchmarks, or the one named `only`, and print their tables."""
    asked = _parse(arguments, only)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders in memory go when a run is stopped
    machine, versions = machine_line(), versions_line()
    print(f"{machine}\n{versions}\n")
    done: dict[str, list[Table]] = {}
    for name in asked.names:
        module: Benchmark = importlib.import_module(f"benchmarks.{name}")
        done[name] = []
        options = Options(quick=asked.quick, frames_clips=asked.frames_clips, search_rows=asked.search_rows)
        for table in module.tables(options):
            print(table.as_text() + "\n", flush=True)
            done[name].append(table)
    if asked.write:
        DOCUMENT.write_text(_document(done, machine=machine, versions=versions), encoding="utf-8")
        print(f"written to docs/{DOCUMENT.name}", file=sys.stderr)


def _parse(arguments: Sequence[str] | None, only: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks{f'.{only}' if only else ''}", description=__doc__)
    if only is None:
        parser.add_argument("names", nargs="*", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
        parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, with the tables as printed")
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it runs, no more")
    parser.add_argument("--frames-clips", type=int, metavar="N", help="clips with frames that `store` writes and reads")
    parser.add_argument(
        "--search-rows",
        type=int,
        metavar="N",
        default=Options().search_rows,
        help="rows that `tracks` searches exactly",
    )
    parser.set_defaults(names=(only,), write=False) if only else None
    asked = parser.parse_args(arguments)
    if asked.write and asked.quick:
        parser.error("--quick measures nothing worth writing down")
    return asked


def _document(done: dict[str, list[Table]], *, machine: str, versions: str) -> str:
    """The page: what was measured on, then every table as printed."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    head = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks --write`; `make bench` prints the same. Every table is of one run on one",
        "machine, and every ratio is to a row of its own table. The absolute figures are this machine's.",
        "",
        f"- Machine: {machine}",
        f"- Versions: {versions}",
        f"- Date: {today}",
    ]
    for name, tables in done.items():
        module = importlib.import_module(f"benchmarks.{name}")
        head += ["", f"## {name}", "", " ".join((module.__doc__ or "").split("\n\n")[0].split())]
        for table in tables:
            head += ["", table.as_markdown()]
    return "\n".join(head) + "\n"

"""The command line that all benchmarks share."""

from __future__ import annotations

import argparse
import datetime
import importlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.machine import machine_line, versions_line
from benchmarks.table import Table

__all__ = ["Options", "document", "main"]

NAMES = ("cli", "extract", "encode", "audit", "store", "remote", "tracks", "measures", "maeb", "evaluation", "parity")
BY_NAME_ONLY = ("scale", "simulate", "real", "gpu")
"""Ten minutes and 20 GB of disk, three minutes, packages of recordings, and a CUDA device: run when asked for."""

HEAD = """# Benchmarks

Written by `python -m benchmarks [NAME ...] --write`; `make bench` prints the same. Every section is of one run on one
machine, which it names, and every ratio is to a row of its own table. The absolute figures are that machine's."""
MARKS = ("<!-- measured -->", "<!-- /measured -->")
DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure. ``quick`` shrinks everything to a smoke test; ``frames_clips`` None fits the machine."""

    quick: bool = False
    frames_clips: int | None = None
    search_rows: int = 200_000
    scale_rows: int = 5_000_000
    simulated_commits: int = 10_000_000


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
        options = Options(
            quick=asked.quick,
            frames_clips=asked.frames_clips,
            search_rows=asked.search_rows,
            scale_rows=asked.scale_rows,
            simulated_commits=asked.simulated_commits,
        )
        for table in module.tables(options):
            print(table.as_text() + "\n", flush=True)
            done[name].append(table)
    if asked.write:
        measured = {name: _section(name, tables, machine=machine, versions=versions) for name, tables in done.items()}
        before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
        DOCUMENT.write_text(document(before, measured), encoding="utf-8")
        print(f"written to docs/{DOCUMENT.name}", file=sys.stderr)
        for name, section in measured.items():
            page = DOCUMENT.with_name(f"{name}.md")
            if page.exists():  # a page that tells about this benchmark shows its tables too
                page.write_text(with_tables(page.read_text(encoding="utf-8"), section), encoding="utf-8")


def _parse(arguments: Sequence[str] | None, only: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks{f'.{only}' if only else ''}", description=__doc__)
    if only is None:
        known = (*NAMES, *BY_NAME_ONLY)
        choices = f"{', '.join(NAMES)} (all of these by default), {', '.join(BY_NAME_ONLY)}"
        parser.add_argument("names", nargs="*", choices=known, default=NAMES, metavar="NAME", help=choices)
        parser.add_argument("--write", action="store_true", help="put the tables as printed into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="little of everything: shows that it runs, no more")
    parser.add_argument("--frames-clips", type=int, metavar="N", help="clips with frames that `store` writes and reads")
    parser.add_argument(
        "--search-rows",
        type=int,
        metavar="N",
        default=Options().search_rows,
        help="rows that `tracks` searches exactly",
    )
    parser.add_argument(
        "--scale-rows",
        type=int,
        metavar="N",
        default=Options().scale_rows,
        help="vectors that `scale` indexes",
    )
    parser.add_argument(
        "--simulated-commits",
        type=int,
        metavar="N",
        default=Options().simulated_commits,
        help="commit records that `simulate` plans",
    )
    parser.set_defaults(names=(only,), write=False) if only else None
    asked = parser.parse_args(arguments)
    if asked.write and asked.quick:
        parser.error("--quick measures nothing worth writing down")
    return asked


def document(before: str, measured: Mapping[str, str]) -> str:
    """The page: sections that were measured in place of those before, the others as they stand."""
    sections = {text.partition("\n")[0]: f"## {text.rstrip()}" for text in before.split("\n## ")[1:]} | dict(measured)
    return "\n\n".join([HEAD, *(sections[name] for name in (*NAMES, *BY_NAME_ONLY) if name in sections)]) + "\n"


def with_tables(page: str, section: str) -> str:
    """A page with the tables of a section between its marks; a page without marks as it is."""
    before, start, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not end:
        return page
    _, _, measured = section.partition("\n\n")  # without the heading of the section
    return f"{before}{start}\n\n{measured.rstrip()}\n\n{end}{after}"


def _section(name: str, tables: Sequence[Table], *, machine: str, versions: str) -> str:
    """One benchmark: what it was measured on, then every table as printed."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    module = importlib.import_module(f"benchmarks.{name}")
    about = " ".join((module.__doc__ or "").split("\n\n")[0].split())
    return "\n\n".join(
        [f"## {name}", about, f"{today}: {machine}; {versions}.", *(each.as_markdown() for each in tables)]
    )

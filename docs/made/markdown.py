"""Parse docstrings and write Markdown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Docstring:
    """A docstring in numpy style: the text before its sections, and its attributes by name."""

    prose: str
    attributes: Mapping[str, str]


def parse_docstring(kind: type) -> Docstring:
    """Parse the docstring of a class.

    >>> class Pair:
    ...     '''Two numbers.
    ...
    ...     Attributes
    ...     ----------
    ...     left, right : int
    ...         Their ``values``.
    ...     '''
    >>> parse_docstring(Pair).prose, parse_docstring(Pair).attributes["right"]
    ('Two numbers.', 'Their `values`.')
    """
    text = "" if kind.__doc__ is None else inspect.cleandoc(kind.__doc__)
    prose, _, sections = text.partition("\nAttributes\n----------\n")
    attributes: dict[str, str] = {}
    for entry in re.findall(r"^(\S[^\n]*(?:\n(?:[ ]+[^\n]*)?)*)", sections, flags=re.MULTILINE):
        head, _, body = entry.partition("\n")
        names, _, _ = head.partition(" : ")
        for name in names.split(","):
            attributes[name.strip()] = from_rst(" ".join(body.split()))
    return Docstring(prose=from_rst(prose.strip()), attributes=attributes)


def from_rst(text: str) -> str:
    return text.replace("``", "`")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table without its empty columns; return an empty text if there are no rows."""
    every = [[_cell(cell) for cell in row] for row in rows]
    if not every:
        return ""
    kept = [at for at in range(len(header)) if any(row[at] for row in every)]
    lines = [[header[at] for at in kept], ["---"] * len(kept), *([row[at] for at in kept] for row in every)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Join the text to one line, and escape bars outside of code."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else part.replace("|", "\\|") for part in parts)


def code(text: str) -> str:
    return f"`{text}`" if text else ""

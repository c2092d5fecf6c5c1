r"""How what a person reads is put: sizes, times, counts, and what others wrote, which a terminal is not to obey.

A key, a label or a path may hold whatever a file held: an escape sequence that repaints the terminal, a mark that turns
the rest of a line round, half a surrogate pair that no stream can write.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from html import escape

__all__ = [
    "counted",
    "harmless",
    "harmless_json",
    "html_table",
    "lasting",
    "printable",
    "redacted",
    "spoken_bytes",
    "text_table",
]

_HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>]+")
_VALUE = re.compile(r"([?&#;][^=&#?;\s]*=)(?!\*\*\*)[^&#\s]*[^&#\s:;,.)\]]")
_BARE_QUERY = re.compile(r"\?[^=&/#*?\s.]{16,}")
_NAMED_BEFORE_AT = ("abfs", "abfss", "wasb", "wasbs")  # container@account is no credential


def spoken_bytes(n_bytes: float) -> str:
    """A size as it is read, to three digits.

    >>> [spoken_bytes(size) for size in (0, 999, 12_345, 9_200_000, 138_400_000, 999_960_000, 2.3e15)]
    ['0 B', '999 B', '12.3 kB', '9.2 MB', '138 MB', '1.0 GB', '2,300 TB']
    """
    size = n_bytes
    for unit in ("B", "kB", "MB", "GB"):
        told = f"{size:.0f}" if unit == "B" or size >= 99.95 else f"{size:.1f}"
        if float(told) < 1000:
            return f"{told} {unit}"
        size /= 1000
    return f"{size:,.0f} TB" if size >= 99.95 else f"{size:.1f} TB"


def counted(number: int, what: str) -> str:
    """So many of something.

    >>> counted(1, "shard"), counted(1200, "shard")
    ('1 shard', '1,200 shards')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def lasting(seconds: float) -> str:
    """Seconds in the unit that they are read in.

    >>> lasting(12.5), lasting(59.96), lasting(600), lasting(3599), lasting(7200)
    ('12.5 s', '1.0 min', '10.0 min', '1.00 hours', '2.00 hours')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 59.95 * 60 else f"{seconds / 3600:,.2f} hours"


def harmless(text: str, *, keep: str = "") -> str:
    r"""Text in which each character that is not printed, but for those to `keep`, is told by its escape.

    >>> harmless("left \x1b[2J \u202e right")
    'left \\x1b[2J \\u202e right'
    """
    return text.translate({ord(each): repr(each)[1:-1] for each in _commands_in(text, keep=keep)})


def harmless_json(text: str) -> str:
    """JSON that says the same as the JSON `text`, and in which a terminal finds nothing to obey either."""
    return text.translate({ord(each): json.dumps(each)[1:-1] for each in _commands_in(text, keep="\n")})


def redacted(text: str) -> str:
    """Text in which no URL shows a credential: each user, password, and value of a query or fragment is ``***``.

    Which parameter of a query is a signature is not guessed by its name.

    >>> redacted("cannot read https://user:pw@host/x?X-Amz-Signature=3f9c: it is gone")
    'cannot read https://***@host/x?X-Amz-Signature=***: it is gone'
    >>> redacted("s3://KEY:SEC/RET@bucket/x.zarr"), redacted("http://host:9000/x@v1")
    ('s3://***@bucket/x.zarr', 'http://host:9000/x@v1')
    """
    return _URL.sub(lambda found: _redacted_url(found.group()), text) if "://" in text else text


def _redacted_url(url: str) -> str:
    scheme, _, rest = url.partition("://")
    end = next((at for at, each in enumerate(rest) if each in "?#"), len(rest))
    authority, slash, path = rest[:end].partition("/")
    user, at, host = authority.rpartition("@")
    after_colon = host.partition(":")[2].rstrip(":;,.)")
    may_have_port = scheme.lower() in ("http", "https") and (after_colon.isdigit() or host.startswith("["))
    if after_colon and not at and not may_have_port:  # a user and a secret, which may hold a slash or a question mark
        _, at, place = rest.rpartition("@")
        return (
            _redacted_url(f"{scheme}://{_HIDDEN}@{place}") if at else f"{scheme}://{host.partition(':')[0]}:{_HIDDEN}"
        )
    is_secret = scheme.lower() not in _NAMED_BEFORE_AT or ":" in user
    shown = f"{_HIDDEN}@{host}" if at and is_secret else authority
    query = _BARE_QUERY.sub(f"?{_HIDDEN}", _VALUE.sub(rf"\1{_HIDDEN}", rest[end:]))
    return f"{scheme}://{shown}{slash}{path}{query}"


def printable(text: str, *, most: int = 120) -> str:
    """Text of an audio file's making, fit for a line of a table: short, and harmless."""
    return harmless(text if len(text) <= most else text[: most - 3] + "...")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows of text in columns, each indented by two spaces; columns of numbers are flush right.

    >>> print(text_table(["split", "clips"], [["train", "1,200"], ["test", "-"]]))
      split  clips
      train  1,200
      test       -
    """
    header, rows = _harmless_cells([header])[0], _harmless_cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    pads = [str.rjust if right else str.ljust for right in _flush_right(header, rows)]
    lines = (
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
        for row in (header, *rows)
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """The same as an HTML table, for notebooks."""
    styles = [f' style="text-align: {"right" if right else "left"}"' for right in _flush_right(header, rows)]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{s}>{escape(c)}</{tag}>" for s, c in zip(styles, cells, strict=True)) + "</tr>"

    header, rows = _harmless_cells([header])[0], _harmless_cells(rows)
    body = "\n".join(line("td", row) for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{line('th', header)}</thead><tbody>\n{body}\n</tbody></table>"


def _harmless_cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names in a store are untrusted text: no cell controls a terminal."""
    return [[harmless(cell) for cell in row] for row in rows]


def _flush_right(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers, or a dash where there is none."""
    return [
        bool(rows) and all(row[at] == "-" or row[at].replace(",", "").replace(".", "").isdigit() for row in rows)
        for at in range(len(header))
    ]


def _commands_in(text: str, *, keep: str) -> Iterator[str]:
    """Characters that are not to be seen but do something: controls, marks of direction, halves of pairs."""
    if not text.isprintable():
        for each in set(text):
            if not each.isprintable() and each not in keep and unicodedata.category(each) != "Zs":
                yield each

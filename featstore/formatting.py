r"""Text for people: sizes, durations, counts and tables, and escapes for untrusted text.

A key, a label or a path may contain any character of the file that it comes from: an escape sequence that repaints the
terminal, a direction mark that reverses the rest of a line, a lone surrogate that no stream can encode.
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
    "one_line",
    "printable",
    "redacted",
    "spoken_bytes",
    "text_table",
]

_HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`<>]+")
_VALUE = re.compile(r"([?&#;][^=&#?;\s]*=)(?!\*\*\*)[^&#\s]*[^&#\s:;,.)\]]")
_BARE_QUERY = re.compile(r"\?[^=&/#*?\s.]{16,}")
_NAMED_BEFORE_AT = ("abfs", "abfss", "wasb", "wasbs")  # container@account is not a credential


def spoken_bytes(n_bytes: float) -> str:
    """Format a size with three significant digits.

    >>> [spoken_bytes(size) for size in (0, 999, 12_345, 9_200_000, 138_400_000, 999_960_000, 2.3e15)]
    ['0 B', '999 B', '12.3 kB', '9.2 MB', '138 MB', '1.0 GB', '2,300 TB']
    """
    size = n_bytes
    for unit in ("B", "kB", "MB", "GB"):
        shown = f"{size:.0f}" if unit == "B" or size >= 99.95 else f"{size:.1f}"
        if float(shown) < 1000:
            return f"{shown} {unit}"
        size /= 1000
    return f"{size:,.0f} TB" if size >= 99.95 else f"{size:.1f} TB"


def counted(number: int, what: str) -> str:
    """Format a count with its noun.

    >>> counted(1, "shard"), counted(1200, "shard")
    ('1 shard', '1,200 shards')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def lasting(seconds: float) -> str:
    """Format a duration in seconds, minutes or hours.

    >>> lasting(12.5), lasting(59.96), lasting(600), lasting(3599), lasting(7200)
    ('12.5 s', '1.0 min', '10.0 min', '1.00 hours', '2.00 hours')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 59.95 * 60 else f"{seconds / 3600:,.2f} hours"


def harmless(text: str, *, keep: str = "") -> str:
    r"""Replace each non-printable character by its escape, except the characters in `keep`.

    >>> harmless("left \x1b[2J \u202e right")
    'left \\x1b[2J \\u202e right'
    """
    return text.translate({ord(each): repr(each)[1:-1] for each in _unprintable(text, keep=keep)})


def harmless_json(text: str) -> str:
    """Replace each non-printable character in the JSON `text` by its JSON escape; newlines are kept."""
    return text.translate({ord(each): json.dumps(each)[1:-1] for each in _unprintable(text, keep="\n")})


def one_line(error: BaseException, *, most: int = 300, typed: bool = False) -> str:
    """Return the message of an error on one line, without credentials, cut to ``most`` characters.

    ``typed`` puts the class of the error before it; an error without a message is its class alone.

    >>> one_line(ValueError("no such  option")), one_line(KeyError()), one_line(OSError("full"), typed=True)
    ('no such option', 'KeyError', 'OSError: full')
    """
    kind, text = type(error).__name__, redacted(" ".join(str(error).split())[: 4 * most])[:most]
    return f"{kind}: {text}" if typed and text else text or kind


def redacted(text: str) -> str:
    """Hide credentials in URLs: users, passwords, and all values of a query or fragment become ``***``.

    All values are hidden, because the name of a query parameter does not show whether it is a signature.

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
    if after_colon and not at and not may_have_port:  # a user and a secret, which may contain "/" or "?"
        _, at, place = rest.rpartition("@")
        return (
            _redacted_url(f"{scheme}://{_HIDDEN}@{place}") if at else f"{scheme}://{host.partition(':')[0]}:{_HIDDEN}"
        )
    is_secret = scheme.lower() not in _NAMED_BEFORE_AT or ":" in user
    shown = f"{_HIDDEN}@{host}" if at and is_secret else authority
    query = _BARE_QUERY.sub(f"?{_HIDDEN}", _VALUE.sub(rf"\1{_HIDDEN}", rest[end:]))
    return f"{scheme}://{shown}{slash}{path}{query}"


def printable(text: str, *, most: int = 120) -> str:
    """Shorten untrusted text to `most` characters, and escape what is not printable."""
    return harmless(text if len(text) <= most else text[: most - 3] + "...")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text as aligned columns, indented by two spaces; columns of numbers are right-aligned.

    >>> print(text_table(["split", "clips"], [["train", "1,200"], ["test", "-"]]))
      split  clips
      train  1,200
      test       -
    """
    header, rows = _harmless_cells([header])[0], _harmless_cells(rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    pads = [str.rjust if right else str.ljust for right in _numeric_columns(header, rows)]
    lines = (
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
        for row in (header, *rows)
    )
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """Format rows of text as an HTML table, for notebooks."""
    styles = [f' style="text-align: {"right" if right else "left"}"' for right in _numeric_columns(header, rows)]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{s}>{escape(c)}</{tag}>" for s, c in zip(styles, cells, strict=True)) + "</tr>"

    header, rows = _harmless_cells([header])[0], _harmless_cells(rows)
    body = "\n".join(line("td", row) for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{line('th', header)}</thead><tbody>\n{body}\n</tbody></table>"


def _harmless_cells(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Escape all cells: names in a store are untrusted text."""
    return [[harmless(cell) for cell in row] for row in rows]


def _numeric_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """For each column, whether all its cells are numbers or a dash."""
    return [
        bool(rows) and all(row[at] == "-" or row[at].replace(",", "").replace(".", "").isdigit() for row in rows)
        for at in range(len(header))
    ]


def _unprintable(text: str, *, keep: str) -> Iterator[str]:
    """Non-printable characters other than spaces: control characters, direction marks, lone surrogates."""
    if not text.isprintable():
        for each in set(text):
            if not each.isprintable() and each not in keep and unicodedata.category(each) != "Zs":
                yield each

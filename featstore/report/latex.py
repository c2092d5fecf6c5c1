r"""Tables as LaTeX with booktabs; a document needs ``\usepackage{booktabs,graphicx}``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from featstore.formatting import harmless
from featstore.report.grids import Grid, GridCell

__all__ = ["escape_latex", "grids_to_latex"]

_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # not the argument of a line break before it
        "*": "{*}",
        "–": "--",
        "−": "$-$",
        "±": r"$\pm$",
        "≈": r"$\approx$",
        "▸": r"\textbf{bold}",
        "†": r"\textdagger{}",
        "′": r"$'$",
        "✓": r"$\surd$",
    }
)


def escape_latex(text: str) -> str:
    r"""Escape text, such as an untrusted name, so that LaTeX typesets it and executes nothing.

    >>> escape_latex("50 % of a_b")
    '50 \\% of a\\_b'
    """
    return harmless(" ".join(text.split())).translate(_ESCAPES)


def grids_to_latex(grids: Iterable[Grid]) -> str:
    """Each table as a ``table`` environment: the best entries are bold, superscripts are the letters of tie groups.

    A table with more columns than rows is transposed, and one that is wider than the text is scaled to its width.
    """
    tables = [_latex(laid_out) for laid_out in grids]
    return "\n".join(["% needs \\usepackage{booktabs,graphicx}", *tables]) if tables else ""


def _latex(laid_out: Grid) -> str:
    n_labels = laid_out.n_labels
    header = [each.split("\n") for each in laid_out.header]
    blocks = [
        [[*map(escape_latex, row.labels), *map(_cell, row.cells)] for row in section] for section in laid_out.sections
    ]
    if n_labels == 1 and len(header) - 1 > len(laid_out.rows):
        rows = [row for block in blocks for row in block]
        blocks = [[[escape_latex(" ".join(header[at])), *(row[at] for row in rows)] for at in range(1, len(header))]]
        head = ["", *(row[0] for row in rows)]
    else:
        head = [_stacked(lines) for lines in header]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(laid_out.title)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{'l' * n_labels}{'r' * (len(head) - n_labels)}}}",
            r"\toprule",
            _row(head),
            *(line for block in blocks for line in (r"\midrule", *map(_row, block))),
            r"\bottomrule",
            r"\end{tabular}}",
            *_notes(laid_out),
            r"\end{table}",
            "",
        ]
    )


def _stacked(lines: Sequence[str]) -> str:
    stacked = r"\\".join(map(escape_latex, lines))
    return stacked if len(lines) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _row(entries: Sequence[str]) -> str:
    return " & ".join(entries) + r" \\"


def _cell(cell: GridCell) -> str:
    text = escape_latex(cell.text)
    if cell.best:
        text = rf"\textbf{{{text}}}"
    elif cell.inside_noise or cell.not_comparable:
        text = ("$\\approx$ " if cell.inside_noise else "? ") + text
    return rf"{text}\textsuperscript{{{escape_latex(cell.letters)}}}" if cell.letters else text


def _notes(laid_out: Grid) -> list[str]:
    notes = [*laid_out.notes, *(f"Warning: {each}" for each in laid_out.warnings)]
    if any(cell.letters for row in laid_out.rows for cell in row.cells):
        notes.append("superscripts: letters of the tie groups of a column")
    if not notes:
        return []
    lines = "\\\\\n".join(map(escape_latex, notes))
    return [r"\begin{flushleft}", r"\footnotesize", lines, r"\end{flushleft}"]

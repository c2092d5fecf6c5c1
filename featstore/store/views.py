"""A feature set as others know arrays: a table in text or HTML, an xarray DataArray, a dask array."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import UsageError
from featstore.store.runs import Run
from featstore.wording import harmless

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from xarray import DataArray

    from featstore.store.feature_set import FeatureSet

__all__ = ["html_table", "text_table", "utterance_as_dask", "utterance_as_xarray"]


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
    """Whoever wrote a store chose its names: a terminal that shows them finds nothing in them to obey."""
    return [[harmless(cell) for cell in row] for row in rows]


def _flush_right(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers, or a dash where there is none."""
    return [
        bool(rows) and all(row[at] == "-" or row[at].replace(",", "").replace(".", "").isdigit() for row in rows)
        for at in range(len(header))
    ]


def utterance_as_xarray(fs: FeatureSet) -> DataArray:
    """Utterance vectors (window, feature) with coordinates key, start_seconds and seconds."""
    try:
        import xarray
    except ImportError as error:
        raise _missing("to_xarray", "xarray") from error
    of_windows = {"key": fs.key, "start_seconds": fs.start_seconds, "seconds": fs.seconds}
    return xarray.DataArray(
        fs.utterance,
        dims=("window", "feature"),
        coords={name: ("window", values) for name, values in of_windows.items()},
        name="utterance",
        attrs={
            "encoder": fs.encoder,
            "fingerprint": fs.fingerprint,
            "dataset": fs.dataset,
            "split": fs.split,
            "content_hash": fs.content_hash,
        },
    )


def utterance_as_dask(fs: FeatureSet, runs: Sequence[Run]) -> DaskArray:
    """Utterance vectors in one lazy chunk for each run of windows in a part."""
    try:
        import dask.array as dask_array
        from dask.delayed import delayed
    except ImportError as error:
        raise _missing("to_dask", "dask[array]") from error
    da: Any = dask_array  # half of dask has no types
    dim = fs.recipe.dim
    chunks = [
        da.from_delayed(
            # Arrays that meet in one graph need different names: the same content may lie in other pieces.
            delayed(_utterance_of)(
                run, dask_key_name=f"featstore-{fs.content_hash}-{run.part.path}-{run.start}-{run.stop}"
            ),
            shape=(len(run), dim),
            dtype=np.float32,
        )
        for run in runs
        if len(run)
    ]
    whole: DaskArray = da.concatenate(chunks) if chunks else da.empty((0, dim), dtype=np.float32)
    return whole


def _utterance_of(run: Run) -> NDArray[Any]:
    return run.part.rows("utterance").slice(run.start, run.stop)


def _missing(what: str, library: str) -> UsageError:
    return UsageError(f"{what} needs {library.partition('[')[0]}, which is not installed: `pip install '{library}'`")

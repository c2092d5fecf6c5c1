"""`featstore query`: the cached clips nearest to a clip, a file or a text."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

import click

from featstore.cli.options import emit_json, feature_set_options, json_option, say, store_option
from featstore.errors import LabelError
from featstore.formatting import printable, text_table

if TYPE_CHECKING:
    from featstore.explore.query import ClipHit, Found, QueryRecord

__all__ = ["query"]

_MAX_FIELDS = 4
_TEXT = 48


@click.command()
@click.argument("wanted", metavar="AUDIO|KEY", required=False)
@click.option("--text", metavar="TEXT", help="Text to search for in place of AUDIO|KEY; the encoder has a text tower.")
@store_option()
@feature_set_options
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Number of clips to list.")
@click.option(
    "--field",
    "fields",
    metavar="NAME",
    multiple=True,
    help="Field of the clips' JSON to show, with dots into objects; may be repeated.  [default: the first few]",
)
@click.option(
    "--spec",
    metavar="SPEC",
    help="For AUDIO and --text: spec of an encoder that is not built in, with the weights and source of the store.",
)
@click.option("--device", default="auto", show_default=True, help="For AUDIO and --text: auto, cpu, cuda or cuda:N.")
@json_option
def query(*, wanted: str | None, fields: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """List the cached clips nearest to a file, a clip or a text.

    A file is decoded, resampled, cut into windows and encoded by the recipe of the store. A cached clip is named by its
    key, after `split/` or `dataset/split/` if several feature sets have it; no encoder is loaded. The similarity of two
    clips is the cosine of their two closest windows; the distance is 1 - similarity.

    A text is encoded by the text tower of the encoder. The prompts of the tasks are stored, and need no encoder.

    \b
    featstore query bark.wav --store S --encoder logmel
    featstore query train/clip-3 --store S --encoder logmel --field label
    featstore query --text "dog barking" --store S --encoder clap --spec hf:laion/clap-htsat-unfused
    """  # noqa: D301 - click takes the character itself
    from featstore import api

    with redirect_stdout(sys.stderr):  # an encoder may print, and stdout is for results
        found = api.query(wanted, **settings)
    shown = _columns(found, fields)
    if as_json:
        emit_json([_record(rank, hit, shown) for rank, hit in enumerate(found.hits, start=1)])
    else:
        _print_hits(found, shown, several=found.sets_searched > 1, all_fields=bool(fields))


def _columns(found: Found, fields: tuple[str, ...]) -> dict[str, list[Any]]:
    """Field -> its value for each hit; None if a clip has no such field.

    Raises
    ------
    LabelError
        No hit has one of `fields`.
    """
    from featstore.store.clip_fields import field_of

    documents = [hit.labels for hit in found.hits]
    known = dict.fromkeys(
        name
        for document in documents
        if isinstance(document, dict)
        for name, value in document.items()
        if isinstance(value, str | int | float | bool)
    )
    columns: dict[str, list[Any]] = {}
    for field in fields or list(known)[:_MAX_FIELDS]:
        values: list[Any] = []
        for hit in found.hits:
            try:
                values.append(field_of(hit.meta, field, key=hit.key))
            except LabelError:
                values.append(None)
        if fields and found.hits and all(value is None for value in values):
            has = ", ".join(map(printable, known)) or "no plain field"
            raise LabelError(f"no clip found has a field {field!r} in its JSON; the fields are: {has}")
        columns[field] = values
    return columns


def _record(rank: int, hit: ClipHit, columns: dict[str, list[Any]]) -> QueryRecord:
    from featstore.explore.query import QueryRecord

    return QueryRecord(
        rank=rank,
        key=hit.key,
        encoder=hit.encoder,
        fingerprint=hit.fingerprint,
        dataset=hit.dataset,
        split=hit.split,
        similarity=round(hit.similarity, 6),
        distance=round(hit.distance, 6),
        start_seconds=hit.start_seconds,
        seconds=hit.seconds,
        labels={field: values[rank - 1] for field, values in columns.items()},
    )


def _print_hits(found: Found, columns: dict[str, list[Any]], *, several: bool, all_fields: bool) -> None:
    """Print a table, without rich, whose import would take longer than the search.

    The fields that the user did not ask for are shown as far as the terminal has columns.
    """
    has_windows = any(hit.start_seconds > 0 for hit in found.hits) or found.windows > 1
    header = ["", "cosine", "clip", *(["where"] if several else []), *(["from s"] if has_windows else [])]
    rows = [
        [
            str(rank),
            f"{hit.similarity:.4f}",
            printable(hit.key),
            *([f"{hit.dataset}/{hit.split}"] if several else []),
            *([f"{hit.start_seconds:g}"] if has_windows else []),
        ]
        for rank, hit in enumerate(found.hits, start=1)
    ]
    table, shown = text_table(header, rows), {}
    for name, values in columns.items():
        wider = [*header, printable(name)], [[*row, _text(value)] for row, value in zip(rows, values, strict=True)]
        text = text_table(*wider)
        if not all_fields and max(map(len, text.splitlines())) > get_terminal_size().columns:
            continue
        (header, rows), table, shown[name] = wider, text, values
    windows = f", {found.windows:,} windows" if found.windows > 1 else ""
    say(f"Nearest to {printable(found.query)}{windows}")
    labels = [f"{name}: {_text(value)}" for name, value in _own_labels(found, shown)]
    if labels:
        say(f"  {', '.join(labels)}")
    if found.hits:
        say(table)
    say(f"  {found.clips_searched:,} clips by {found.encoder} compared in {found.seconds:.2f} s")


def _own_labels(found: Found, columns: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    from featstore.store.clip_fields import field_of

    own = []
    for field in columns if found.meta else ():
        try:
            own.append((field, field_of(found.meta, field, key=found.query)))
        except LabelError:
            continue
    return own


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), most=_TEXT)

"""Generate the page of JSON output from the records and their docstrings."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Literal

from docs.made.details import details_section, figures_section
from docs.made.markdown import code, from_rst, parse_docstring, table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """A record that commands print as JSON, and the differences between the JSON and the fields of the record.

    Attributes
    ----------
    record : str
        Module and name of the record.
    commands : tuple of str
        The commands that print it.
    flattened : tuple of str
        Fields that are records themselves; the JSON has their fields instead.
    omitted : tuple of str
        Fields that are not printed.
    computed : mapping
        Properties that are printed after a field.
    words : mapping
        Types of fields that are printed as another type.
    """

    record: str
    commands: tuple[str, ...]
    flattened: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()
    computed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


PRINTED = (
    Printed(
        record="featstore.records.ScoreRecord",
        commands=("probe --json", "retrieve --json", "demo --json", "report --format json"),
    ),
    Printed(
        record="featstore.report.comparison.Difference",
        commands=("report --compare A B --format json",),
        omitted=("title", "eval_weight"),
        computed={"value_b": ("difference",), "high": ("better",)},
        words={"settings": "object"},
    ),
    Printed(
        record="featstore.report.leaderboard.Table",
        commands=("report --format leaderboard-json",),
        omitted=("superseded",),
    ),
    Printed(record="featstore.records.ExtractRecord", commands=("extract --json",)),
    Printed(record="featstore.records.ExtractFailure", commands=("extract --json",)),
    Printed(record="featstore.encoders.check.Check", commands=("check --json",)),
    Printed(record="featstore.store.summary.Summary", commands=("inspect --json",)),
    Printed(
        record="featstore.store.summary.Details",
        commands=("inspect PATH --json", "inspect --verbose --json"),
        flattened=("summary",),
    ),
    Printed(record="featstore.diagnostics.Health", commands=("inspect --health --json",)),
    Printed(record="featstore.diagnostics.diff.SpaceDiff", commands=("diff --json",)),
    Printed(record="featstore.diagnostics.certificate.Certificate", commands=("audit --json",)),
    Printed(record="featstore.explore.query.QueryRecord", commands=("query --json",)),
    Printed(record="featstore.store.verify.VerifyReport", commands=("verify --json",)),
    Printed(record="featstore.store.maintenance.GcRecord", commands=("gc --json",)),
    Printed(record="featstore.store.maintenance.CompactRecord", commands=("compact --json",)),
    Printed(record="featstore.store.rename.RenameRecord", commands=("rename --json",)),
    Printed(record="featstore.store.copy.CopyRecord", commands=("copy --json",)),
    Printed(record="featstore.store.export.ExportRecord", commands=("export --json",)),
    Printed(record="featstore.extract.import_embeddings.ImportRecord", commands=("import --json",)),
    Printed(record="featstore.extract.import_embeddings.ImportFailure", commands=("import --json",)),
    Printed(record="featstore.extract.pack.PackRecord", commands=("pack --json",)),
    Printed(record="featstore.fetch.FetchRecord", commands=("fetch --json",)),
)
PRINTS_MANIFESTS = ("tasks",)


def json_page(printed: Sequence[Printed]) -> str:
    """Build the page: every record that a command prints, with the records inside it."""
    outer = [_found(each.record) for each in printed]
    inner = dict.fromkeys(kind for each in outer for kind in _inside(each))
    shown, plain = {*outer, *inner}, Printed(record="", commands=())
    sections = [
        f"## {kind.__name__}\n\nPrinted by {', '.join(code(f'featstore {line}') for line in each.commands)}\n\n"
        + record_section(kind, each, shown)
        for kind, each in zip(outer, printed, strict=True)
    ]
    inside = [f"### {kind.__name__}\n\n{record_section(kind, plain, shown)}" for kind in inner if kind not in outer]
    manifests = ", ".join(code(f"featstore {name} --json") for name in PRINTS_MANIFESTS)
    return "\n".join(
        [
            "# JSON output\n",
            "With `--json` a command prints one array on stdout and nothing else; progress and errors go to stderr.\n",
            "`--results DIR` writes each score to its own file, with these keys: `score`, the object; "
            "`results_format`; `written_at`, for display; `generation`, one more than the highest of its task, "
            "track, protocol and encoder in the folder; `key`, a hash of the inputs of the score; and `seal`, the "
            "SHA-256 of the canonical JSON (sorted keys, no spaces) of all other keys. If two files have a score for "
            "the same inputs, the higher generation counts, whatever the clocks show. `featstore report` skips and "
            "lists a file whose seal does not match, prints the others and exits with 1; files without a seal, of "
            "earlier versions, are read and counted. `featstore.report.read_results` returns `scores`, `unsealed` "
            "(files) and `failures`.\n",
            f"{manifests} prints [manifests](manifest.md) with the keys of their files, and with `--store` also "
            "`cached`: list of text, the encoders for which the store has the task.\n",
            *sections,
            details_section(),
            figures_section(),
            "## Records inside others\n",
            *inside,
        ]
    )


def _found(dotted: str) -> type:
    module, _, name = dotted.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if not isinstance(kind, type):
        raise TypeError(f"{dotted} is not a class")
    return kind


def _inside(kind: type) -> Iterator[type]:
    """Yield the records in the fields of a record, recursively."""
    for hint in typing.get_type_hints(kind).values():
        for part in _parts(hint):
            if dataclasses.is_dataclass(part):
                yield part
                yield from _inside(part)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in typing.get_args(hint):
        yield from _parts(inner)


def record_section(kind: type, printed: Printed, shown: Set[type]) -> str:
    rows: list[tuple[str, str, str]] = []
    for name, what, meaning in _rows(kind, printed, shown):
        if rows and meaning and rows[-1][1:] == (what, meaning):  # "value, std : float" describes both
            rows[-1] = (f"{rows[-1][0]}, {code(name)}", what, meaning)
        else:
            rows.append((code(name), what, meaning))
    return f"{_json(parse_docstring(kind).prose)}\n\n{table(('field', 'value', 'meaning'), rows)}"


def _rows(kind: type, printed: Printed, shown: Set[type]) -> Iterator[tuple[str, str, str]]:
    known, hints = parse_docstring(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in printed.flattened:
            yield from _rows(hints[field.name], printed, shown)
        elif field.name not in printed.omitted:
            what = printed.words.get(field.name) or json_words(hints[field.name], shown)
            yield field.name, what, _json(known.attributes.get(field.name, ""))
        for name in printed.computed.get(field.name, ()):
            getter = getattr(kind, name).fget
            yield name, json_words(typing.get_type_hints(getter)["return"], shown), from_rst(getter.__doc__)


def _json(text: str) -> str:
    """Replace Python's None by JSON's null in a description."""
    return re.sub(r"\bNone\b", "null", text)


_PLAIN: Mapping[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true`, `false`",
    types.NoneType: "null",
    Any: "any",
}


def json_words(hint: Any, shown: Set[type] = frozenset()) -> str:
    """Describe the JSON type of a field in words, with links to the records of `shown`.

    >>> json_words(tuple[str, ...]), json_words(float | None), json_words(Literal["A", "B"])
    ('list of text', 'number or null', '`"A"`, `"B"`')
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in shown:
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin is Literal:
        return ", ".join(code(json.dumps(value)) for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(json_words(each, shown) for each in inner)
    return _words_of_several(hint, shown)


def _plural(words: str) -> str:
    return f"{words}s" if words.endswith("number") else words


def _words_of_several(hint: Any, shown: Set[type]) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {_plural(json_words(inner[0], shown))}"
    if origin is tuple:
        return f"list of {len(inner)}: {', '.join(json_words(each, shown) for each in inner)}"
    if isinstance(origin, type) and issubclass(origin, Set):
        return f"list of {_plural(json_words(inner[0], shown))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "object" if inner[1] is Any else f"object of {_plural(json_words(inner[1], shown))}"
    raise TypeError(f"no words for {hint}: add them to docs/made/records.py")

"""The page of the manifest, from its models and rules."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from docs.made.markdown import code, table, told
from featstore.tasks import Manifest
from featstore.tasks.rules import METRICS_BY_KIND, OPTIONAL_LABEL_KEYS, REQUIRED_LABEL_KEYS, RETRIEVABLE_KINDS


def manifest_page() -> str:
    """Every key of a manifest, and what depends on the kind of task."""
    tables = [("", Manifest), *_tables(Manifest)]
    return "\n".join(
        [
            "# The manifest\n",
            "A task is one TOML file. `featstore tasks esc50` shows one that comes with featstore, `featstore pack` "
            "writes one for audio of your own, and [Bring a data set](../how-to/dataset.md) goes through it. A key "
            "that is not listed here is an error; all errors of a file are told at once, each with its place.\n",
            *(_table_section(name, model) for name, model in tables),
            "## What depends on the kind\n",
            _kinds_table(),
        ]
    )


def _tables(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind


def _table_section(name: str, model: type[BaseModel]) -> str:
    known, schema = told(model), model.model_json_schema()
    title = f"## [{name}]" if name else "## At the top"
    rows = []
    for key, field in model.model_fields.items():
        said = schema["properties"][key]
        what = f"a table, [see below](#{key})" if _is_table(field.annotation) else schema_words(said)
        default = "" if field.is_required() else "absent" if field.default is None else _toml(field.default)
        rows.append((code(key), what, "required" if field.is_required() else default, known.attributes.get(key, "")))
    summary, *_ = known.prose.split("\n\n")
    return f"{title}\n\n{summary}\n\n{table(('key', 'value', 'default', 'meaning'), rows)}"


def _is_table(annotation: object) -> bool:
    kinds = (annotation, *typing.get_args(annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def _toml(value: object) -> str:
    return "" if isinstance(value, BaseModel) else code(json.dumps(value))


def schema_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema of one value in words.

    >>> schema_words({"type": "number", "exclusiveMinimum": 0})
    'number above 0'
    >>> schema_words({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]})
    'list of text'
    """
    if "anyOf" in schema:
        return " or ".join(schema_words(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(code(json.dumps(value)) for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            return f"list of {schema_words(schema['items'])}"
        case "object":
            [value] = (schema.get("patternProperties") or {"": schema.get("additionalProperties")}).values()
            return f"table of {schema_words(value)}"
        case "integer" | "number" as number:
            word = "whole number" if number == "integer" else "number"
            above = f" above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else ""
            least = f" from {schema['minimum']:g} on" if "minimum" in schema else ""
            return f"{word}{above}{least}"
        case other:
            return "`true`, `false`" if other == "boolean" else "text"


def _kinds_table() -> str:
    rows = [
        (
            code(kind),
            ", ".join(map(code, metrics)),
            ", ".join(map(code, REQUIRED_LABEL_KEYS[kind])),
            ", ".join(map(code, OPTIONAL_LABEL_KEYS[kind])),
            "yes" if kind in RETRIEVABLE_KINDS else "no",
        )
        for kind, metrics in METRICS_BY_KIND.items()
    ]
    return table(("kind", "metric", "[label] must have", "[label] may have", "Track B"), rows)

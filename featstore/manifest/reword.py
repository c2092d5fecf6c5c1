"""pydantic's findings in the words of a manifest's author."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel

from featstore.manifest.wording import did_you_mean, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

__all__ = ["reworded"]

# Error type of pydantic -> what the value must be. {name} is filled from the error's own context.
MUST_BE: Mapping[str, str] = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_type": "a whole number",
    "model_type": "a table",
    "string_too_short": "text that is not empty",
    "string_type": "text in quotes",
    "tuple_type": "a list",
}


def reworded(error: ErrorDetails, *, root: type[BaseModel]) -> str:
    """Say one finding of pydantic to the author of a manifest, its place left out."""
    kind, place, value = error["type"], error["loc"], error["input"]
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind in MUST_BE:
        return f"must be {MUST_BE[kind].format(**context)}, got {shown(value)}"
    match kind:
        case "missing":
            says = "required, and missing"
        case "extra_forbidden":
            says = _unknown_key(place, root=root)
        case "literal_error":
            allowed = _literals_at(place, root=root)
            guess = did_you_mean(value, allowed) if isinstance(value, str) else ""
            says = f"must be one of {', '.join(allowed)}, got {shown(value)}{guess}"
        case "too_short":
            says = f"must hold at least {context['min_length']}, got {context['actual_length']}"
        case "value_error":
            says = str(context["error"])
        case _:
            says = f"{error['msg']}, got {shown(value)}"
    return says


def _unknown_key(place: tuple[int | str, ...], *, root: type[BaseModel]) -> str:
    key = str(place[-1])
    siblings = list(_table_at(place[:-1], root=root).model_fields)
    if guess := did_you_mean(key, siblings):
        return f"unknown key{guess}"
    home = next((f"[{name}]" for name, table in _tables_of(root) if key in table.model_fields), None)
    if home is None and len(place) > 1 and key in root.model_fields:
        home = "the top of the file"
    return f"unknown key; it belongs in {home}" if home else f"unknown key; known here: {', '.join(siblings)}"


def _table_at(place: tuple[int | str, ...], *, root: type[BaseModel]) -> type[BaseModel]:
    return next((table for name, table in _tables_of(root) if place[:1] == (name,)), root)


def _tables_of(root: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in root.model_fields.items():
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield name, candidate


def _literals_at(place: tuple[int | str, ...], *, root: type[BaseModel]) -> list[str]:
    """List the values that a Literal field of the top of the file takes."""
    annotation = root.model_fields[str(place[0])].annotation
    nested = [get_args(arg) for arg in get_args(annotation)]
    return [
        arg for arg in (*get_args(annotation), *(inner for group in nested for inner in group)) if isinstance(arg, str)
    ]

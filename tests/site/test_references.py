"""Pages that are made of the code say all of it."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from cached import cached
from docs.made import pages
from docs.made.records import PRINTED, PRINTS_MANIFESTS, Printed
from featstore.cli import cli
from featstore.evaluation.captions import DIRECTIONS
from featstore.metrics.registry import METRICS
from featstore.records import Recipe
from featstore.store.format import Commit, Member, ShardIdentity, Writing
from featstore.tasks import Manifest, builtin_tasks
from featstore.tasks.rules import METRICS_BY_KIND
from fenced import ROOT

SITE = pages(ROOT)
TRACKS = ("probe", "retrieve", "evaluation")


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Table rows under a heading, by what their first cell holds in code."""
    section = page.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in section.splitlines() if line.startswith("| `")]
    return {name: row for row in cells for name in re.findall(r"`([^`]+)`", row[0])}


def test_every_key_of_a_manifest_is_reported_with_its_meaning() -> None:
    page = SITE["reference/manifest.md"]
    for heading, model in [("## At the top", Manifest)] + [
        (f"## [{name}]", type(getattr(manifest, name)))
        for manifest in [builtin_tasks()[0]]
        for name in ("data", "label", "metric_args", "probe", "retrieve")
    ]:
        result = rows(page, heading)
        assert list(result) == list(model.model_fields)
        assert all(len(row) == 4 and row[3].strip() for row in result.values())


def test_values_and_defaults_of_a_manifest_are_those_of_the_model() -> None:
    page = SITE["reference/manifest.md"]
    assert rows(page, "## [probe]")["learning_rate"][1:3] == ["number above 0", "`0.001`"]
    assert rows(page, "## [probe]")["epochs"][1:3] == ["whole number from 1 on", "`10`"]
    assert rows(page, "## [data]")["crop_seconds"][1:3] == ["number above 0", "absent"]
    assert rows(page, "## At the top")["title"][1:3] == ["text", "required"]
    assert rows(page, "## At the top")["kind"][1] == ", ".join(f"`{json.dumps(kind)}`" for kind in METRICS_BY_KIND)


def test_every_kind_is_reported_with_its_metrics() -> None:
    result = rows(SITE["reference/manifest.md"], "## What depends on the kind")
    assert {
        kind: tuple(re.findall(r"`([^`]+)`", row[1])) for kind, row in result.items() if kind in METRICS_BY_KIND
    } == (METRICS_BY_KIND)


def test_every_task_is_listed_once() -> None:
    listed = re.findall(r"^\| `([^`]+)`", SITE["reference/tasks.md"], flags=re.MULTILINE)
    assert sorted(listed) == [task.name for task in builtin_tasks()]


def test_every_command_and_option_is_on_the_page() -> None:
    page = SITE["reference/command-line.md"]
    for name, command in cli.commands.items():
        result = " ".join(rows(page, f"## {name}"))
        options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
        assert not [each.opts[0] for each in options if each.opts[0] not in result]


def test_every_command_that_prints_json_says_what() -> None:
    documented = {line.split()[0] for each in PRINTED for line in each.commands if "--json" in line}
    can = {name for name, command in cli.commands.items() if any(each.name == "as_json" for each in command.params)}
    assert can == {*documented, *PRINTS_MANIFESTS}


def example(hint: Any) -> Any:
    """Some value of a type, records of records included."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{field.name: example(hints[field.name]) for field in dataclasses.fields(hint)})
    if origin in (typing.Union, types.UnionType, typing.Literal):
        return None if type(None) in inner else inner[0] if origin is typing.Literal else example(inner[0])
    return {} if isinstance(origin, type) and issubclass(origin, Mapping) else (origin or hint)()


@pytest.mark.parametrize("printed", PRINTED, ids=[each.record for each in PRINTED])
def test_a_record_is_reported_field_by_field_as_it_is_printed(printed: Printed) -> None:
    module, _, name = printed.record.rpartition(".")
    record = example(getattr(importlib.import_module(module), name))
    plain = record.as_json() if hasattr(record, "as_json") else dataclasses.asdict(record)
    assert sorted(rows(SITE["reference/json.md"], f"## {name}")) == sorted(plain)


def test_every_field_of_a_score_has_its_meaning() -> None:
    result = rows(SITE["reference/json.md"], "## ScoreRecord")
    assert all(row[2].strip() for row in result.values())
    assert result["seeds"][1] == "list of whole numbers"


def test_every_key_of_the_details_of_a_score_has_its_meaning() -> None:
    """Every name under which code of the tracks puts something into `details`, wherever it does."""
    kept = {*DIRECTIONS}  # told apart by a variable
    for path in (each for folder in TRACKS for each in sorted((ROOT / "featstore" / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            kept |= set(_kept_by(node))
    assert kept == set(rows(SITE["reference/json.md"], "## Details of a score"))


def test_every_key_of_the_figures_of_a_check_has_its_meaning() -> None:
    kept: set[str] = set()
    for path in sorted((ROOT / "featstore/encoders/check").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case (
                    ast.keyword(arg="figures", value=ast.Dict() as found)
                    | ast.Assign(targets=[ast.Name(id="figures")], value=found)
                    | ast.AnnAssign(target=ast.Name(id="figures"), value=found)
                    | ast.AugAssign(target=ast.Name(id="figures"), value=found)
                ):
                    kept |= {key for each in ast.walk(found) if isinstance(each, ast.Dict) for key in _texts(each.keys)}
    assert kept == set(rows(SITE["reference/json.md"], "## Figures of a check"))


def _kept_by(node: ast.AST) -> Iterator[str]:
    """Keys of a dict that is called details, or returned by a function that makes some of them."""
    match node:
        case ast.keyword(arg="details", value=ast.Dict(keys=keys)):
            yield from _texts(keys)
        case ast.AnnAssign(target=ast.Name(id="details"), value=ast.Dict(keys=keys)):
            yield from _texts(keys)
        case ast.Subscript(value=ast.Name(id="details"), slice=ast.Constant(value=str(key))):
            yield key
        case ast.FunctionDef(name=name) if name.strip("_") in {"by_class", "confusion_details", "origin_details"}:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Dict):
                    yield from _texts(inner.keys)


def _texts(keys: Sequence[ast.expr | None]) -> Iterator[str]:
    yield from (each.value for each in keys if isinstance(each, ast.Constant) and isinstance(each.value, str))


@pytest.mark.parametrize("record", [Recipe, Commit, Member, ShardIdentity, Writing])
def test_a_document_of_a_store_is_reported_field_by_field(record: type) -> None:
    result = rows(SITE["reference/documents.md"], f"## {record.__name__}")
    assert list(result) == [field.name for field in dataclasses.fields(record)]


def test_every_array_of_a_part_is_reported_as_it_is_stored(tmp_path: Path) -> None:
    [split] = Path(cached(tmp_path).url).glob("mel@*/words/train")
    documents = {path.parent.name: json.loads(path.read_text()) for path in split.glob("*/*/zarr.json")}
    result = rows(SITE["reference/documents.md"], "## Arrays")
    assert {name: row[1] for name, row in result.items()} == {name: it["data_type"] for name, it in documents.items()}
    assert all(f"`{codec['name']}`" in result[name][4] for name, it in documents.items() for codec in it["codecs"])


def test_protocols_are_reported_by_what_they_plan_and_define() -> None:
    page = SITE["reference/rules.md"]
    assert list(rows(page, "## Metrics")) == list(METRICS)
    assert rows(page, "## Metrics")["mAP"][3:5] == ["absent class: skip", "absent class: zero"]
    for planned in (
        "valid is train | A | 90 train, 10 select, 100 tested | 100 train, 100 select, 100 tested",
        "all three are the same | B | 100 tested, each on the other 99 | "
        "100 searched, 100 tested, 100 of them also in training",
        "seeds of heads with random initialisation | 0, 1, 2 | 42",
    ):
        assert f"| {planned} |\n" in page


def test_links_from_record_to_record_have_a_target() -> None:
    page = SITE["reference/json.md"] + SITE["reference/documents.md"]
    headings = {line.lstrip("# ").lower() for line in page.splitlines() if line.startswith("#")}
    assert not [target for target in re.findall(r"\]\(#([a-z]+)\)", page) if target not in headings]


@pytest.mark.parametrize("module", ["markdown", "manifest", "records", "commands"])
def test_examples_of_the_generators_are_true(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"docs.made.{module}"))
    assert outcome.attempted
    assert not outcome.failed

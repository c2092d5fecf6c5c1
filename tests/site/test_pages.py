"""What the pages show is right: commands are commands, manifests are manifests, fields are those of the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest

from featstore.cli import cli
from featstore.encoders import load_encoder
from featstore.records import Recipe
from featstore.store.format import Commit, Member, ShardIdentity, Writing
from featstore.tasks import load_manifest
from featstore.tasks.rules import KINDS
from fenced import PAGES, ROOT, blocks, featstore_commands

COMMANDS = [(page, words) for page in PAGES for words in featstore_commands(page)]
MANIFESTS = [(page, block.text) for page in PAGES for block in blocks(page) if block.language == "toml"]


def named(of: list[tuple[Path, list[str]]]) -> list[str]:
    return [f"{page.name}: {' '.join(words)}" for page, words in of]


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=named(COMMANDS))
def test_a_command_on_a_page_is_one_that_featstore_takes(page: Path, words: list[str]) -> None:
    command = cli.commands[words[0]]
    parent = click.Context(cli, info_name="featstore")
    assert command.make_context(words[0], words[1:], parent=parent).params


@pytest.mark.parametrize(("page", "text"), MANIFESTS, ids=[page.name for page, _ in MANIFESTS])
def test_a_manifest_on_a_page_is_one(page: Path, text: str, tmp_path: Path) -> None:
    path = tmp_path / "shown.toml"
    path.write_text(text, encoding="utf-8")
    assert load_manifest(path).title


def test_the_encoder_on_the_page_keeps_the_contract(tmp_path: Path) -> None:
    [block] = [each for each in blocks(ROOT / "docs/how-to/encoder.md") if each.title]
    path = tmp_path / block.title
    path.write_text(block.text, encoding="utf-8")
    assert load_encoder(str(path), arguments={"width": 8}).name == "MyEncoder"


@pytest.mark.parametrize("record", [Recipe, Commit, Member, ShardIdentity, Writing])
def test_the_page_of_the_store_names_every_field(record: type) -> None:
    page = (ROOT / "docs/store-format.md").read_text(encoding="utf-8")
    named = {field.name for field in dataclasses.fields(record)} - {"fingerprint_name"}  # the name of a group has it
    assert not [name for name in sorted(named) if f"`{name}`" not in page]


@pytest.mark.parametrize(("command", "option"), [("probe", "head"), ("retrieve", "index"), ("probe", "protocol")])
def test_the_page_of_protocols_names_every_choice(command: str, option: str) -> None:
    page = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
    [parameter] = [each for each in cli.commands[command].params if each.name == option]
    assert isinstance(parameter.type, click.Choice)
    assert not [choice for choice in parameter.type.choices if choice not in page]


def test_the_page_of_protocols_names_every_kind() -> None:
    page = (ROOT / "docs/protocols.md").read_text(encoding="utf-8")
    assert not [kind for kind in KINDS if kind not in page]

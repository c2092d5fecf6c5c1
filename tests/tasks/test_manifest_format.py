from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

import tiny
from featstore.errors import ManifestError
from featstore.tasks import METRICS_BY_KIND, Data, Kind, Label, Manifest, Splits, load_manifest

GOOD = """
name = "birds"
title = "Birds"
kind = "clip"
metric = "accuracy"
eval_weight = 100

[data]
dataset = "birds"

[splits]
train = "train*.tar"
valid = "valid*.tar"
test = "test*.tar"

[label]
field = "species"
"""


def problems_of(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "birds.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value.problems


def edited(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_a_minimal_manifest_is_filled_with_the_published_defaults(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text(GOOD)
    task = load_manifest(path)
    assert (task.probe.epochs, task.probe.learning_rate, task.probe.batch_size) == (10, 1e-3, 32)
    assert (task.retrieve.enabled, task.retrieve.k, task.retrieve.temperature) == (True, 10, 0.07)
    assert task.patterns == {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"}
    assert not task.private


def test_a_manifest_full_of_slips_gives_one_line_for_each(tmp_path: Path) -> None:
    text = """
    name = "my task"
    titel = "Birds"
    kind = "multilable"
    metric = "mAP"
    eval_weight = "100"
    epochs = 5

    [data]
    dataset = "../birds"
    crop_seconds = -1

    [splits]
    train = "train*.tar"
    valid = "train-extra*.tar"

    [label]
    field = "species"
    classes = ["owl", "wren", "owl"]

    [probe]
    epoch = 0
    batch_size = 1.5
    learning_rate = nan

    [retreive]
    k = 5
    """
    problems = dict(problem.split(": ", 1) for problem in problems_of(tmp_path, text))
    assert list(problems) == [
        "name",
        "title",
        "kind",
        "eval_weight",
        "data.dataset",
        "data.crop_seconds",
        "label.classes",
        "probe.learning_rate",
        "probe.batch_size",
        "probe.epoch",
        "titel",
        "epochs",
        "retreive",
        "splits.test",
        "splits.train",
    ]
    given = {"name": "'my task'", "kind": "'multilable'", "eval_weight": "'100'", "data.dataset": "'../birds'"}
    given |= {"data.crop_seconds": "-1", "label.classes": "['owl', 'wren', 'owl']", "probe.batch_size": "1.5"}
    assert all(f"{value}" in problems[place] for place, value in given.items())
    suggested = {"kind": "multilabel", "probe.epoch": "epochs", "epochs": "[probe]", "titel": "title"}
    assert all(word in problems[place] for place, word in {**suggested, "retreive": "retrieve"}.items())
    assert problems["title"] == problems["splits.test"] == "Field required"


@pytest.mark.parametrize(
    ("old", "new", "place", "named"),
    [
        ("[splits]", "[folds]\n1 = 'a.tar'\n2 = 'b.tar'\n[splits]", "folds", "splits"),
        ('field = "species"', "", "label.field", "clip"),
        ('field = "species"', 'field = "a"\nonset = "start"', "label.onset", "clip"),
        ('field = "species"', 'field = "a"\nseparator = ";"', "label.separator", "clip"),
        ('field = "species"', 'field = "a"\ncaptions = "*"', "label.captions", "clip"),
        ('field = "species"', 'field = "speaker..sex"', "label.field", "'speaker..sex'"),
        ('field = "species"', 'field = "a"\nclasses = ["owl"]', "label.classes", "2"),
        ('field = "species"', 'field = "a"\nclasses = [1, 2]', "label.classes[0]", "1"),
        (
            'field = "species"',
            'field = "a"\nclasses = ["male", "female"]\nmapping = { "M" = "mal" }',
            "label.mapping.M",
            "male",
        ),
        ('"accuracy"', '"acuracy"', "metric", "accuracy"),
        ('"accuracy"', '"segment_f1_macro"', "metric", "accuracy"),
        ('kind = "clip"', 'kind = "frame"', "metric", "segment_f1_micro"),
        ("[label]", "[metric_args]\nsegment_seconds = 1\n[label]", "metric_args.segment_seconds", "segment_f1_macro"),
        ("[label]", "[probe]\npos_weight = 10\n[label]", "probe.pos_weight", "multilabel"),
        ("[label]", "[probe]\ntokenizer = 'bert'\n[label]", "probe.tokenizer", "contrastive"),
        ("[label]", "[probe]\nlanguage_model = 'qwen'\n[label]", "probe.language_model", "asr"),
        ("[label]", "[probe]\ntokenizer = ' '\n[label]", "probe.tokenizer", "' '"),
        ("[label]", "[probe]\nk = 10\n[label]", "probe.k", "[retrieve]"),
        ("[label]", "[retrieve]\nenabled = 1\n[label]", "retrieve.enabled", "1"),
        ("[label]", "[probe]\nepochs = true\n[label]", "probe.epochs", "true"),
        ("= 100", "= true", "eval_weight", "true"),
        ("= 100", "= -1", "eval_weight", "-1"),
        ("[data]", "data = 3\n[dat]", "data", "3"),
        ('dataset = "birds"', 'dataset = "birds+crop5s"', "data.dataset", "'birds+crop5s'"),
        ('dataset = "birds"', 'dataset = "birds"\nzenodo = "10.5281/zenodo.1"', "data.zenodo", "'10.5281/zenodo.1'"),
        ('"train*.tar"', '"/data/train*.tar"', "splits.train", "folder"),
        ('"train*.tar"', '"../train*.tar"', "splits.train", "folder"),
        ('"train*.tar"', "'train\\a.tar'", "splits.train", "folder"),
        ('"train*.tar"', '"train-{00..09.tar"', "splits.train", "braces"),
        ('"train*.tar"', '"train*"', "splits.train", "tar"),
        ('title = "Birds"', 'title = "Bi\\nrds"', "title", "'Bi\\nrds'"),
    ],
)
def test_a_wrong_field_is_reported_at_its_place(tmp_path: Path, old: str, new: str, place: str, named: str) -> None:
    problems = problems_of(tmp_path, edited(old, new))
    assert any(problem.startswith(f"{place}: ") and named in problem for problem in problems), problems


def test_a_missing_table_is_one_problem_and_not_one_for_each_of_its_keys(tmp_path: Path) -> None:
    text = edited('[label]\nfield = "species"', "")
    assert problems_of(tmp_path, text) == ("label: Field required",)


def test_shards_without_splits_or_folds_are_asked_for(tmp_path: Path) -> None:
    text = edited('[splits]\ntrain = "train*.tar"\nvalid = "valid*.tar"\ntest = "test*.tar"', "")
    assert problems_of(tmp_path, text) == (
        "splits: give [splits] with train, valid and test, or [folds] with one shard pattern each",
    )


def test_fold_1_does_not_swallow_fold_10(raw: Callable[..., dict[str, Any]]) -> None:
    swallowing = raw(splits=None, folds={"1": "fold1*.tar", "10": "fold10*.tar"})
    with pytest.raises(ValidationError, match="10"):
        Manifest.model_validate(swallowing)
    assert Manifest.model_validate(raw(splits=None, folds={"1": "fold1-*.tar", "10": "fold10-*.tar"})).folds


def test_two_folds_never_hold_the_same_shards(raw: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ValidationError, match="'1'"):
        Manifest.model_validate(raw(splits=None, folds={"1": "a.tar", "2": "b.tar", "3": "a.tar"}))
    with pytest.raises(ValidationError, match=r"\b2\b.*\b1\b"):
        Manifest.model_validate(raw(splits=None, folds={"1": "a.tar"}))


def test_only_clip_tasks_are_retrieved_by_default(raw: Callable[..., dict[str, Any]]) -> None:
    assert not Manifest.model_validate(raw(kind="regression")).retrieve.enabled
    with pytest.raises(ValidationError, match="enabled = false"):
        Manifest.model_validate(raw(kind="regression", retrieve={"k": 3}))


def test_a_manifest_built_from_models_is_checked_like_a_file() -> None:
    splits = Splits(train="train*.tar", valid="test*.tar", test="test*.tar")
    common: dict[str, Any] = {
        "name": "x",
        "title": "X",
        "eval_weight": 1.0,
        "data": Data(dataset="x"),
        "splits": splits,
    }
    task = Manifest(kind="clip", metric="accuracy", label=Label(field="y"), **common)
    assert Manifest.model_validate(task.model_dump(exclude_unset=True)) == task
    with pytest.raises(ValidationError, match=r"label\.separator"):
        Manifest(kind="clip", metric="accuracy", label=Label(field="y", separator=";"), **common)
    with pytest.raises(ValidationError, match="frozen"):
        task.name = "y"


def test_every_kind_has_metrics_and_no_other_word_is_a_kind() -> None:
    assert set(METRICS_BY_KIND) == set(get_args(Kind))


def test_a_syntax_error_carries_its_line_and_column(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, 'name = "birds"\ntitle = Birds\n')
    assert problem.startswith("is not TOML")
    assert re.search(r"\b2\b.*\b9\b", problem)


def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes('title = "Vögel"'.encode("latin-1"))
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 100_000)
    messages = {}
    for path in (tmp_path / "absent.toml", tmp_path, latin, deep):
        with pytest.raises(ManifestError) as caught:
            load_manifest(path)
        messages[path.name] = str(caught.value)
    assert messages["absent.toml"].startswith(f"{tmp_path / 'absent.toml'}: ")
    assert messages[tmp_path.name].startswith(f"{tmp_path}: ")
    assert re.search(r"\b10\b.*\b0xf6\b", messages["latin.toml"])
    assert messages["deep.toml"].startswith(f"{tmp_path / 'deep.toml'}: ")


def test_a_byte_order_mark_is_no_part_of_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_manifest(path).name == "birds"


def test_importing_featstore_and_its_command_line_leaves_pydantic_alone() -> None:
    code = "import sys, featstore, featstore.errors, featstore.records; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_group_is_named_beside_splits_or_alone_beside_folds(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text(edited('test = "test*.tar"', 'test = "test*.tar"\ngroup = "recording.site"'))
    assert load_manifest(path).group == "recording.site"
    assert load_manifest(path).patterns == {"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar"}
    splits = GOOD[GOOD.index("[splits]") : GOOD.index("[label]")]
    folds = '[splits]\ngroup = "site"\n\n[folds]\nfirst = "first*.tar"\nsecond = "second*.tar"\n\n'
    path.write_text(GOOD.replace(splits, folds))
    assert load_manifest(path).group == "site"
    assert list(load_manifest(path).patterns) == ["first", "second"]


def test_a_group_takes_the_place_of_no_pattern(tmp_path: Path) -> None:
    alone = GOOD.replace(GOOD[GOOD.index("[splits]") : GOOD.index("[label]")], '[splits]\ngroup = "site"\n\n')
    assert [problem.split(":")[0] for problem in problems_of(tmp_path, alone)] == [
        "splits.train",
        "splits.valid",
        "splits.test",
    ]
    (problem,) = problems_of(tmp_path, edited('test = "test*.tar"', 'test = "test*.tar"\ngroup = "a..b"'))
    assert problem.startswith("splits.group")


def test_a_group_is_part_of_what_a_manifest_says_and_its_absence_is_not(tmp_path: Path) -> None:
    path = tmp_path / "birds.toml"
    path.write_text(GOOD)
    without = load_manifest(path).sha256
    path.write_text(edited('test = "test*.tar"', 'test = "test*.tar"\ngroup = "site"'))
    assert load_manifest(path).sha256 != without


@pytest.mark.parametrize(
    ("kind", "metric", "head"),
    [("clip", "accuracy", "ridge"), ("regression", "mae", "sweep"), ("regression", "mae", "logistic")],
)
def test_a_head_that_the_kind_does_not_have_is_a_problem_of_its_key(kind, metric, head):
    with pytest.raises(ValidationError) as caught:
        tiny.task(kind=kind, metric=metric, probe={"head": head})
    assert [error["loc"] for error in caught.value.errors()] == [("probe", "head")]
    named, plain = (tiny.task(kind=kind, metric=metric, probe=probe) for probe in ({"head": "linear"}, {}))
    assert (named.probe.head, plain.probe.head) == ("linear", None)
    assert named.sha256 != plain.sha256

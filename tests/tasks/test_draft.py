"""Drafts of manifests: what a label is, from its values; splits, from their names; splits that are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from featstore.errors import UsageError
from featstore.tasks import METRICS_BY_KIND, load_manifest
from featstore.tasks.draft import draft_manifest, find_label, strata_of
from featstore.tasks.rules import RETRIEVABLE_KINDS
from featstore.tasks.splits import draw_splits

EVENTS = [{"onset": 0.0, "offset": 1.5, "label": "bark"}, {"onset": 2, "offset": 3, "label": "miaow"}]


def found(values: list[Any], **options: Any) -> Any:
    return find_label([{"x": value} for value in values], "x", **options)


@pytest.mark.parametrize(
    ("values", "kind", "n_values"),
    [
        (["cat", "dog", "cat", None, ""], "clip", 2),
        ([True, False, True], "clip", 2),
        ([1, 2, 1, 2, 3, 3], "clip", 3),
        ([1, 2.0, 1.0, 2], "clip", 2),
        (["1", "2", "1", "3", "4"], "clip", 4),  # JSON text is a class, whatever it looks like
        ([1, 2, 3, 4, 5], "regression", 5),
        (list(range(101)) * 3, "regression", 101),
        (list(range(100)) * 2, "clip", 100),
        ([0.5, 1, 2, 2, 2], "regression", 3),
        ([["a", "b"], [], ["a"]], "multilabel", 2),
        ([["a"], "b", 3], "multilabel", 3),
        ([EVENTS, [], EVENTS[:1]], "frame", 2),
        ([[], []], "multilabel", 0),
    ],
)
def test_the_kind_of_a_label(values: list[Any], kind: str, n_values: int) -> None:
    label = found(values)
    assert (label.kind, label.n_values) == (kind, n_values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2", "1", "2"], "clip"),
        (["0.5", "1", "2e-3"], "regression"),
        (["1_0", "2.5"], "clip"),
        (["nan", "1.5"], "clip"),
        (["1", "2", "x", "2.5"], "clip"),
    ],
)
def test_text_of_a_csv_that_is_a_number_counts_as_one(values: list[str], kind: str) -> None:
    assert found(values, is_text=True).kind == kind


def test_a_kind_that_the_caller_names_is_checked_against_the_values() -> None:
    assert found([1, 2, 3], kind="clip").n_values == 3
    assert found([1, 1, 2, 2], kind="regression").kind == "regression"
    assert found(["one two", "three"], kind="ctc").keys == {"field": "x"}
    assert found(["one two", "three"], kind="contrastive").keys == {"captions": ["x"]}
    for values, kind in [(["a"], "regression"), (["a"], "frame"), ([["a"]], "clip"), ([3], "ctc"), ([{}], "clip")]:
        with pytest.raises(UsageError):
            found(values, kind=kind)
    with pytest.raises(UsageError):
        found(["a"], kind="sort")


def test_a_separator_divides_classes() -> None:
    label = found(["a;b", "b", ""], separator=";")
    assert (label.kind, label.n_values, dict(label.keys)) == ("multilabel", 2, {"field": "x", "separator": ";"})
    assert found(["a;b", "b", "b"]).kind == "clip"
    with pytest.raises(UsageError):
        found([1.5], separator=";", kind="regression")


@pytest.mark.parametrize(
    ("event", "keys"),
    [
        ({"begin": 0, "end": 1, "what": "x"}, ("begin", "end", "what")),
        ({"start": "0.5", "end": "1", "species": "x"}, ("start", "end", "species")),
        ({"onset": 0, "offset": 1, "score": 0.5, "class": "x"}, ("onset", "offset", "class")),
    ],
)
def test_events_by_the_names_of_their_times(event: dict[str, Any], keys: tuple[str, ...]) -> None:
    label = found([[event]])
    assert (label.kind, label.keys["onset"], label.keys["offset"], label.keys["field"]) == ("frame", *keys)


def test_events_without_a_class_are_no_label() -> None:
    with pytest.raises(UsageError):
        found([[{"onset": 0, "offset": 1}]])


def test_no_label_is_an_error_that_lists_the_columns() -> None:
    with pytest.raises(UsageError, match="speaker"):
        find_label([{"speaker": "a"}], "label")


@pytest.mark.parametrize("kind", sorted(METRICS_BY_KIND))
@pytest.mark.parametrize(
    "splits", [["all"], ["train", "test"], ["train", "validation"], ["train", "dev", "test"], ["1", "2"]]
)
def test_a_draft_is_a_manifest_of_every_kind(kind: str, splits: list[str], tmp_path: Path) -> None:
    values = {"frame": EVENTS, "multilabel": ["a", "b"], "regression": 0.5}.get(kind, "text")
    label = found([values], kind=kind)
    path = tmp_path / "x.toml"
    path.write_text(draft_manifest(dataset="birds", label=label, splits=splits, group="speaker"))
    manifest = load_manifest(path)
    assert (manifest.kind, manifest.group) == (kind, "speaker")
    assert manifest.metric == METRICS_BY_KIND[kind][0]
    assert manifest.retrieve.enabled == (kind in RETRIEVABLE_KINDS)
    expected = {f"{name}-*.tar" for name in splits}
    assert set(manifest.patterns.values()) == expected
    assert (manifest.folds is not None) == (splits == ["1", "2"])


# --- drawn splits -----------------------------------------------------------------------------------------------------


def drawn(n_groups: int, n_folds: int | None, *, seed: int = 0) -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = [f"s{group}" for group in rng.integers(0, n_groups, 40 * n_groups)]
    strata = rng.integers(0, 4, len(groups))
    ids = [f"clip-{at}" for at in range(len(groups))]
    return draw_splits(ids=ids, strata=strata, groups=groups, n_folds=n_folds), groups, strata


@pytest.mark.parametrize("n_groups", [2, 3, 4, 7, 10, 25, 60])
@pytest.mark.parametrize("n_folds", [None, 2, 5])
def test_a_group_is_never_in_two_parts(n_groups: int, n_folds: int | None) -> None:
    if n_folds and n_folds > n_groups:
        with pytest.raises(ValueError, match=str(n_groups)):
            drawn(n_groups, n_folds)
        return
    names, groups, _ = drawn(n_groups, n_folds)
    parts: dict[str, set[str]] = {}
    for name, group in zip(names, groups, strict=True):
        parts.setdefault(group, set()).add(name)
    assert all(len(each) == 1 for each in parts.values())
    expected = {f"fold{at}" for at in range(1, (n_folds or 0) + 1)} or {"train", "test", "valid"} - (
        {"valid"} if n_groups == 2 else set()
    )
    assert set(names) == expected


def test_shares_are_70_10_20_and_strata_keep_theirs_as_well_as_in_scikit_learn() -> None:
    names, groups, strata = drawn(60, None)
    shares = {name: count / len(names) for name, count in Counter(names).items()}
    assert shares == pytest.approx({"train": 0.7, "valid": 0.1, "test": 0.2}, abs=0.03)

    def unevenness(fold_of: np.ndarray) -> float:
        counts = np.array([np.bincount(strata[fold_of == fold], minlength=4) for fold in np.unique(fold_of)])
        return float(np.std(counts / np.bincount(strata), axis=0).mean())

    folds, groups, strata = drawn(60, 5, seed=1)
    ours = unevenness(np.unique(folds, return_inverse=True)[1])
    theirs = np.zeros(len(groups), int)
    for fold, (_, test) in enumerate(StratifiedGroupKFold(5).split(groups, strata, groups)):
        theirs[test] = fold
    blind = np.zeros(len(groups), int)
    for fold, (_, test) in enumerate(GroupKFold(5).split(groups, strata, groups)):
        blind[test] = fold
    assert ours < 1.5 * unevenness(theirs)
    assert ours < unevenness(blind)


def test_drawn_splits_depend_on_the_clips_alone() -> None:
    ids = [f"clip-{at}" for at in range(100)]
    strata = np.arange(100) % 3
    names = draw_splits(ids=ids, strata=strata, groups=None, n_folds=None)
    assert Counter(names) == {"train": 70, "valid": 10, "test": 20}
    order = np.random.default_rng(0).permutation(100)
    again = draw_splits(ids=[ids[at] for at in order], strata=strata[order], groups=None, n_folds=None)
    assert [names[at] for at in order] == again
    assert all(Counter(np.array(strata)[np.array(names) == "test"]).values())


def test_strata_are_classes_rarest_classes_and_tenths() -> None:
    def strata(values: list[Any], **options: Any) -> list[int]:
        return strata_of([{"x": value} for value in values], found(values, **options))

    assert strata(["b", "a", "b", None]) == [2, 1, 2, 0]
    assert strata([["a", "b"], ["a"], ["a", "c"]]) == [1, 0, 2]
    assert strata([each / 2 for each in range(20)]) == [each // 2 for each in range(20)]
    assert strata([EVENTS, EVENTS[:1]]) == [1, 0]

"""An encoder gets another name in its store; whenever the rename is killed, the store is complete."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from stores import DEAD_HERE, shard_windows, split_writer, write_part, writing

import featstore
from featstore.errors import PartLost, StoreError, UnknownFeatureSet, UsageError
from featstore.store import note_in_encoder_group, open_split_writer, read_encoder_group, recipe_groups
from featstore.store import rename as rename_module
from featstore.store.filesystem import open_objects
from featstore.store.format import GROUP_DOCUMENT
from featstore.store.rename import rename_encoder
from featstore.store.repair import repair_store
from featstore.store.verify import verify_store

TINY = {"class": "Tiny"}
OUTPUTS = {
    "tiny": {},
    "tiny.layer3": {"encoder_identity": {**TINY, "layer": 3}},
    "tiny.layer3.max": {"encoder_identity": {**TINY, "layer": 3}, "pool": "max"},
    "tiny.std": {"pool": "std"},
}
OTHERS = {"tinyer": {}, "tiny.layer3b": {"named_by": "place"}, "other": {"encoder_identity": {"class": "Other"}}}


def fill(url: str, name: str, **changes: object) -> None:
    writer = split_writer(url, encoder=name, **changes)
    write_part(writer, "a.tar", shard_windows("a.tar"))
    writer.write_catalogue()


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = str(tmp_path / "s.zarr")
    for name, changes in {**OUTPUTS, **OTHERS}.items():
        fill(url, name, **changes)
    return url


def contents(url: str) -> dict[str, tuple[str, bytes]]:
    """Name of each feature set's encoder, by fingerprint, with its vectors."""
    return {fs.fingerprint: (fs.encoder, fs.utterance.tobytes()) for fs in featstore.open(url).feature_sets()}


def names(url: str) -> set[str]:
    return {group.rpartition("@")[0] for group in recipe_groups(url)}


def test_all_outputs_of_an_encoder_are_renamed_and_nothing_else_changes(url: str) -> None:
    before = contents(url)
    canary = {"version": 1, "signals": {}, "made_by": {}}
    group = next(name for name in recipe_groups(url) if name.startswith("tiny@"))
    note_in_encoder_group(url, group, canary=canary)
    records = rename_encoder(url, "tiny", "mine")
    assert {(each.before.split("@")[0], each.after.split("@")[0]) for each in records} == {
        (name, name.replace("tiny", "mine")) for name in OUTPUTS
    }
    assert names(url) == {name.replace("tiny", "mine") for name in OUTPUTS} | set(OTHERS)
    after = contents(url)
    assert {key: vectors for key, (_, vectors) in after.items()} == {
        key: vectors for key, (_, vectors) in before.items()
    }
    assert after[group.split("@")[1]][0] == "mine"
    renamed = read_encoder_group(url, group.replace("tiny", "mine"))
    assert renamed is not None
    assert (renamed.canary, renamed.recipe.encoder) == (canary, "mine")
    assert verify_store(url).sound
    assert "mine.layer3.max/words/train" in featstore.open(url)
    assert rename_encoder(url, "mine", "tiny")[0].after.startswith("tiny")
    assert contents(url) == before


def test_a_writer_continues_under_the_new_name(url: str) -> None:
    rename_encoder(url, "tiny", "mine")
    recipe = featstore.open(url).resolve_encoder("mine")
    writer = open_split_writer(url, recipe=recipe, spec="tiny", dataset="words", crop_seconds=None, split="train")
    assert set(writer.begin_run()) == {"a.tar"}
    write_part(writer, "b.tar", shard_windows("b.tar"))
    writer.write_catalogue()
    more = open_split_writer(url, recipe=recipe, spec="tiny", dataset="words", crop_seconds=None, split="test")
    write_part(more, "c.tar", shard_windows("c.tar"))
    more.write_catalogue()
    assert [len(fs) for fs in featstore.open(url).feature_sets(encoder="mine")] == [5, 10]
    assert verify_store(url).sound


def test_one_recipe_of_several_is_renamed_with_its_outputs(url: str) -> None:
    exact = {**OUTPUTS["tiny.layer3"], "padding": "exact"}
    fill(url, "tiny", padding="exact")
    fill(url, "tiny.layer3", **exact)
    fingerprint = split_writer(url, encoder="tiny", padding="exact").path.partition("/")[0].partition("@")[2]
    records = rename_encoder(url, f"tiny@{fingerprint}", "unpadded")
    assert [each.after.partition("@")[0] for each in records] == ["unpadded.layer3", "unpadded"]
    assert set(OUTPUTS) < names(url)
    assert len(rename_encoder(url, "tiny", "unpadded")) == len(OUTPUTS)  # another fingerprint of a name is fine
    assert "tiny" not in names(url)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("nothing", "mine", UnknownFeatureSet),
        ("tiny@00000000", "mine", UnknownFeatureSet),
        ("tiny.layer9", "mine", UnknownFeatureSet),
        ("tiny.layer3", "mine", UsageError),
        ("tiny", "tiny", UsageError),
        ("tiny", "a/b", UsageError),
        ("tiny", "../a", UsageError),
        ("tiny", "a@00000000", UsageError),
        ("tiny", "mine.max", UsageError),
    ],
)
def test_what_cannot_be_renamed_is_refused_and_nothing_changes(
    old: str, new: str, kind: type[Exception], url: str
) -> None:
    before = recipe_groups(url)
    with pytest.raises(kind) as caught:
        rename_encoder(url, old, new)
    assert "\n" not in str(caught.value)
    assert recipe_groups(url) == before


def test_the_same_encoder_under_the_new_name_is_refused(url: str) -> None:
    recipe = featstore.open(url).resolve_encoder("tiny.std")
    twin = recipe.renamed("mine.std")
    writer = open_split_writer(url, recipe=twin, spec="tiny", dataset="words", crop_seconds=None, split="train")
    write_part(writer, "a.tar", shard_windows("a.tar"))
    before = recipe_groups(url)
    with pytest.raises(StoreError, match=r"mine\.std@"):
        rename_encoder(url, "tiny", "mine")
    assert recipe_groups(url) == before


def test_a_store_on_a_server_is_refused_in_one_line() -> None:
    with pytest.raises(StoreError) as caught:
        rename_encoder("memory://rename.zarr", "tiny", "mine")
    assert "\n" not in str(caught.value)


def test_a_damaged_document_is_no_obstacle_and_is_repaired_under_the_new_name(url: str) -> None:
    group = next(name for name in recipe_groups(url) if name.startswith("tiny@"))
    (Path(url) / group / GROUP_DOCUMENT).write_text("{")
    (Path(url) / "tiny@notes").mkdir()
    assert len(rename_encoder(url, "tiny", "mine")) == len(OUTPUTS)
    assert not verify_store(url).sound
    repair_store(url)
    assert [finding.where for finding in verify_store(url).findings] == ["tiny@notes"]
    assert featstore.open(url).select(encoder="mine").recipe.fingerprint == group.partition("@")[2]


# --- writers ----------------------------------------------------------------------------------------------------------


def test_a_live_writer_is_refused_and_a_dead_one_is_not(url: str) -> None:
    writer = split_writer(url, encoder="tiny.layer3", **OUTPUTS["tiny.layer3"])
    part = writer.begin_part("b.tar")
    before = recipe_groups(url)
    with pytest.raises(StoreError, match=r"tiny\.layer3@\w+/words/train/b\.\w+ is being written"):
        rename_encoder(url, "tiny", "mine")
    assert recipe_groups(url) == before
    part.abort()
    objects = open_objects(url)
    objects.write(f"{writer.path}/b.00000000/{GROUP_DOCUMENT}", writing(**DEAD_HERE))
    assert len(rename_encoder(url, "tiny", "mine")) == len(OUTPUTS)


def test_a_writer_between_two_parts_stops_and_leaves_nothing_under_the_old_name(url: str) -> None:
    writer = split_writer(url, encoder="tiny")
    rename_encoder(url, "tiny", "mine")
    with pytest.raises(PartLost):
        writer.begin_part("b.tar")
    with pytest.raises(PartLost):
        writer.write_catalogue()
    assert "tiny" not in names(url)
    assert verify_store(url).sound


# --- kills ------------------------------------------------------------------------------------------------------------


def _rename_until_killed(url: str, kill_at: int) -> None:
    """Rename, and die by SIGKILL before (even) or after (odd) the rename of one folder."""
    count = 0
    usual = Path.rename

    def renames(path: Path, target: Path) -> Path:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = usual(path, target)
        count += 2
        if count - 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Path.rename = renames  # type: ignore[method-assign, assignment]
    rename_module.rename_encoder(url, "tiny", "mine")


@pytest.mark.parametrize("kill_at", range(2 * len(OUTPUTS)))
def test_killed_at_any_step_the_store_is_complete_and_the_same_call_renames_the_rest(kill_at: int, url: str) -> None:
    before = contents(url)
    process = multiprocessing.get_context("fork").Process(target=_rename_until_killed, args=(url, kill_at))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    renamed = (kill_at + 1) // 2
    assert sum(name.startswith("mine") for name in names(url)) == renamed
    assert verify_store(url).sound
    now = contents(url)
    assert {key: vectors for key, (_, vectors) in now.items()} == {key: vectors for key, (_, vectors) in before.items()}
    for fs in featstore.open(url).feature_sets():
        np.testing.assert_allclose(fs.utterance, [np.asarray(f, np.float32).mean(axis=0) for f in fs.frames], atol=2e-3)
    if renamed < len(OUTPUTS):
        assert len(rename_encoder(url, "tiny", "mine")) == len(OUTPUTS) - renamed
    assert names(url) == {name.replace("tiny", "mine") for name in OUTPUTS} | set(OTHERS)
    assert verify_store(url).sound

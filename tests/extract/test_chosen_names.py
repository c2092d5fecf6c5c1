"""``--name``: the name that an encoder is shown by, and no part of what it is; and ``--layers all``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.encoders import load_encoder
from featstore.errors import EncoderError, UsageError
from featstore.extract import EncoderRequest, ExtractOptions, open_engine, plan_tasks
from featstore.extract.results import Silent
from featstore.extract.run import extract_plans
from featstore.extract.single_file import load_encoder_of
from featstore.records import ExtractRecord, check_encoder_name
from featstore.store import open_store, recipe_groups
from featstore.store.copy import copy_store
from featstore.store.rename import rename_encoder
from featstore.store.verify import verify_store
from handmade import XARES_ENCODER, clip, environment, extract, noise, write_split
from tiny import task

LAYERED = f"""{XARES_ENCODER}

class Layered(MyEncoder):
    n_layers, layer_dim, layer_hop_in_ms = 2, 12, 20

    def forward_layers(self, audio, *, layers):
        last = self.forward(audio)
        return [last if layer is None else last * (layer + 2) for layer in layers]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clips = [clip(f"c{number}", noise(0.2 + number / 10, seed=number)) for number in range(4)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=2)
    (tmp_path / "mine.py").write_text(LAYERED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(
    folder: Path, name: str | None = None, *, store: str = "store", **options: object
) -> tuple[ExtractRecord, ...]:
    encoder = load_encoder("mine.py:Layered", name=name, **options)  # type: ignore[arg-type]
    return extract(task(), folder / "data", folder / store, encoder=encoder)


def test_a_chosen_name_is_that_of_the_feature_sets_and_no_part_of_the_fingerprint(folder: Path) -> None:
    [plain] = done(folder, store="plain")
    records = done(folder, "mine", layers="1,last", pools=("mean", "max"))
    assert [each.encoder for each in records] == ["mine.layer1", "mine.layer1.max", "mine", "mine.max"]
    assert records[2].fingerprint == plain.fingerprint
    assert all(each.asked_as == "" for each in records)
    store = open_store(str(folder / "store"))
    chosen = store.select(encoder="mine")
    assert chosen.path == f"mine@{plain.fingerprint}/tiny/train"
    np.testing.assert_array_equal(chosen.utterance, open_store(str(folder / "plain")).select().utterance)
    assert verify_store(str(folder / "store")).sound
    assert "mine.layer1/tiny/train" in store


@pytest.mark.parametrize(("first", "second"), [(None, "mine"), ("mine", None), ("mine", "yours")])
def test_an_encoder_that_the_store_has_keeps_its_name_and_its_vectors(
    first: str | None, second: str | None, folder: Path
) -> None:
    [before] = done(folder, first)
    write_split(folder / "data/tiny", "train-more", [clip("late", noise(0.3, seed=9))])
    [after] = done(folder, second)
    assert (after.shards_done, after.shards_reused) == (1, 2)
    assert (after.encoder, after.asked_as) == (first or "Layered", second or "Layered")
    assert recipe_groups(str(folder / "store")) == (f"{before.encoder}@{before.fingerprint}",)
    [again] = done(folder, first)
    assert (again.shards_done, again.asked_as) == (0, "")


def test_new_layers_and_pools_of_an_encoder_get_the_name_that_the_store_has(folder: Path) -> None:
    done(folder)
    rename_encoder(str(folder / "store"), "Layered", "mine")
    for options in ({"layers": [2]}, {"pools": ["std"]}, {"layers": "0-1", "pools": ["max"]}):
        assert all(each.encoder.startswith("mine") and each.asked_as for each in done(folder, **options))
    assert {name.partition(".")[0].partition("@")[0] for name in recipe_groups(str(folder / "store"))} == {"mine"}
    other = load_encoder("mine.py:Layered", arguments={"width": 5})
    [record] = extract(task(), folder / "data", folder / "store", encoder=other)
    assert record.encoder == "Layered"  # another encoder


def test_two_encoders_may_have_one_name(folder: Path) -> None:
    done(folder, "mine")
    other = load_encoder("mine.py:Layered", arguments={"width": 5}, name="mine")
    [record] = extract(task(), folder / "data", folder / "store", encoder=other)
    assert (record.encoder, record.shards_done) == ("mine", 2)
    assert "arguments" in record.notes[0]
    assert len(recipe_groups(str(folder / "store"))) == 2


def test_a_file_is_encoded_by_an_encoder_with_another_name_in_the_store(folder: Path) -> None:
    done(folder, "mine", layers=[1])
    recipe = open_store(str(folder / "store")).resolve_encoder("mine.layer1")
    assert load_encoder_of(recipe, stored_spec="", spec="mine.py:Layered").layers == (1,)
    (folder / "mine.py").write_text(LAYERED.replace("/ 20", "/ 21"))
    with pytest.raises(EncoderError, match=r"mine\.layer1@"):
        load_encoder_of(recipe, stored_spec="", spec="mine.py:Layered")


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "a@b", ".a", "-a", "é", "a\n", "a" * 201, "x.layer3", "x.max", "x.std"]
)
def test_what_cannot_be_a_name_is_refused_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_encoder("no_such_file.py", name=name)
    assert "\n" not in str(caught.value)


def test_what_changed_is_noted_under_whatever_name_the_store_has_the_encoder(folder: Path) -> None:
    [before] = done(folder)
    rename_encoder(str(folder / "store"), "Layered", "mine")
    (folder / "mine.py").write_text(LAYERED.replace("/ 20", "/ 21"))
    [after] = done(folder)
    assert (after.encoder, after.shards_done) == ("Layered", 2)
    assert f"mine@{before.fingerprint}" in after.notes[0]
    assert "code" in after.notes[0]


@pytest.mark.parametrize("name", ["a", "9", "My-Encoder_2.1+x=3", "a" * 200, "layer3", "x.layer3b"])
def test_what_can_be_a_name_is_taken(name: str) -> None:
    check_encoder_name(name)


def test_a_copy_goes_to_the_name_that_the_target_has(folder: Path) -> None:
    done(folder)
    source, target = str(folder / "store"), str(folder / "copy")
    everything = {"only": "everything", "encoder": None, "dataset": None, "split": None}
    copy_store(source, target, **everything)  # type: ignore[arg-type]
    rename_encoder(source, "Layered", "mine")
    [record] = copy_store(source, target, **everything)  # type: ignore[arg-type]
    assert (record.copied, record.there, record.path.partition("@")[0]) == (0, 2, "Layered")
    assert len(recipe_groups(target)) == 1
    [record] = copy_store(source, str(folder / "new"), **everything)  # type: ignore[arg-type]
    assert record.path.startswith("mine@")
    assert verify_store(str(folder / "new")).sound


# --- layers -----------------------------------------------------------------------------------------------------------


def test_all_is_every_hidden_state_without_last(folder: Path) -> None:
    assert load_encoder("mine.py:Layered", layers="all").layers == (0, 1, 2)
    assert load_encoder("mine.py:Layered", layers=["all", None]).layers == (0, 1, 2, None)
    assert load_encoder("mine.py:Layered", layers="last,all").layers == (None, 0, 1, 2)
    with pytest.raises(EncoderError, match=r"logmel.*--layers"):
        load_encoder("logmel", layers="all")
    with pytest.raises(EncoderError, match="layers 0 to 2"):
        load_encoder("mine.py:Layered", layers="0-3")
    with pytest.raises(UsageError, match="once"):
        load_encoder("mine.py:Layered#layer=1", layers="all")


def test_the_python_api_takes_names_and_layers(folder: Path) -> None:
    places = {"data": "data", "store": "store", "split": "train"}
    made = featstore.extract(task(), encoder="mine.py:Layered", name="mine", layers="all", **places)  # type: ignore[arg-type]
    assert [each.encoder for each in made] == ["mine.layer0", "mine.layer1", "mine.layer2"]
    [record] = featstore.rename("store", "mine", "yours")[:1]
    assert (record.before.partition("@")[0], record.after.partition("@")[0]) == ("mine.layer0", "yours.layer0")
    module = load_encoder("mine.py:Layered").module
    [loaded] = featstore.extract(task(), encoder=module, name="loaded", layers=[1], **places)  # type: ignore[arg-type]
    assert loaded.encoder == "loaded.layer1"
    with pytest.raises(UsageError, match="one encoder"):
        featstore.extract(task(), encoder=["logmel", "mfcc"], name="mine", **places)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        featstore.extract(task(), encoder="logmel", name="a/b", **places)  # type: ignore[arg-type]


@pytest.mark.slow  # that workers make the same store is seen in `test_processes`
def test_workers_resolve_layers_and_names_as_one_process_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment()[name])
    request = EncoderRequest(spec="mine.py:Layered", layers=("all", None), name="mine")
    options = ExtractOptions(device="cpu", workers=1)
    with open_engine(request, device="cpu,cpu") as engine:
        plans = plan_tasks(
            [task()], engine, data_dir=folder / "data", store_url="store", options=options, splits=("train",)
        )
        [ended] = extract_plans(plans, watch=lambda: nullcontext(Silent()))
    assert ended.failure is None
    assert [each.encoder for each in ended.records] == ["mine.layer0", "mine.layer1", "mine.layer2", "mine"]
    alone = done(folder, "mine", store="alone", layers="all,last")
    assert [each.fingerprint for each in ended.records] == [each.fingerprint for each in alone]

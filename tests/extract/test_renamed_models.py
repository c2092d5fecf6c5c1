"""A model that lies under another name now: it is the encoder that the store has, and nothing is encoded twice."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save

from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.pooling import Output
from featstore.errors import EncoderError, UsageError
from featstore.extract import ExtractOptions, extract_task
from featstore.extract.audio import RESAMPLER
from featstore.extract.encoder_changes import match_stored_names
from featstore.extract.single_file import load_encoder_of
from featstore.records import NamedBy, Recipe
from featstore.store import open_store, recipe_groups
from featstore.store.verify import verify_store
from handmade import clip, extract, noise, write_split
from layered import Layered
from tiny import task

LAST, SECOND, SPREAD = Output(), Output(layer=2), Output(layer=2, pool="std")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = [clip(f"c{number}", noise(0.2 + number / 10, seed=number)) for number in range(4)]
    write_split(tmp_path / "data/tiny", "train", clips, shards=2)
    return tmp_path / "data"


def model(name: str, *outputs: Output, module: Layered | None = None, named_by: NamedBy = "place") -> Encoder:
    return Encoder(
        module=module or Layered(),
        name=name,
        named_by=named_by,
        spec=f"hf:{name}",
        identity={"class": "x"},
        outputs=outputs or (LAST,),
    )


def recipes(encoder: Encoder) -> tuple[Recipe, ...]:
    settings = {"padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": RESAMPLER}
    return tuple(encoder.recipe(**settings, format_version=1, output=output) for output in encoder.outputs)


def test_a_model_under_another_name_is_found_and_its_shards_are_not_encoded_again(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    [before] = extract(task(), data, store, encoder=model("old"))
    module = Layered()
    renamed = model("new", module=module)
    passes = module.passes
    [after] = extract(task(), data, store, encoder=renamed)
    assert (after.shards_done, after.shards_reused, module.passes) == (0, 2, passes)
    assert (after.encoder, after.asked_as, after.fingerprint) == ("old", "new", before.fingerprint)
    assert before.asked_as == ""
    write_split(data / "tiny", "train", [clip("late", noise(0.3, seed=9))])
    [after] = extract(task(), data, store, encoder=renamed)  # the first shard is another now
    assert (after.shards_done, after.shards_reused) == (1, 1)
    assert recipe_groups(str(store)) == (f"old@{before.fingerprint}",)
    assert verify_store(str(store)).sound


def test_layers_that_the_store_lacks_stand_beside_those_that_it_has(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    extract(task(), data, store, encoder=model("old", SECOND))
    records = extract(task(), data, store, encoder=model("new", LAST, SECOND, SPREAD))
    assert [(record.encoder, record.asked_as, record.shards_done) for record in records] == [
        ("old", "new", 2),
        ("old.layer2", "new.layer2", 0),
        ("old.layer2.std", "new.layer2.std", 2),
    ]
    assert sorted(fs.encoder for fs in open_store(str(store)).feature_sets()) == ["old", "old.layer2", "old.layer2.std"]
    assert open_store(str(store)).select(encoder="old.layer2").recipe == recipes(model("old", SECOND))[0]


def test_a_store_of_the_time_when_the_name_was_in_the_fingerprint_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    [before] = extract(task(), data, store, encoder=model("old", named_by="class"))
    for name in ("old", "new"):
        [after] = extract(task(), data, store, encoder=model(name))
        assert (after.shards_done, after.encoder, after.fingerprint) == (0, "old", before.fingerprint)
    assert len(recipe_groups(str(store))) == 1


def test_a_store_at_a_url_is_asked_for_its_names_once_by_each_extraction(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(encoder: Encoder) -> str:
        options = ExtractOptions(workers=1, device="cpu")
        records = extract_task(
            task(), encoder, data_dir=data, store_url="memory://renamed", options=options, splits=("train",)
        )
        return f"{records[0].encoder} {records[0].shards_done}"

    asked: list[str] = []
    monkeypatch.setattr("featstore.extract.task.recipe_groups", lambda url: asked.append(url) or recipe_groups(url))
    assert [run(model("old")), run(model("new")), run(model("own", named_by="class"))] == ["old 2", "old 0", "own 2"]
    assert asked == ["memory://renamed"] * 3


def test_another_model_of_a_name_that_is_taken_is_a_group_of_its_own(data: Path, tmp_path: Path) -> None:
    class Other(Layered):
        layer_dim = 4

    store = tmp_path / "store"
    extract(task(), data, store, encoder=model("one"))
    other = Encoder(module=Other(), name="one", named_by="place", spec="x", identity={"class": "y"})
    [record] = extract(task(), data, store, encoder=other)
    assert (record.encoder, record.asked_as, record.shards_done) == ("one", "", 2)
    assert len(recipe_groups(str(store))) == 2


# the plan: names of groups in, names of recipes out


def test_of_several_names_that_a_store_has_the_one_in_use_comes_first_else_the_first_by_letter() -> None:
    [mine] = recipes(model("b"))
    groups = [f"{name}@{mine.fingerprint}" for name in "zab"]
    assert match_stored_names([mine], name="b", groups=groups) == (mine,)
    [held] = match_stored_names([mine], name="b", groups=[groups[0], groups[1]])
    assert held.encoder == "a"
    assert match_stored_names([mine], name="b", groups=["a@00000000", "stray"]) == (mine,)


def test_the_name_of_a_class_is_in_its_fingerprint_whatever_name_it_is_shown_by() -> None:
    [mine] = recipes(model("Mine", named_by="class"))
    assert mine.named_as(mine.group_name) == mine
    yours = mine.named_as(f"Yours@{mine.fingerprint}")
    assert yours is not None
    assert (yours.encoder, yours.fingerprint, yours.as_json()) == ("Yours", mine.fingerprint, mine.as_json())
    assert yours.named_as(mine.group_name) == mine
    assert mine.fingerprint != recipes(model("Yours", named_by="class"))[0].fingerprint
    assert mine.named_as("Mine@00000000") is None
    assert "named_by" not in mine.as_json()


def test_every_field_of_a_recipe_decides_its_fingerprint_but_the_name_of_a_place() -> None:
    others: dict[str, Any] = {
        "encoder": "another", "encoder_identity": {"class": "y"}, "sample_rate_hz": 8000, "dim": 3, "hop_seconds": 0.01,
        "padding": "exact", "precision": "bfloat16", "frame_dtype": "float32", "resampler": "none", "format_version": 2,
        "pool": "max", "max_window_seconds": 1.0, "named_by": "class", "fingerprint_name": "another",
    }  # fmt: skip
    assert set(others) == {field.name for field in fields(Recipe)}
    for named_by, idle in (("place", {"encoder", "fingerprint_name"}), ("class", {"named_by"})):
        [mine] = recipes(model("one", named_by=named_by))  # type: ignore[arg-type]
        same = {
            name for name, value in others.items() if replace(mine, **{name: value}).fingerprint == mine.fingerprint
        }
        assert same == idle


def test_a_renamed_group_of_the_time_when_the_name_was_in_the_fingerprint_is_found() -> None:
    [now] = recipes(model("one"))
    [then] = recipes(model("one", named_by="class"))
    found = now.named_as(then.renamed("shown").group_name)
    assert found is not None
    assert (found.encoder, found.fingerprint) == ("shown", then.fingerprint)


# as a user meets it


def test_a_file_is_encoded_by_the_model_under_its_new_name_for_a_store_that_has_the_old(tmp_path: Path) -> None:
    now = f"hf:{save('wav2vec2-group', tmp_path / 'now')}"
    [made] = recipes(load_encoder(now))
    for stored in (replace(made, encoder="before"), replace(made, encoder="before", named_by="class")):
        assert load_encoder_of(stored, stored_spec="hf:before", spec=now).name == "now"
    with pytest.raises(UsageError, match=r"--spec hf:\./before"):
        load_encoder_of(made, stored_spec="hf:./before", spec=None)
    other = replace(made, encoder="before", encoder_identity={**made.encoder_identity, "state_sha256": "0"})
    with pytest.raises(EncoderError, match=r"before@\w+ \(state_sha256 "):
        load_encoder_of(other, stored_spec="hf:before", spec=now)

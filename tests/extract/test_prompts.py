"""Vectors of a task's prompts: stored at extraction beside the feature sets, and carried by every command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featstore.encoders.encoder import Encoder
from featstore.store import open_store, recipe_groups
from featstore.store.catalogue import group_names, split_paths
from featstore.store.copy import copy_store
from featstore.store.filesystem import open_objects
from featstore.store.format import TEXT_GROUP
from featstore.store.maintenance import compact_store, gc_store
from featstore.store.rename import rename_encoder
from featstore.store.repair import repair_store
from featstore.store.verify import verify_store
from featstore.tasks import Manifest
from handmade import build, clip, extract, noise, write_split
from tiny import task

PROMPTS = ["a sound of {label}", "{label}, outside"]


class Lettered(torch.nn.Module):
    """A frame is the mean of a few samples, and a text the mean of its letters. Counts what it is asked."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 8, 20.0

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.letters = torch.nn.Parameter(torch.randn(256, 8, generator=generator))
        self.texts: list[str] = []
        self.forwards = 0

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        return audio.unfold(1, 400, 320).mean(dim=2, keepdim=True) + self.letters[:8, 0]

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        self.texts += texts
        return self.vectors(texts)

    def vectors(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self.letters[list(text.encode())].mean(dim=0) for text in texts])


@pytest.fixture
def module() -> Lettered:
    return Lettered()


@pytest.fixture
def encoder(module: Lettered) -> Encoder:
    return build(module)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    clips = [clip(f"c{number}", noise(0.3, seed=number), label=label) for number, label in enumerate("xyx")]
    write_split(tmp_path / "data/tiny", "train", clips[:2], shards=2)
    write_split(tmp_path / "data/tiny", "valid", clips[2:])
    return tmp_path / "data"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def manifest(*, prompts: list[str] = PROMPTS, labels: Mapping[str, str] | None = None, **changes: Any) -> Manifest:
    return task(zero_shot={"prompts": prompts, "labels": labels or {}}, **changes)


def stored(store: Path) -> dict[str, np.ndarray]:
    return open_store(store).texts("handmade")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def part_of_texts(store: Path) -> Path:
    [part] = [path for path in store.glob("*/.text/tiny/*") if path.is_dir()]
    return part


def test_prompts_of_the_classes_of_the_clips_are_stored_once(
    data: Path, store: Path, module: Lettered, encoder: Encoder
) -> None:
    first = extract(manifest(), data, store, encoder=encoder, splits=("train", "valid"))
    wanted = ["a sound of x", "x, outside", "a sound of y", "y, outside"]
    assert module.texts == wanted
    assert [len(record.notes) for record in first] == [0, 1]
    found = stored(store)
    assert list(found) == wanted
    with torch.no_grad():
        np.testing.assert_array_equal(np.stack([*found.values()]), module.vectors(wanted).numpy())
    before, forwards = files(store), module.forwards
    extract(manifest(), data, store, encoder=encoder, splits=("train", "valid"))
    assert (files(store), module.forwards, module.texts) == (before, forwards, wanted)


def test_changed_prompts_are_encoded_without_audio_and_replace_the_earlier_ones(
    data: Path, store: Path, module: Lettered, encoder: Encoder
) -> None:
    extract(manifest(), data, store, encoder=encoder)
    audio = {name: content for name, content in files(store).items() if "/.text/" not in name}
    module.texts.clear()
    [record] = extract(manifest(labels={"x": "a xylophone"}), data, store, encoder=encoder)
    assert (record.shards_done, len(record.notes)) == (0, 1)
    assert module.texts == [*dict.fromkeys(stored(store))]
    assert "a sound of a xylophone" in module.texts
    assert "a sound of x" not in stored(store)
    assert len([*store.glob("*/.text/tiny/texts.*")]) == 1
    assert {name: content for name, content in files(store).items() if "/.text/" not in name} == audio


def test_classes_of_the_manifest_are_those_of_the_prompts(data: Path, store: Path, encoder: Encoder) -> None:
    listed = manifest(label={"field": "label", "classes": ["y", "x", "dog_bark"]}, prompts=["{label}"])
    extract(listed, data, store, encoder=encoder)
    assert [*stored(store)] == ["y", "x", "dog bark"]


def captioned(**changes: Any) -> Manifest:
    return task(kind="contrastive", metric="recall_at_1", label={"captions": "*"}, retrieve=None, **changes)


def with_captions(key: str, seed: int, *captions: str) -> list[tuple[str, bytes]]:
    [audio, _] = clip(key, noise(0.3, seed=seed))
    return [audio, (f"{key}.json", json.dumps({f"c{at}": text for at, text in enumerate(captions)}).encode())]


def test_captions_of_the_test_clips_are_stored_and_those_of_others_are_not(
    data: Path, store: Path, module: Lettered, encoder: Encoder
) -> None:
    write_split(data / "tiny", "train", [with_captions("t", 1, "learned")], shards=1)
    long = "ein sehr langer Satz über Vögel " * 100
    clips = [with_captions("a", 2, "a dog", "a bark"), with_captions("b", 3, long), with_captions("c", 4, "a dog")]
    write_split(data / "tiny", "test", clips, shards=2)
    [*_, record] = extract(captioned(), data, store, encoder=encoder, splits=("train", "test"))
    wanted = ["a dog", "a bark", long.strip()]
    assert sorted(map(str.strip, module.texts)) == sorted(wanted)
    assert (len(stored(store)), len(record.notes)) == (3, 1)
    assert open_store(store).text_counts("handmade") == {"tiny": 3}
    with torch.no_grad():
        for text, vector in stored(store).items():
            np.testing.assert_array_equal(vector, module.vectors([text])[0].numpy())
    assert verify_store(str(store)).sound
    before = files(store)
    extract(captioned(), data, store, encoder=encoder, splits=("test",))
    assert files(store) == before


def test_changed_captions_are_encoded_again(data: Path, store: Path, encoder: Encoder) -> None:
    for caption in ("rain", "snow"):
        write_split(data / "tiny", "test", [with_captions("a", 2, caption)])
        extract(captioned(), data, store, encoder=encoder, splits=("test",))
        assert [*stored(store)] == [caption]


def test_two_tasks_have_their_own_texts(data: Path, store: Path, encoder: Encoder) -> None:
    extract(manifest(), data, store, encoder=encoder)
    extract(manifest(name="other", prompts=["{label}"]), data, store, encoder=encoder)
    opened = open_store(store)
    assert [*opened.texts("handmade", task="other")] == ["x", "y"]
    assert len(opened.texts("handmade", task="tiny")) == 4
    assert len(opened.texts("handmade")) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "regression", "metric": "mae", "zero_shot": None, "retrieve": {"enabled": False}},
        {"label": {"field": "label", "mapping": {"x": "1", "y": "2"}}},
    ],
)
def test_a_task_without_words_has_no_texts(
    changes: dict[str, Any], data: Path, store: Path, module: Lettered, encoder: Encoder
) -> None:
    [record] = extract(task(**changes), data, store, encoder=encoder)
    assert (module.texts, record.notes, stored(store)) == ([], (), {})


def test_words_of_numbers_make_texts_of_them(data: Path, store: Path, encoder: Encoder) -> None:
    numbered = {"field": "label", "mapping": {"x": "1", "y": "2"}}
    extract(manifest(label=numbered, labels={"1": "rain", "2": "snow"}), data, store, encoder=encoder)
    assert [*stored(store)] == ["a sound of rain", "rain, outside", "a sound of snow", "snow, outside"]


def test_classes_of_the_same_words_share_a_text(data: Path, store: Path, encoder: Encoder) -> None:
    extract(manifest(labels={"x": "rain", "y": "rain"}), data, store, encoder=encoder)
    assert [*stored(store)] == ["a sound of rain", "rain, outside"]
    assert verify_store(str(store)).sound


def test_unusable_labels_are_a_note_and_the_audio_is_stored(data: Path, store: Path, encoder: Encoder) -> None:
    [record] = extract(manifest(label={"field": "missing"}), data, store, encoder=encoder)
    assert (record.shards_done, len(record.notes), stored(store)) == (2, 1, {})


def test_layers_and_other_pools_have_no_texts(data: Path, store: Path) -> None:
    from featstore.encoders.pooling import Output

    encoder = Encoder(
        module=Lettered(), name="handmade", spec="handmade", identity={"class": "L"}, outputs=(Output(pool="max"),)
    )
    extract(manifest(), data, store, encoder=encoder)
    assert not [*store.glob("*/.text")]


def test_another_text_tower_is_noticed(data: Path, store: Path) -> None:
    def towered(seed: int) -> Encoder:
        module = Lettered(seed=seed)
        return Encoder(
            module=module, name="handmade", spec="handmade", identity={"class": "L"},
            text_identity=lambda: {"seed": seed},
        )  # fmt: skip

    for seed in (0, 1):
        module = Lettered()
        module.letters = Lettered(seed=0).letters
        other = towered(seed)
        other.module.forward = module.forward
        [record] = extract(manifest(), data, store, encoder=other)
        assert (record.shards_done > 0, len(record.notes)) == (seed == 0, 1)
        expected = other.module.vectors(["a sound of x"])[0].detach().numpy()
        np.testing.assert_array_equal(stored(store)["a sound of x"], expected)


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def extracted(data: Path, store: Path, encoder: Encoder) -> Path:
    extract(manifest(), data, store, encoder=encoder)
    return store


def test_texts_are_no_feature_set_and_older_readers_see_nothing(extracted: Path) -> None:
    """What older versions read and verify: `group_names` and `split_paths` are unchanged without `texts`."""
    objects = open_objects(str(extracted))
    [group] = recipe_groups(str(extracted))
    assert [*split_paths(objects)] == [f"{group}/tiny/train"]
    assert group_names(objects, group) == ("tiny",)
    assert [each.split for each in open_store(extracted)] == ["train"]
    assert open_store(extracted).foreign() == ()


def test_zarr_reads_texts(extracted: Path) -> None:
    zarr = pytest.importorskip("zarr")
    part = part_of_texts(extracted)
    [*keys] = zarr.open_array(part / "key", mode="r")[:]
    assert keys == [*stored(extracted)]
    np.testing.assert_array_equal(
        zarr.open_array(part / "utterance", mode="r")[:], np.stack([*stored(extracted).values()])
    )


@pytest.mark.parametrize("damage", ["flip", "remove", "document"])
def test_damage_is_found_repaired_and_encoded_again(
    damage: str, data: Path, extracted: Path, module: Lettered, encoder: Encoder
) -> None:
    assert verify_store(str(extracted)).sound
    before, part = stored(extracted), part_of_texts(extracted)
    target = {"flip": part / "utterance/c/0/0", "remove": part / "key/c/0", "document": part.parent / "zarr.json"}[
        damage
    ]
    if damage == "remove":
        target.unlink()
    else:
        raw = bytearray(target.read_bytes())
        raw[len(raw) // 2] ^= 1
        target.write_bytes(raw)
    report = verify_store(str(extracted))
    assert report.findings
    assert all(TEXT_GROUP in finding.where for finding in report.findings)
    assert all(finding.repaired for finding in repair_store(str(extracted)).findings)
    assert verify_store(str(extracted)).sound
    forwards = module.forwards
    [record] = extract(manifest(), data, extracted, encoder=encoder)
    assert (record.shards_done, module.forwards - forwards <= 5) == (0, True)  # the canary only
    assert [*stored(extracted)] == [*before]


def test_copies_and_renames_carry_texts(extracted: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    paths = {
        record.path.split("/", 1)[1]
        for record in copy_store(
            str(extracted), str(target), only="utterance", encoder=None, dataset="tiny", split=None
        )
    }
    assert paths == {"tiny/train", ".text/tiny"}
    again = copy_store(str(extracted), str(target), only="everything", encoder=None, dataset=None, split=None)
    assert [record.copied for record in again] == [0, 0]
    np.testing.assert_equal(stored(target), stored(extracted))
    rename_encoder(str(target), "handmade", "renamed")
    np.testing.assert_equal(open_store(target).texts("renamed"), stored(extracted))
    assert verify_store(str(target)).sound


def test_gc_keeps_texts_and_deletes_superseded_ones(data: Path, extracted: Path, encoder: Encoder) -> None:
    old = part_of_texts(extracted)
    kept = shutil.copytree(old, old.parent.parent.parent.parent.parent / "kept")
    extract(manifest(prompts=["{label}"]), data, extracted, encoder=encoder)
    shutil.copytree(kept, old)  # a killed run left it
    assert [*stored(extracted)] == ["x", "y"]
    [record] = gc_store(str(extracted))
    assert (record.path.split("/", 1)[1], record.deleted) == (".text/tiny", (old.name,))
    assert gc_store(str(extracted)) == ()
    assert compact_store(str(extracted), part_bytes=1 << 20)
    assert [*stored(extracted)] == ["x", "y"]
    assert verify_store(str(extracted)).sound

"""Stores of featstore 0: an encoder whose old fingerprint still computes equal goes on in its group, once looked at."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edited import ANOTHER, SAME, Project, made
from featstore.encoders import load_encoder
from featstore.encoders.encoder import Encoder
from featstore.encoders.fingerprint import _FIRST_CODE, builtin_code_sha256, earlier_identity
from featstore.errors import EncoderError
from featstore.extract.encoder_changes import match_stored_names
from featstore.extract.single_file import load_encoder_of
from featstore.records import ExtractRecord, Recipe
from featstore.store import open_store, read_encoder_group, recipe_groups
from featstore.store.verify import verify_store
from handmade import XARES_ENCODER, clip, extract, noise, write_split
from tiny import task

SETTINGS: Mapping[str, Any] = {
    "padding": "0.25", "precision": "float32", "frame_dtype": "float16", "resampler": "soxr-HQ", "format_version": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "data/tiny", "train", [clip("a", noise(0.3))])
    return tmp_path / "data"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return made(tmp_path / "project")


def as_of_old(encoder: Encoder) -> Encoder:
    """The encoder as featstore 0 described it."""
    old = copy.copy(encoder)
    object.__setattr__(old, "identity", encoder.earlier)
    object.__setattr__(old, "earlier", None)
    return old


def run(project: Project, data: Path, *, as_old: bool = False) -> ExtractRecord:
    encoder = load_encoder(project.spec, arguments=project.arguments)
    [record] = extract(task(), data, data.parent / "store", encoder=as_of_old(encoder) if as_old else encoder)
    return record


def test_fingerprints_of_featstore_0_are_computed_as_they_were(tmp_path: Path) -> None:
    """Computed by featstore 0 itself."""
    (tmp_path / "my_encoder.py").write_text(XARES_ENCODER)
    assert load_encoder("logmel").recipe(**SETTINGS).fingerprint == "6636313b"
    assert load_encoder("mfcc").recipe(**SETTINGS).fingerprint == "ff95db53"
    encoder = load_encoder(str(tmp_path / "my_encoder.py"))
    assert as_of_old(encoder).recipe(**SETTINGS).fingerprint == "15ad2a4c"
    assert encoder.recipe(**SETTINGS).fingerprint != "15ad2a4c"
    assert encoder.earlier == earlier_identity(encoder.module, arguments={})


@pytest.mark.parametrize(
    ("module", "kind", "code"),
    [
        ("builtin", "LogMelEncoder", "57fed00a103b9ee80ed29300b81b113a0afb50c15deba6932eac18c4cc966593"),
        ("builtin", "MfccEncoder", "57fed00a103b9ee80ed29300b81b113a0afb50c15deba6932eac18c4cc966593"),
        ("adapters.waveform", "WaveformEncoder", "52215c2d791980af2da3243c5a5c939ae6e7bdd9b7d2864da523194232b6997f"),
        ("adapters.whisper", "WhisperEncoder", "99d4b98645f58893ca3745c6fb7d052d32b7b04893052b739c40f9dd8cc611e1"),
        (
            "adapters.spectrogram_transformer",
            "PatchEncoder",
            "57b8c1be8f3d9bc7a47cca05548798e1c1b777d7fede5d4f9ed1a11e8a189c19",
        ),
        ("adapters.wav2vec2_bert", "FbankEncoder", "17137120ff4cdf9f111ec84f594e5ba8e7e48b3371f1ac3a9c0a32d8ddbfc9c5"),
        ("adapters.clap", "ClapEncoder", "ecaf789057c217cfaf00871d93173605bad40273b688c3287f8b8d688b762bb3"),
        (
            "adapters.feature_extractor",
            "OtherEncoder",
            "9054a86d6014a54478c7e03d64448c61f5788996bb8ac62a29fb343980b08f59",
        ),
        (
            "adapters.dasheng_encoder",
            "DashengEncoder",
            "8cb2c79b9c264719e7f9d1d2bb0be77224c45ee712e2e6be45d80092876a8dcd",
        ),
        (
            "adapters.sentence_transformers",
            "SentenceTransformerEncoder",
            "91f2e69d3cd63827245ab64a7076c476d3eab4c7f8a6ed805ec837c795aac3e0",
        ),
        ("adapters.onnx", "OnnxEncoder", "a1af6406264564322e0cc5c1814c5e4d058011e6ebb15cb4d9eaba150ad44fe9"),
    ],
)
def test_code_of_our_own_counts_as_in_featstore_0_until_an_edit_changes_a_number(
    module: str, kind: str, code: str
) -> None:
    """Hashes that featstore 0 itself computed, or the first version that had the class.

    An edit to one of these modules, or to what it imports from beside it, fails here. If it leaves every number as it
    is, add a line to `_FIRST_CODE`, so that older stores go on; if it changes numbers, put the new hash here.
    """
    own = getattr(importlib.import_module(f"featstore.encoders.{module}"), kind)
    now = builtin_code_sha256(own)
    assert _FIRST_CODE.get(now, now) == code


def test_shards_of_an_old_store_are_reused_and_new_ones_join_them(project: Project, data: Path) -> None:
    store = str(data.parent / "store")
    old = run(project, data, as_old=True)
    now = run(project, data)
    assert (now.shards_done, now.shards_reused, now.fingerprint, now.notes) == (0, 1, old.fingerprint, ())
    write_split(data / "tiny", "train-more", [clip("b", noise(0.3, seed=1))])
    now = run(project, data)
    assert (now.shards_done, now.shards_reused, now.fingerprint) == (1, 1, old.fingerprint)
    assert recipe_groups(store) == (f"MyEncoder@{old.fingerprint}",)
    assert verify_store(store).sound
    assert len(open_store(store).select()) == 2


@pytest.mark.parametrize("edit", ["sibling package imported inside __init__", "dynamic import", "importlib"])
def test_an_old_store_too_notices_an_edit_that_its_fingerprint_does_not_know(
    edit: str, project: Project, data: Path
) -> None:
    old = run(project, data, as_old=True)
    run(project, data)
    ANOTHER[edit][0](project)
    assert load_encoder(project.spec, arguments=project.arguments).earlier is not None
    now = run(project, data)
    assert (now.shards_done, now.fingerprint != old.fingerprint) == (1, True)
    assert now.notes[0].endswith(": code")


def test_what_an_old_fingerprint_counted_and_no_other_does_is_reported_once(project: Project, data: Path) -> None:
    old = run(project, data, as_old=True)
    SAME["comment"](project)
    now = run(project, data)
    assert now.shards_done == 1
    assert f"MyEncoder@{old.fingerprint}" in now.notes[0]
    assert now.notes[0].endswith(": code")
    SAME["docstring"](project)
    again = run(project, data)
    assert (again.shards_done, again.notes, again.fingerprint) == (0, (), now.fingerprint)


def test_each_thing_that_differs_is_named(project: Project, data: Path) -> None:
    run(project, data, as_old=True)
    ANOTHER["global constant"][0](project)
    ANOTHER["one bit of one weight"][0](project)
    ANOTHER["argument"][0](project)
    encoder = load_encoder(project.spec, arguments=project.arguments)
    [record] = extract(task(), data, data.parent / "store", encoder=encoder, padding="exact")
    changed = record.notes[0].rpartition(": ")[2].split(", ")
    assert sorted(changed) == ["arguments (gain)", "code", "padding exact (was 0.25)", "weights"]


def test_a_file_is_encoded_for_an_old_group_by_the_encoder_of_today(project: Project, data: Path) -> None:
    old = run(project, data, as_old=True)
    stored = open_store(str(data.parent / "store")).select().recipe
    assert stored.fingerprint == old.fingerprint
    assert load_encoder_of(stored, stored_spec=project.spec, spec=project.spec).name == "MyEncoder"
    ANOTHER["global constant"][0](project)
    with pytest.raises(EncoderError, match="source_sha256"):
        load_encoder_of(stored, stored_spec=project.spec, spec=project.spec)


def test_an_encoder_with_files_as_arguments_is_loaded_from_a_store_by_their_paths(project: Project, data: Path) -> None:
    run(project, data)
    stored = open_store(str(data.parent / "store")).select().recipe
    assert stored.arguments == project.arguments
    again = load_encoder_of(stored, stored_spec=project.spec, spec=project.spec)
    assert again.module.factor == 1.0


def test_a_group_of_today_comes_before_one_of_old(project: Project, data: Path) -> None:
    encoder = load_encoder(project.spec, arguments=project.arguments)
    now, then = encoder.recipe(**SETTINGS), as_of_old(encoder).recipe(**SETTINGS)

    def held(*groups: Recipe, noted: Mapping[str, Any] | None = None) -> Recipe:
        names = [group.group_name for group in groups]
        [found] = match_stored_names([now], name="MyEncoder", groups=names, earlier=[then], noted=lambda _: noted)
        return found

    assert held() == held(now, then) == held(now) == now
    assert held(then) == held(then, noted=now.encoder_identity) == then
    assert held(then, noted={**now.encoder_identity, "code_sha256": "0"}) == now


def test_the_identity_of_today_is_noted_in_the_document_of_an_old_group(project: Project, data: Path) -> None:
    old = run(project, data, as_old=True)
    run(project, data)
    name = f"MyEncoder@{old.fingerprint}"
    document = json.loads((data.parent / "store" / name / "zarr.json").read_text())["attributes"]["featstore"]
    encoder = load_encoder(project.spec, arguments=project.arguments)
    assert document["encoder_identity"] == encoder.identity
    assert document["recipe"]["encoder_identity"] == encoder.earlier
    group = read_encoder_group(str(data.parent / "store"), name)
    assert group is not None
    assert group.encoder_identity == encoder.identity

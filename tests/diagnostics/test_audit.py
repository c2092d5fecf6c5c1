"""Audits: a clean store is certified, and each forgery is found, re-sealed by a forger who knows the format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import featstore
from featstore.diagnostics.audit_sample import draw_sample, forged_at_most, miss_probability, sample_size
from featstore.diagnostics.certificate import Certificate, certified_scores, hash_of_score, read_certificate
from featstore.diagnostics.rescore import differences_of
from featstore.encoders import load_encoder
from featstore.errors import EncoderError, ResultsError, ShardError, UsageError
from featstore.records import ScoreRecord
from featstore.report import read_results, write_score
from featstore.store import codecs
from featstore.store.catalogue import read_commit
from featstore.store.documents import read_document, write_document
from featstore.store.filesystem import open_objects
from featstore.store.format import ObjectSeal
from featstore.store.verify import verify_store
from featstore.tasks import load_manifest
from handmade import XARES_ENCODER, Run, clip, extract, noise, task_toml, write_split, write_tar
from scored import scored

SPLITS = {"train": 16, "valid": 6, "test": 8}


def clips_of(split: str) -> list[list[tuple[str, bytes]]]:
    return [
        clip(
            f"{split}{at}",
            noise(0.3 + 0.1 * (at % 3), seed=40 * (at % 2) + at) * (0.5 + at % 2 / 2),
            label="ab"[at % 2],
        )
        for at in range(SPLITS[split])
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two classes, a store with frames of one encoder, and its scores on both tracks."""
    folder = tmp_path_factory.mktemp("audit")
    for split in SPLITS:
        write_split(folder / "data" / "tiny", split, clips_of(split), shards=2)
    task_toml(folder / "data")
    featstore.extract(
        folder / "data/tiny.toml", encoder="logmel", data=folder / "data", store=folder / "s.zarr", frames="always"
    )
    for score in (featstore.probe, featstore.retrieve):
        score(folder / "data/tiny.toml", store=folder / "s.zarr", results=folder / "r").raise_failures()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def audit(folder: Path, *, encoder: Any = "logmel", sample: str | int = "100%", **options: Any) -> Certificate:
    return featstore.audit(
        folder / "s.zarr", encoder=encoder, data=folder / "data", sample=sample, **{"results": folder / "r", **options}
    )


def kinds(found: Certificate) -> set[str]:
    return {each.kind for each in found.findings}


# --- the forger -------------------------------------------------------------------------------------------------------


def part_of(folder: Path, split: str = "test") -> Path:
    return next((folder / "s.zarr").glob(f"logmel@*/tiny/{split}/{split}-000.*"))


def reseal(part: Path) -> None:
    """Write the sizes and checksums of a part's objects into its commit record, and seal the record."""
    store = part.parents[3]
    objects, path = open_objects(str(store)), part.relative_to(store).as_posix()
    split, name = path.rsplit("/", 1)
    commit = read_commit(objects, split, name)
    assert commit is not None
    data = {key: (part / key).read_bytes() for key in commit.objects}
    seals = {key: ObjectSeal(len(raw), codecs.seal_crc32c([raw])) for key, raw in data.items()}
    content = read_document(objects, path) or {}
    write_document(objects, path, {**content, "commit": replace(commit, objects=seals).as_json()})
    assert verify_store(str(store)).findings == ()


def edit(part: Path, array: str, change: Callable[[Any], None], *, sealed: bool = True) -> None:
    change(zarr.open_array(part / array, mode="r+"))
    if sealed:
        reseal(part)


def forge_vector(array: Any) -> None:
    array[1] = 1.01 * array[1]


def forge_frame(array: Any) -> None:
    array[3] = np.asarray(array[3]) * np.float16(1.05)


def forge_label(array: Any) -> None:
    array[0] = json.dumps({"label": "b"})


def change_label_in_shard(folder: Path) -> None:
    clips = clips_of("test")
    clips[2][1] = (clips[2][1][0], json.dumps({"label": "b"}).encode())
    write_split(folder / "data" / "tiny", "test", clips, shards=2)


# --- a clean store ----------------------------------------------------------------------------------------------------


def test_a_clean_store_and_its_scores_are_certified(made: Path, tmp_path: Path) -> None:
    found = audit(made, out=tmp_path / "x.certificate.json")
    assert found.certified
    assert found.findings == ()
    [recipe] = found.recipes
    assert (recipe.clips, recipe.sampled, recipe.canary) == (30, 30, "same")
    assert recipe.largest_change is not None
    assert recipe.largest_change < 1e-6
    assert recipe.largest_frame_change is not None
    assert recipe.missed == {"0.01": 0.0, "0.05": 0.0}
    assert [(each.track, each.agrees, each.recomputed == each.value) for each in found.scores] == [
        ("A", True, True),
        ("B", True, True),
    ]
    assert sum(each.shards_read for each in found.feature_sets) == 6
    again = read_certificate(tmp_path / "x.certificate.json")
    assert again.as_json() == found.as_json()
    assert certified_scores([again]) == {hash_of_score(each) for each in read_results(made / "r").scores}


def test_a_sample_reads_only_the_shards_of_its_clips_and_its_seed_repeats_it(made: Path) -> None:
    one = audit(made, sample=1, results=())
    assert sum(each.sampled for each in one.feature_sets) == 1
    assert sum(each.shards_read for each in one.feature_sets) == 1
    again = audit(made, sample=1, results=(), seed=one.seed)
    assert [each.sampled for each in again.feature_sets] == [each.sampled for each in one.feature_sets]
    assert again.store_sha256 == one.store_sha256


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "xares", "frames": "always"},
        {"padding": "exact"},
        {"max_window_seconds": 0.2, "frame_dtype": "float32", "frames": "always"},
        {"precision": "bfloat16", "frames": "always"},
        {"batch_seconds": 0.5},
    ],
    ids=lambda options: next(iter(options)) if "padding" not in options else options["padding"],
)
def test_clips_are_encoded_by_the_recipe_of_the_store(made: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "mine.py").write_text(XARES_ENCODER)
    encoder = str(tmp_path / "mine.py")
    featstore.extract(
        made / "data/tiny.toml",
        encoder=encoder,
        data=made / "data",
        store=tmp_path / "s.zarr",
        split="train",
        **options,
    )
    for sample in ("100%", 3):
        found = featstore.audit(tmp_path / "s.zarr", encoder=encoder, data=made / "data", sample=sample)
        assert found.findings == ()


def test_crops_layers_and_pools_are_compared_each(made: Path, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "layered.py", tmp_path / "mine.py")
    task = load_manifest(task_toml(tmp_path, data={"dataset": "tiny", "crop_seconds": 0.25}))
    name = f"{tmp_path / 'mine.py'}:Layered"
    encoder = load_encoder(name, layers=(1, None), pools=("mean", "max"))
    extract(task, made / "data", tmp_path / "s.zarr", encoder=encoder, splits=("train", "test"))
    found = featstore.audit(tmp_path / "s.zarr", encoder=name, data=made / "data", sample="50%", seed=1)
    assert found.findings == ()
    assert len(found.recipes) == 4
    assert len(found.feature_sets) == 8
    assert {each.sampled for each in found.recipes} == {12}


# --- forgeries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "change", "kind"),
    [("utterance", forge_vector, "vector"), ("frames", forge_frame, "frames"), ("meta", forge_label, "label")],
)
def test_what_a_forger_changes_and_seals_again_is_found(folder: Path, array: str, change: Any, kind: str) -> None:
    edit(part_of(folder), array, change)
    found = audit(folder, results=())
    assert not found.certified
    assert [each.kind for each in found.findings] == [kind]
    assert "/tiny/test, shard test-000.tar, clip test" in found.findings[0].where


def test_what_is_not_sealed_again_is_found_whatever_the_sample(folder: Path) -> None:
    edit(part_of(folder, "train"), "utterance", forge_vector, sealed=False)
    assert "checksum" in kinds(audit(folder, sample=1, results=()))


def test_a_label_that_was_changed_in_the_shard_is_found(folder: Path) -> None:
    change_label_in_shard(folder)
    assert kinds(audit(folder, results=())) == {"label"}


def test_a_vector_that_another_windowing_would_have_is_found(folder: Path) -> None:
    def longer(array: Any) -> None:
        array[0] = array[0] + 0.01

    edit(part_of(folder), "seconds", longer)
    assert kinds(audit(folder, results=())) == {"windows"}


def test_clips_of_a_shard_that_the_store_lacks_are_found(folder: Path) -> None:
    clips = [*clips_of("test")[::2], clip("more", noise(0.3), label="a")]
    write_tar(folder / "data/tiny/test-000.tar", [member for members in clips for member in members])
    assert kinds(audit(folder, results=())) == {"clips", "shard"}


def test_a_missing_shard_is_found_and_a_wrong_folder_is_an_error(folder: Path) -> None:
    (folder / "data/tiny/test-001.tar").unlink()
    assert kinds(audit(folder, results=())) == {"shard"}
    with pytest.raises(ShardError):
        featstore.audit(folder / "s.zarr", encoder="logmel", data=folder / "r")


def test_a_skipped_clip_that_can_be_decoded_is_found(folder: Path, tmp_path: Path) -> None:
    clips = clips_of("test")
    good = clips[4][0]
    clips[4][0] = (good[0], b"RIFF" + bytes(len(good[1]) - 4))
    write_split(folder / "data" / "tiny", "test", clips, shards=2)
    store = tmp_path / "s.zarr"
    featstore.extract(folder / "data/tiny.toml", encoder="logmel", data=folder / "data", store=store, split="test")
    assert featstore.audit(store, encoder="logmel", data=folder / "data", sample="100%").certified
    clips[4][0] = good
    write_split(folder / "data" / "tiny", "test", clips, shards=2)
    assert kinds(featstore.audit(store, encoder="logmel", data=folder / "data", sample="100%")) == {"skipped"}


def test_another_checkpoint_is_another_encoder(made: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(XARES_ENCODER)
    encoder, options = str(tmp_path / "mine.py"), {"data": made / "data", "store": tmp_path / "s.zarr"}
    featstore.extract(made / "data/tiny.toml", encoder=encoder, split="test", **options)
    (tmp_path / "mine.py").write_text(XARES_ENCODER.replace("seed: int = 0", "seed: int = 1"))
    with pytest.raises(EncoderError, match="weights"):
        featstore.audit(tmp_path / "s.zarr", encoder=encoder, data=made / "data")


def test_vectors_of_another_checkpoint_under_the_name_and_hash_of_the_encoder_are_found(
    made: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(XARES_ENCODER)
    real = load_encoder(str(tmp_path / "mine.py"))
    other = load_encoder(str(tmp_path / "mine.py"), arguments={"seed": 1})
    task = load_manifest(made / "data/tiny.toml")
    extract(task, made / "data", tmp_path / "s.zarr", encoder=replace(real, module=other.module), splits=("test",))
    found = featstore.audit(tmp_path / "s.zarr", encoder=real, data=made / "data", sample=1)
    assert kinds(found) == {"canary", "vector"}
    assert found.recipes[0].canary == "changed"


@pytest.mark.parametrize("track", ["A", "B"])
def test_an_edited_score_is_found_although_its_file_is_sealed(folder: Path, track: str) -> None:
    [record] = [each for each in read_results(folder / "r").scores if each.track == track]
    write_score(replace(record, value=record.value - 0.01), folder / "r")
    found = audit(folder, sample=1)
    assert kinds(found) == {"score"}
    assert {each.track: each.agrees for each in found.scores} == {"A": track != "A", "B": track != "B"}
    assert certified_scores([found]) == frozenset()


def test_a_score_with_settings_that_no_command_takes_is_a_finding(folder: Path) -> None:
    [record] = [each for each in read_results(folder / "r").scores if each.track == "B"]
    write_score(replace(record, settings={"k": 10, "temperature": 0.07, "index": 7, "shots": [["a"]]}), folder / "r")
    found = audit(folder, sample=1)
    assert kinds(found) == {"score"}
    assert any(each.recomputed is None for each in found.scores)


@pytest.mark.parametrize(
    "change",
    [
        {"value": 0.7011},
        {"ci_low": 0.6712},
        {"ci_high": None},
        {"std": 0.006},
        {"n_test": 399},
        {"n_skipped": 1},
        {"seeds": (0,)},
        {"settings": {"head": "sweep"}},
        {"features": {"train": "ab" * 8, "test": "ce" * 8}},
        {"manifest_sha256": "0" * 64},
        {"protocol_version": 1},
        {"details.spread.variance": 2e-6},
        {"details.spread.deviations.0": 0.0},
        {"details.confusion.1.0": 1},
        {"details.by_class": [0.5, 0.5]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_that_a_report_reads_is_compared(change: dict[str, Any]) -> None:
    record = scored("tiny", "logmel", 0.7, classes=["a", "b"])
    assert list(differences_of(record, replace(record, value=0.7005, seconds={}, versions={}), tolerance=1e-3)) == []
    raw = json.loads(json.dumps(record.as_json()))
    for path, value in change.items():
        *above, last = (int(each) if each.isdigit() else each for each in path.split("."))
        place = raw
        for name in above:
            place = place[name]
        place[last] = value
    [difference] = differences_of(ScoreRecord.from_json(raw), record, tolerance=1e-3)
    assert next(iter(change)).split(".")[0] in difference.replace("protocol version", "protocol_version")


def test_a_score_that_does_not_follow_from_a_changed_store_is_found(folder: Path) -> None:
    def forge(array: Any) -> None:
        array[:] = np.random.default_rng(0).standard_normal(array.shape)

    edit(part_of(folder), "utterance", forge)
    assert kinds(audit(folder)) == {"vector", "score"}


def test_a_damaged_file_of_results_and_a_score_without_manifest_are_found(folder: Path) -> None:
    (folder / "data/tiny.toml").rename(folder / "tiny.toml")
    next((folder / "r").glob("*.A.*.json")).write_text("{}")
    found = audit(folder, sample=1)
    assert kinds(found) == {"results", "score"}
    assert kinds(audit(folder, sample=1, tasks=folder / "tiny.toml")) == {"results"}


# --- certificates -----------------------------------------------------------------------------------------------------


def test_a_changed_certificate_is_refused(made: Path, tmp_path: Path) -> None:
    path = audit(made, sample=1, results=()).write(tmp_path / "x.certificate.json")
    raw = json.loads(path.read_text())
    for change in ({"seed": 1}, {"certified": False}, {"certificate_format": 2}, {"sha256": "0" * 64}):
        path.write_text(json.dumps({**raw, **change}))
        with pytest.raises(ResultsError):
            read_certificate(path)


def test_the_report_marks_certified_scores_until_one_is_edited(folder: Path, run: Run) -> None:
    def marks(text: str) -> int:
        return text.count(" ✓") - text.count(" ✓:")  # without the note

    call = ("audit", folder / "s.zarr", "--encoder", "logmel", "--data", folder / "data", "--results", folder / "r")
    done = run(*call, "--json")
    assert done.code == 0
    assert json.loads(done.out)[0]["certified"] is True
    assert marks(run("report", folder / "r").out) == 2
    assert run("report", folder / "r", "--format", "json").out.count('"certified": true') == 2
    page = featstore.report(folder / "r", folder / "page.html").read_text()
    assert page.count(" ✓</span>") >= 2
    [record] = [each for each in read_results(folder / "r").scores if each.track == "B"]
    write_score(replace(record, value=record.value - 0.01), folder / "r")
    assert marks(run("report", folder / "r").out) == 1
    done = run(*call)
    assert done.code == 1
    assert "NOT CERTIFIED: 1 finding" in done.out
    done = run("report", folder / "r")
    assert "✓" not in done.out
    assert "1 finding" in done.err


# --- the sample -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_clips", "n_sampled"), [(1000, 10), (97, 10), (13, 13), (5, 1)])
def test_a_sample_has_one_clip_of_each_block_and_every_clip_can_be_drawn(n_clips: int, n_sampled: int) -> None:
    drawn = np.stack([draw_sample(n_clips, n_sampled, seed=seed) for seed in range(2000)])
    bounds = np.array([n_clips * at // n_sampled for at in range(n_sampled + 1)])
    assert (drawn >= bounds[:-1]).all()
    assert (drawn < bounds[1:]).all()
    counts = np.bincount(drawn.ravel(), minlength=n_clips)
    assert counts.min() > 0
    assert np.abs(counts / 2000 - n_sampled / n_clips).max() < 0.05


@pytest.mark.parametrize(("n_clips", "n_sampled"), [(1000, 50), (970, 60)])
@pytest.mark.parametrize("where", ["first", "spread", "random"])
def test_the_probability_of_missing_a_forgery_is_at_most_the_stated_one(
    n_clips: int, n_sampled: int, where: str
) -> None:
    n_forged = 20
    forged = {
        "first": np.arange(n_forged),
        "spread": np.arange(n_forged) * n_clips // n_forged,
        "random": np.random.default_rng(0).choice(n_clips, n_forged, replace=False),
    }[where]
    missed = np.mean([not np.isin(draw_sample(n_clips, n_sampled, seed=seed), forged).any() for seed in range(2000)])
    stated = miss_probability(n_clips, n_sampled, fraction=n_forged / n_clips)
    assert missed <= stated + 3 * np.sqrt(stated * (1 - stated) / 2000)
    # not loose: that of sampling with replacement, up to the rounding of blocks
    assert stated == pytest.approx((1 - n_forged / n_clips) ** n_sampled, rel=0.2)


def test_the_bound_of_forged_clips_is_where_the_probability_of_missing_them_is_5_per_cent() -> None:
    assert forged_at_most(100_000, 1_000) == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-6)
    assert miss_probability(100_000, 1_000, fraction=forged_at_most(100_000, 1_000)) == pytest.approx(0.05, rel=0.01)
    assert forged_at_most(10, 1) == 0.95


@pytest.mark.parametrize("sample", ["0", "0%", "101%", "-1", "1.5", "many", ""])
def test_an_invalid_size_of_a_sample_is_refused(made: Path, sample: str) -> None:
    with pytest.raises(UsageError):
        audit(made, sample=sample)


def test_a_size_is_a_percentage_or_a_number() -> None:
    assert [sample_size(each, 250) for each in ("1%", "0.4%", "10", 10, "100%", "1000")] == [3, 1, 10, 10, 250, 250]

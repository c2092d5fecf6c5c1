"""Nearest clips against a naive search, and a file against the clip that it was extracted from."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

import featstore
from featstore.encoders import load_encoder
from featstore.errors import AmbiguousSelection, EncoderError, UnknownFeatureSet, UnusableClip, UsageError
from featstore.explore.query import Found, nearest_to_file, nearest_to_key, sets_of_one_encoder
from featstore.extract.single_file import load_encoder_of
from featstore.store import FeatureSet
from handmade import XARES_ENCODER, audio_bytes, clip, extract, noise, write_split
from mapped import Stored, write_set
from tiny import task

DIM = 5


def some(name: str, n: int, *, windows: int = 1, seed: int = 0) -> list[Stored]:
    rng = np.random.default_rng([seed, *name.encode()])
    return [
        Stored(f"{name}-{at}", rng.standard_normal((1 + at % windows, DIM)), {"word": f"w{at % 3}"}) for at in range(n)
    ]


def sets_in(url: Path, *, encoder: str | None = None, split: str | None = None) -> tuple[FeatureSet, ...]:
    return sets_of_one_encoder(featstore.open(str(url)), encoder=encoder, dataset=None, split=split)


def naive(clips: list[Stored], queries: np.ndarray, *, without: str = "") -> list[tuple[float, str]]:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    scored = [
        (max(cosine(row, query) for row in each.rows for query in queries), each.key)
        for each in clips
        if each.key != without
    ]
    return sorted(scored, key=lambda pair: -pair[0])


def pairs(found: Found) -> list[tuple[float, str]]:
    return [(pytest.approx(hit.similarity, abs=1e-5), hit.key) for hit in found.hits]


def test_clips_are_ranked_by_their_closest_windows_over_all_splits_and_the_clip_itself_is_skipped(tmp_path):
    train, test = some("train", 40, windows=4), some("test", 30, windows=3)
    write_set(tmp_path / "s", train, shards=3)
    write_set(tmp_path / "s", test, split="test")
    sets = sets_in(tmp_path / "s")
    asked = train[7]
    assert len(asked.rows) == 4
    found = nearest_to_key(sets, asked.key, k=12)
    assert pairs(found) == naive(train + test, asked.rows, without=asked.key)[:12]
    assert (found.clips_searched, found.windows, found.query) == (69, 4, "words/train/train-7")
    for hit in found.hits:
        row = int(hit.start_seconds)
        [stored] = [each for each in train + test if each.key == hit.key]
        best = np.argmax((unit(stored.rows) @ unit(asked.rows).T).max(axis=1))
        assert (row, json.loads(hit.meta), hit.distance) == (best, stored.meta, pytest.approx(1 - hit.similarity))
        assert hit.split == hit.key.split("-")[0]


def unit(X: np.ndarray) -> np.ndarray:
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def test_a_window_asks_alone_by_its_own_key_and_its_clip_is_skipped_all_the_same(tmp_path):
    clips = some("a", 12, windows=3)
    write_set(tmp_path / "s", clips)
    found = nearest_to_key(sets_in(tmp_path / "s"), "a-5#2", k=4)
    assert pairs(found) == naive(clips, clips[5].rows[1:2], without="a-5")[:4]


def test_more_clips_than_there_are_is_all_of_them_and_what_is_not_finite_is_none(tmp_path):
    clips = [*some("a", 4), Stored("broken", np.full(DIM, np.nan)), Stored("zero", np.zeros(DIM))]
    write_set(tmp_path / "s", clips)
    found = nearest_to_key(sets_in(tmp_path / "s"), "a-0", k=99)
    assert {hit.key for hit in found.hits} == {"a-1", "a-2", "a-3", "zero"}


def test_a_key_of_several_splits_must_be_told_apart_and_can_be(tmp_path):
    clips = some("same", 6)
    write_set(tmp_path / "s", clips)
    write_set(tmp_path / "s", clips, split="test")
    with pytest.raises(AmbiguousSelection, match="words/test/same-1, words/train/same-1"):
        nearest_to_key(sets_in(tmp_path / "s"), "same-1", k=3)
    for name in ("test/same-1", "words/test/same-1"):
        found = nearest_to_key(sets_in(tmp_path / "s"), name, k=3)
        assert (found.query, found.hits[0].split, found.hits[0].distance) == (
            "words/test/same-1",
            "train",
            pytest.approx(0, abs=1e-6),
        )
    assert nearest_to_key(sets_in(tmp_path / "s", split="test"), "same-1", k=1).query == "words/test/same-1"


def test_a_key_that_is_not_there_is_met_with_those_that_look_like_it(tmp_path):
    write_set(tmp_path / "s", [Stored(f"speech/yes_{at:04d}", np.eye(DIM)[at % DIM]) for at in range(3000)])
    with pytest.raises(UnknownFeatureSet, match=r"'speech/yes_2999x'.* 'speech/yes_2999'\?"):
        nearest_to_key(sets_in(tmp_path / "s"), "speech/yes_2999x", k=3)
    with pytest.raises(UnknownFeatureSet, match=r"'speech/yes_0007'.*'speech/yes_0070'.*'speech/yes_0071'"):
        nearest_to_key(sets_in(tmp_path / "s"), "words/train/speech/yes_007", k=3)
    with pytest.raises(UnknownFeatureSet, match=r"words/train .*'zzz'"):
        nearest_to_key(sets_in(tmp_path / "s"), "zzz", k=3)


def test_vectors_of_two_encoders_are_never_compared(tmp_path):
    write_set(tmp_path / "s", some("a", 3))
    write_set(tmp_path / "s", some("a", 3), encoder="other")
    with pytest.raises(AmbiguousSelection, match="--encoder mel@"):
        sets_in(tmp_path / "s")
    assert len(sets_in(tmp_path / "s", encoder="other")) == 1
    with pytest.raises(UnknownFeatureSet, match=r"/\*|\*/"):
        sets_in(tmp_path / "s", encoder="third")


@pytest.mark.slow
def test_a_key_among_200_000_vectors_is_answered_within_a_fifth_of_a_second(tmp_path):
    rng = np.random.default_rng(0)
    clips = [Stored(f"part-{at // 1000}/clip-{at}", rng.standard_normal(768, np.float32)) for at in range(200_000)]
    write_set(tmp_path / "s", clips, shards=20)
    del clips
    fastest = math.inf
    for _ in range(12):  # the first comes from the disk, and others may have the cores for a while
        found = nearest_to_key(sets_in(tmp_path / "s"), "part-3/clip-3007", k=10)
        assert found.clips_searched == 199_999
        fastest = min(fastest, found.seconds)
        if fastest < 0.2:
            break
    assert fastest < 0.2  # 0.14 on two idle cores
    began = time.perf_counter()
    with pytest.raises(UnknownFeatureSet, match="'part-3/clip-3007'"):
        nearest_to_key(sets_in(tmp_path / "s"), "part-3/clip-3007x", k=10)
    assert time.perf_counter() - began < 2


# --- a file -----------------------------------------------------------------------------------------------------------


def load(fs: FeatureSet, spec: str | None = None):
    return load_encoder_of(fs.recipe, stored_spec=fs.address.spec, spec=spec)


def shards(folder: Path) -> dict[str, np.ndarray]:
    """Clips of another rate than the encoder's, and of different lengths."""
    waves = {f"c{at}": noise(0.35 + 0.4 * at, seed=at, rate=22_050) for at in range(6)}
    write_split(folder / "tiny", "train", [clip(key, wave, rate=22_050) for key, wave in waves.items()], shards=2)
    return waves


@pytest.mark.parametrize(("crop", "padding"), [(None, "0.25"), (0.5, "0.25"), (0.5, "exact"), (None, "xares")])
def test_a_file_is_encoded_as_the_store_says_and_finds_itself(tmp_path, crop, padding):
    waves = shards(tmp_path / "data")
    data = {"dataset": "tiny"} | ({"crop_seconds": crop} if crop else {})
    extract(task(data=data), tmp_path / "data", tmp_path / "s", padding=padding)
    path = tmp_path / "heard.wav"
    path.write_bytes(audio_bytes(waves["c3"], rate=22_050))
    found = nearest_to_file(sets_in(tmp_path / "s"), path, load=load, k=3)
    assert found.hits[0].key == "c3"
    assert found.clips_searched == 6
    # Padded among others the vector is another (that is what xares does), else it is the same.
    assert found.hits[0].similarity > (0.95 if padding == "xares" else 0.999999)
    assert found.windows == (1 if crop is None else 4)


def test_pools_and_cuts_of_the_recipe_hold_for_a_file(tmp_path):
    waves = shards(tmp_path / "data")
    encoder = load_encoder("logmel", pools=["std"])
    extract(task(), tmp_path / "data", tmp_path / "s", encoder=encoder, max_window_seconds=0.8)
    path = tmp_path / "heard.wav"
    path.write_bytes(audio_bytes(waves["c4"], rate=22_050))
    found = nearest_to_file(sets_in(tmp_path / "s"), path, load=load, k=1)
    assert (found.hits[0].key, found.hits[0].similarity > 0.999999, found.windows) == ("c4", True, 3)


def test_an_encoder_that_runs_code_is_loaded_when_the_user_names_it_and_is_still_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    waves = shards(tmp_path / "data")
    Path("mine.py").write_text(XARES_ENCODER)
    extract(task(), tmp_path / "data", tmp_path / "s", encoder="./mine.py")
    Path("heard.wav").write_bytes(audio_bytes(waves["c1"], rate=22_050))
    sets = sets_in(tmp_path / "s")
    with pytest.raises(UsageError, match=r"`--spec ./mine.py`"):
        nearest_to_file(sets, Path("heard.wav"), load=load, k=1)
    found = nearest_to_file(sets, Path("heard.wav"), load=lambda fs: load(fs, "./mine.py"), k=1)
    assert (found.hits[0].key, found.hits[0].similarity > 0.999999) == ("c1", True)
    Path("mine.py").write_text(XARES_ENCODER.replace("/ 20", "/ 21"))
    with pytest.raises(EncoderError, match=r"MyEncoder@\w+.*code_sha256, state_sha256"):
        load(sets[0], "./mine.py")


def test_a_file_that_is_no_audio_is_reported_by_its_name(tmp_path):
    shards(tmp_path / "data")
    extract(task(), tmp_path / "data", tmp_path / "s")
    path = tmp_path / "text.wav"
    path.write_text("no audio")
    with pytest.raises(UnusableClip, match=r"text\.wav"):
        nearest_to_file(sets_in(tmp_path / "s"), path, load=load, k=1)

"""The demo's clips: labelled, finite, in range, and a function of their place alone."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from featstore.demo.mixtures import EVENTS
from featstore.demo.music import INSTRUMENTS
from featstore.demo.scenes import SCENES
from featstore.demo.shards import COLLECTIONS, Collection, Sample, synthesise
from featstore.errors import UsageError
from featstore.records import canonical_json

DATASETS = [collection.dataset for collection in COLLECTIONS]


def _places(n: int) -> list[tuple[str, str, int]]:
    return [
        (collection.dataset, split, index)
        for collection in COLLECTIONS
        for split in collection.clips
        for index in range(n)
    ]


def _made(place: tuple[str, str, int]) -> Sample:
    return synthesise(*place)


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_clip_is_the_same_whenever_wherever_and_in_whatever_order_it_is_made(dataset: str) -> None:
    split = next(iter(next(each for each in COLLECTIONS if each.dataset == dataset).clips))
    forwards = [synthesise(dataset, split, index) for index in range(8)]
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda index: synthesise(dataset, split, index), reversed(range(8))))
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert one.key == other.key
        assert canonical_json(one.meta) == canonical_json(other.meta)
        np.testing.assert_array_equal(one.waveform, other.waveform)


def test_no_two_clips_have_one_waveform_or_one_key() -> None:
    samples = [_made(place) for place in _places(4)]
    assert len({sample.key for sample in samples}) == len(samples)
    assert len({sample.waveform.tobytes() for sample in samples}) == len(samples)


def test_clips_are_finite_in_range_audible_and_as_long_as_they_say() -> None:
    limits = {"demo-instruments": (0.4, 4.0), "demo-scenes": (5.0, 5.0), "demo-mixtures": (3.0, 6.0)}
    for place in _places(5):
        sample = _made(place)
        wave, seconds = sample.waveform, len(sample.waveform) / sample.sample_rate_hz
        low, high = limits[place[0]]
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert np.isfinite(wave).all()
        assert 0.02 < np.abs(wave).max() < 1.0
        assert low <= seconds <= high
        assert sample.meta["seconds"] == seconds


@pytest.mark.parametrize(
    ("dataset", "field", "classes"),
    [("demo-instruments", "instrument", INSTRUMENTS), ("demo-scenes", "scene", SCENES)],
)
def test_every_split_has_the_same_number_of_clips_of_every_class(dataset: str, field: str, classes: dict) -> None:
    collection = next(each for each in COLLECTIONS if each.dataset == dataset)
    for n_clips in collection.clips.values():
        assert n_clips % len(classes) == 0
    for split in list(collection.clips)[:2]:
        first_two_rounds = [synthesise(dataset, split, index).meta[field] for index in range(2 * len(classes))]
        assert Counter(first_two_rounds) == dict.fromkeys(classes, 2)
        assert first_two_rounds[: len(classes)] != sorted(first_two_rounds[: len(classes)])


def test_a_mixtures_label_is_the_set_of_its_events_and_these_lie_inside_the_clip() -> None:
    labels = Counter()
    for index in range(60):
        meta = synthesise("demo-mixtures", "train", index).meta
        named = [label for label in meta["labels"].split(";") if label]
        assert named == sorted({event["label"] for event in meta["events"]})
        assert [event["onset"] for event in meta["events"]] == sorted(event["onset"] for event in meta["events"])
        for event in meta["events"]:
            assert 0 <= event["onset"] < event["offset"] <= meta["seconds"] + 1e-4
        labels.update(named or ["nothing"])
    assert set(labels) == {*EVENTS, "nothing"}


def test_an_event_is_heard_where_its_label_says() -> None:
    louder = []
    for index in range(40):
        sample = synthesise("demo-mixtures", "train", index)
        if len(sample.meta["events"]) == 1:
            event = sample.meta["events"][0]
            begin, end = (round(event[name] * sample.sample_rate_hz) for name in ("onset", "offset"))
            inside, outside = sample.waveform[begin:end], np.delete(sample.waveform, slice(begin, end))
            louder.append(np.mean(inside**2) / np.mean(outside**2))
    assert len(louder) >= 5
    assert np.median(louder) > 4


def test_the_first_note_of_a_sustained_phrase_has_the_pitch_of_its_label() -> None:
    checked = 0
    for index in range(300):
        sample = synthesise("demo-instruments", "train", index)
        if sample.meta["instrument"] != "organ" or len(sample.meta["pitches_hz"]) > 1 or sample.meta["seconds"] < 1:
            continue
        spectrum = np.abs(np.fft.rfft(sample.waveform * np.hanning(len(sample.waveform))))
        hz = np.fft.rfftfreq(len(sample.waveform), 1 / sample.sample_rate_hz)
        near = spectrum[np.abs(hz - sample.meta["pitch_hz"]) < 2].max()
        between = spectrum[np.abs(hz - 1.5 * sample.meta["pitch_hz"]) < 20].max()
        assert near > 3 * between
        checked += 1
        if checked == 2:
            return
    pytest.fail("too few phrases of an organ")


def test_a_pinned_clip_has_not_drifted() -> None:
    # A change of the sounds raises SYNTHESIS_VERSION and updates these numbers.
    for (dataset, split), (n, rms) in {
        ("demo-instruments", "test"): (7290, 0.06805),
        ("demo-scenes", "fold3"): (80000, 0.0742),
        ("demo-mixtures", "valid"): (82944, 0.03047),
    }.items():
        wave = synthesise(dataset, split, 7).waveform
        assert len(wave) == n
        assert np.sqrt(np.mean(wave.astype(float) ** 2)) == pytest.approx(rms, rel=1e-3)


def test_the_demo_is_of_the_size_that_was_promised() -> None:
    sizes = {collection.dataset: sum(collection.clips.values()) for collection in COLLECTIONS}
    assert sizes["demo-instruments"] >= 1500
    assert sizes["demo-scenes"] == 400
    assert all(collection.shards["train"] > 1 for collection in COLLECTIONS if "train" in collection.shards)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dataset": "demo-birds", "clips": {"train": 1}, "shards": {"train": 1}}, "'demo-birds'"),
        ({"dataset": "demo-scenes", "clips": {"a": 1}, "shards": {"b": 1}}, r"\['a'\].*\['b'\]"),
        ({"dataset": "demo-scenes", "clips": {"a": 2}, "shards": {"a": 3}}, r"\b3$"),
    ],
    ids=["a dataset that there is not", "shards of another split", "more shards than clips"],
)
def test_a_collection_that_cannot_be_made_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Collection(**arguments)


def test_a_clip_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match="'demo-birds'"):
        synthesise("demo-birds", "train", 0)
    with pytest.raises(UsageError, match="-1"):
        synthesise("demo-scenes", "fold1", -1)

"""Retrieval by stored captions without training, against loops of NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featstore as fs
import tiny
from featstore.errors import LabelError, UnknownFeatureSet, UsageError
from featstore.evaluation.captions import CaptionQueries
from featstore.evaluation.data import Samples, group_windows
from featstore.evaluation.scores import score_test_sets
from featstore.metrics.retrieval import RecallAt
from featstore.records import ScoreRecord
from featstore.report import read_scores
from featstore.report.page import render_page
from featstore.retrieve import score_measures
from featstore.store import Store, open_store, write_texts
from featstore.tasks import Manifest
from mapped import Stored, write_set

DIM, N = 6, 60
ENCODER = "clap"


def task(**changes: Any) -> Manifest:
    fixed = {"kind": "contrastive", "metric": "recall_at_1", "label": {"captions": "*"}}
    return tiny.task(**{**fixed, **changes})


def clips(name: str, n: int, *, seed: int = 0) -> list[Stored]:
    """Clips of one to three windows with one to five captions, some of which another clip has too."""
    rng = np.random.default_rng([seed, *name.encode()])
    found = []
    for at in range(n):
        captions = {f"c{number}": f"{name} {at} {number}" for number in range(1 + at % 5)}
        if at % 7 == 0:
            captions["shared"] = f"{name} shared {at // 14}"
        found.append(Stored(f"{name}-{at}", rng.standard_normal((1 + at % 3, DIM)), captions))
    return found


SETS = {"test": clips("test", N)}


def vectors_of(clips: Sequence[Stored], *, noise: float = 1.2) -> dict[str, np.ndarray]:
    """Vectors of captions, of any length, around those of their clips; a shared caption is near the last of them."""
    rng = np.random.default_rng(4)
    return {
        text: 10 * rng.uniform(0.1, 1) * (each.rows.mean(axis=0) + noise * rng.standard_normal(DIM))
        for each in clips
        for text in each.meta.values()
    }


def write(
    url: Path,
    sets: Mapping[str, Sequence[Stored]] = SETS,
    *,
    texts: Mapping[str, np.ndarray] | None = None,
    identity: dict[str, Any] | None = None,
) -> str:
    for split, of in sets.items():
        write_set(url, of, split=split, dataset="tiny", encoder=ENCODER, spec="hf:clap", identity=identity)
    recipe = open_store(str(url)).resolve_encoder(ENCODER)
    found = vectors_of([each for of in sets.values() for each in of]) if texts is None else texts
    if found:
        write_texts(
            str(url), recipe, "tiny", spec="hf:clap", texts=[*found], vectors=np.stack([*found.values()]).astype("f4"),
            tower_sha256="0", versions={},
        )  # fmt: skip
    return str(url)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("captions") / "s.zarr")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def scored(store: Store, manifest: Manifest, **options: Any) -> ScoreRecord:
    [record] = score_measures(store, manifest, measures=["text"], **options)
    assert isinstance(record, ScoreRecord)
    return record


def plainly(items: Sequence[tuple[np.ndarray, Sequence[str]]], texts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Recalls and mAP@10 by sorting every list; among equal scores, what is not relevant comes first."""
    captions = [(at, unit(texts[text])) for at, (_, of) in enumerate(items) for text in of]
    scores: dict[str, Any] = {}
    for direction, queries, documents in (
        ("audio_to_text", [(at, unit(vector)) for at, (vector, _) in enumerate(items)], captions),
        ("text_to_audio", captions, [(at, unit(vector)) for at, (vector, _) in enumerate(items)]),
    ):
        hits: dict[int, list[bool]] = {1: [], 5: [], 10: []}
        precisions = []
        for item, query in queries:
            ranked = sorted((-np.round(query @ document, 6), owner == item) for owner, document in documents)
            relevant = [right for _, right in ranked]
            for k, of in hits.items():
                of.append(any(relevant[:k]))
            found = [sum(relevant[: at + 1]) / (at + 1) for at in range(10) if relevant[at]]
            precisions.append(sum(found) / min(10, sum(relevant)))
        scores[direction] = {f"recall_at_{k}": np.mean(of) for k, of in hits.items()}
        scores[direction]["map_at_10"] = np.mean(precisions)
    return scores


def of_clips(clips: Sequence[Stored]) -> list[tuple[np.ndarray, list[str]]]:
    return [(each.rows.mean(axis=0), [*each.meta.values()]) for each in clips]


def assert_scores(record: ScoreRecord, expected: Mapping[str, Any]) -> None:
    for direction, of in expected.items():
        assert record.details[direction] == pytest.approx(of), direction
    recalls = [of["recall_at_1"] for of in expected.values()]
    assert record.value == pytest.approx(np.mean(recalls))
    assert 0.02 < record.value < 0.9


def test_captions_and_clips_find_each_other(store: str) -> None:
    record = scored(open_store(store), task())
    assert_scores(record, plainly(of_clips(SETS["test"]), vectors_of(SETS["test"])))
    assert (record.track, record.measure, record.metric) == ("B", "text", "recall_at_1")
    assert (record.n_train, record.n_valid, record.n_test) == (0, 0, N)
    assert record.details["n_captions"] == sum(len(each.meta) for each in SETS["test"])
    assert record.details["n_shared_captions"] == 8  # of nine, the last has no clip to share with
    assert record.ci_low is not None
    assert record.ci_low < record.value < record.ci_high
    assert record.details["spread"]["units"] == "clips"
    assert record.settings == {"measure": "text"}


def test_the_interval_is_of_groups_where_the_manifest_names_them(tmp_path: Path) -> None:
    grouped = [replace(each, meta={**each.meta, "who": f"g{at % 20}"}) for at, each in enumerate(SETS["test"])]
    splits = {**{name: f"{name}*.tar" for name in ("train", "valid", "test")}, "group": "who"}
    # the captions are fields, of which every clip has the first
    manifest = task(label={"captions": ["c0"]}, splits=splits)
    url = write(tmp_path / "s.zarr", {"test": grouped}, texts=vectors_of(SETS["test"]))
    record = scored(open_store(url), manifest)
    first = [(vector, texts[:1]) for vector, texts in of_clips(SETS["test"])]
    assert_scores(record, plainly(first, vectors_of(SETS["test"])))
    assert (record.details["spread"]["units"], record.details["spread"]["n"]) == ("groups", 20)


def items(clip: np.ndarray, seconds: np.ndarray) -> Samples:
    every = np.arange(clip.max() + 1)
    return group_windows(every, clip=clip, seconds=seconds, values=every, protocol="strict")


def test_windows_count_by_their_seconds() -> None:
    samples = items(np.array([0, 0, 1]), np.array([1.0, 3.0, 2.0]))
    queries = CaptionQueries(samples=samples, caption=np.arange(2), caption_item=np.arange(2))
    np.testing.assert_allclose(queries.items(np.array([[4.0], [8.0], [5.0]], np.float32)), [[7.0], [5.0]])


def test_windows_are_items_under_xares(store: str) -> None:
    record = scored(open_store(store), task(), protocol="xares")
    windows = [(row, [*each.meta.values()]) for each in SETS["test"] for row in each.rows]
    assert_scores(record, plainly(windows, vectors_of(SETS["test"])))


def test_each_fold_is_retrieved_from_itself(tmp_path: Path) -> None:
    sets = {"fold-1": clips("one", 30), "fold-2": clips("two", 40)}
    url = write(tmp_path / "s.zarr", sets)
    texts = vectors_of([*sets["fold-1"], *sets["fold-2"]])
    folds = {name: f"{name}-*.tar" for name in sets}
    record = scored(open_store(url), task(splits=None, folds=folds))
    expected = {name: plainly(of_clips(of), texts) for name, of in sets.items()}
    for name, of in expected.items():
        assert record.details["audio_to_text"][name] == pytest.approx(of["audio_to_text"])
        recalls = [of[direction]["recall_at_1"] for direction in of]
        assert record.details["by_round"][name] == pytest.approx(np.mean(recalls))
    assert record.value == pytest.approx(np.mean([*record.details["by_round"].values()]))


def test_intervals_cover_the_score_of_other_clips() -> None:
    """Clips are drawn again with their captions, of which two fail together."""
    rng, n = np.random.default_rng(0), 100
    metric, found = RecallAt(k=1), []
    for _ in range(150):
        audio = rng.standard_normal((n, DIM))
        shift = np.repeat(rng.standard_normal((n, DIM)), 2, axis=0)
        text = np.repeat(audio, 2, axis=0) + 0.5 * shift + 0.5 * rng.standard_normal((2 * n, DIM))
        queries = CaptionQueries(
            samples=items(np.arange(n), np.ones(n)), caption=np.arange(2 * n), caption_item=np.repeat(np.arange(n), 2)
        )
        audio, text = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (audio, text))
        tested = queries.test_set([queries.ranks(audio.astype(np.float32), text.astype(np.float32))])
        found.append(score_test_sets(metric, [tested], clip_ids=[str(clip) for clip in range(n)]))
    truth = np.mean([each.value for each in found])
    covered = [each.interval.low <= truth <= each.interval.high for each in found]
    assert 0.9 < np.mean(covered) < 1.0


def test_equal_vectors_find_nothing(tmp_path: Path) -> None:
    same = {"test": [replace(each, vectors=np.ones((1, DIM))) for each in SETS["test"]]}
    url = write(tmp_path / "s.zarr", same, texts={text: np.ones(DIM) for text in vectors_of(SETS["test"])})
    record = scored(open_store(url), task())
    assert (record.value, record.details["text_to_audio"]["recall_at_10"]) == (0.0, 0.0)


def test_only_the_test_split_is_needed_and_other_measures_are_named(store: str, tmp_path: Path) -> None:
    (record,) = fs.retrieve(task(), store=store, measure="text", results=tmp_path)
    assert record.features.keys() == {"test"}
    (read,) = read_scores(tmp_path)
    assert read == record
    again = replace(record, task="again", title="Again")
    page = render_page([record, again])
    assert "recall_at_1" in page
    with pytest.raises(UsageError, match="contrastive"):
        score_measures(open_store(store), task(), measures=("zero-shot",))
    lines: list[str] = []
    (same,) = score_measures(open_store(store), task(), measures=("knn", "text"), notify=lines.append)
    assert isinstance(same, ScoreRecord)
    assert (same.value, len(lines)) == (record.value, 1)


def with_texts_of_others(url: Path) -> None:
    write(url, texts={"another text": np.ones(DIM)})


def without_texts(url: Path) -> None:
    write(url, texts={})


def of_a_layer(url: Path) -> None:
    write(url, identity={"layer": 1})


def without_captions(url: Path) -> None:
    write(url, {"test": [*SETS["test"], Stored("mute", np.ones(DIM), {})]}, texts=vectors_of(SETS["test"]))


@pytest.mark.parametrize(
    ("made", "error", "match"),
    [
        (without_texts, UnknownFeatureSet, r"--split test --encoder hf:clap .*only the texts"),
        (with_texts_of_others, UnknownFeatureSet, r"--split test --encoder hf:clap .*only the texts"),
        (of_a_layer, UsageError, "own output"),
        (without_captions, LabelError, "mute"),
    ],
)
def test_what_is_missing_is_one_line(
    made: Callable[[Path], None], error: type[Exception], match: str, tmp_path: Path
) -> None:
    made(tmp_path / "s.zarr")
    with pytest.raises(error, match=match) as caught:
        scored(open_store(str(tmp_path / "s.zarr")), task())
    assert "\n" not in str(caught.value)

"""Protocol ``maeb``: the scores of mteb's own evaluators on the same vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
)
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.models import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier

import tiny
from featstore.records import ScoreRecord
from featstore.retrieve import score_measures
from featstore.retrieve.maeb.lists import candidates_of, draw_others, pairs_of
from speech_tasks import _task

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DIM = 16
WHOLE = {"splits": {"train": "all*.tar", "valid": "all*.tar", "test": "all*.tar"}}


class Vectors:
    """An mteb model whose vector of a clip is in a matrix, at the row that is the clip's only sample."""

    mteb_model_meta = ModelMeta.create_empty({"name": "tests/vectors", "revision": "1", "modalities": ["audio"]})

    def __init__(self, X: np.ndarray) -> None:
        self.X = X

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        return self.X[[int(audio["array"][0]) for batch in inputs for audio in batch["audio"]]]

    similarity = staticmethod(cos_sim)
    similarity_pairwise = staticmethod(pairwise_cos_sim)


def audio(rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    return [{"array": np.array([row], np.float32), "sampling_rate": 16_000} for row in rows]


def by_mteb(X: np.ndarray, task: Any) -> dict[str, Any]:
    result = mteb.evaluate(Vectors(X), task, cache=None, show_progress_bar=False, co2_tracker=False)
    [[scores]] = result.task_results[0].scores.values()
    return dict(scores)


class Clips:
    """The clips of some sets, as mteb sees them: one vector each, and their labels as numbers."""

    def __init__(self, sets: dict[str, tiny.TinySet]) -> None:
        self.sets = sets
        clips = [(name, clip) for name, each in sets.items() for clip in each.clips]
        self.X = np.array(
            [np.average(np.atleast_2d(clip.vectors), axis=0, weights=clip.seconds) for _, clip in clips], np.float32
        )
        self.set = np.array([name for name, _ in clips])
        self.names = np.array([f"{name}/{clip.key}" for name, clip in clips])
        self.labels = [clip.label for _, clip in clips]

    def rows(self, name: str) -> np.ndarray:
        return np.flatnonzero(self.set == name)

    def dataset(self, rows: np.ndarray) -> Dataset:
        def number(label: Any) -> Any:
            names = label if isinstance(label, list) else [label]
            found = sorted(int(name.removeprefix("class-")) for name in names)
            return found if isinstance(label, list) else found[0]

        return Dataset.from_dict({"audio": audio(rows), "label": [number(self.labels[row]) for row in rows]})

    def scores(self, **changes: Any) -> dict[str, ScoreRecord]:
        records = score_measures(tiny.TinyStore(self.sets), tiny.task(**changes), protocol="maeb")
        assert {(each.protocol, each.track) for each in records} == {("maeb", "B")}
        return {each.settings["measure"]: each for each in records}


def split_clips(**options: Any) -> Clips:
    made = {"dim": DIM, "spread": 2.0, "n_classes": 4, **options}
    sizes = {"train": 70, "valid": 20, "test": 61}
    return Clips({name: tiny.TinySet(tiny.clips(name, n, **made)) for name, n in sizes.items()})


SPLIT = split_clips(windows=3)
FOLDED = Clips(
    {f"fold{n}": tiny.TinySet(tiny.clips(f"f{n}", 40 + n, dim=DIM, spread=2.0, n_classes=4)) for n in (1, 2)}
)
UNDIVIDED = Clips({"test": tiny.TinySet(tiny.clips("all", 83, dim=DIM, spread=1.0, n_classes=25))})  # of 3 or 4 clips
TASKS = {
    "split": (SPLIT, {}, SPLIT.rows("test")),
    "folds": (FOLDED, tiny.folds("fold1", "fold2"), np.arange(len(FOLDED.X))),
    "undivided": (UNDIVIDED, WHOLE, np.arange(len(UNDIVIDED.X))),
}


def _slow(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["split", _slow("folds"), _slow("undivided")])
def scored(request: pytest.FixtureRequest) -> tuple[Clips, np.ndarray, dict[str, ScoreRecord]]:
    clips, changes, tested = TASKS[request.param]
    return clips, tested, clips.scores(**changes)


@pytest.mark.parametrize("scored", ["split", "folds", _slow("undivided")], indirect=True)
def test_classification_is_that_of_mteb(scored: Any) -> None:
    clips, tested, records = scored
    if len(tested) == len(clips.X):
        task = _task(
            AbsTaskClassification,
            "AudioClassification",
            "accuracy",
            DatasetDict({"train": clips.dataset(tested)}),
            split="train",
            is_cross_validation=True,
        )
    else:
        data = DatasetDict({name: clips.dataset(clips.rows(name)) for name in ("train", "test")})
        task = _task(AbsTaskClassification, "AudioClassification", "accuracy", data)
    expected, record = by_mteb(clips.X, task), records["classification"]
    each = [one["accuracy"] for one in expected["scores_per_experiment"]]
    found = record.details["by_seed"] if record.seeds else record.details["by_round"]
    assert list(found.values()) == pytest.approx(each, abs=1e-12)
    assert record.value == pytest.approx(expected["main_score"], abs=1e-12)
    assert record.metric == "accuracy"


def test_clustering_is_that_of_mteb(scored: Any) -> None:
    clips, tested, records = scored
    task = _task(
        AbsTaskClustering,
        "AudioClustering",
        "v_measure",
        DatasetDict({"test": clips.dataset(tested)}),
        max_fraction_of_documents_to_embed=None,
    )
    expected, record = by_mteb(clips.X, task), records["clustering"]
    # mteb's own labels depend on its number of threads where two centres are equally near
    assert list(record.details["by_seed"].values()) == pytest.approx(expected["v_measures"]["Level 0"], abs=1e-9)
    assert record.value == pytest.approx(expected["main_score"], abs=1e-9)


def test_pairs_are_those_of_mteb(scored: Any) -> None:
    clips, tested, records = scored
    pairs = pairs_of(draw_others(values_of(clips, tested), clips.names[tested].tolist()))
    data = {
        "audio1": audio(tested[pairs.first]),
        "audio2": audio(tested[pairs.second]),
        "label": pairs.same.astype(int).tolist(),
    }
    task = _task(
        AbsTaskPairClassification,
        "AudioPairClassification",
        "max_ap",
        DatasetDict({"test": Dataset.from_dict(data)}),
        input1_column_name="audio1",
        input2_column_name="audio2",
    )
    expected, record = by_mteb(clips.X, task), records["pairs"]
    assert record.value == pytest.approx(expected["main_score"], abs=1e-6)
    for name in ("cosine_ap", "dot_ap", "euclidean_ap", "manhattan_ap", "similarity_ap"):
        assert record.details["scores"][name]["value"] == pytest.approx(expected[name], abs=1e-6)


def values_of(clips: Clips, rows: np.ndarray) -> np.ndarray:
    labels = [clips.labels[row] for row in rows]
    if not isinstance(labels[0], list):
        return np.unique(labels, return_inverse=True)[1]
    classes = sorted({name for names in labels for name in names})
    return np.array([[float(name in names) for name in classes] for names in labels], np.float32)


def retrieval(clips: Clips, tested: np.ndarray, candidates: dict[str, list[str]] | None, **more: Any) -> Any:
    names, values = clips.names[tested].tolist(), values_of(clips, tested)
    same = values[:, None] == values if values.ndim == 1 else values @ values.T > 0
    same[np.diag_indices(len(same))] = False
    documents = Dataset.from_dict({"id": names, "audio": audio(tested)})
    relevant = {
        name: {
            other: int(same[at, to])
            for to, other in enumerate(names)
            if (same[at, to] if candidates is None else other in candidates.get(name, ()))
        }
        for at, name in enumerate(names)
    }
    relevant = {name: found for name, found in relevant.items() if any(found.values())}
    data = RetrievalSplitData(queries=documents, corpus=documents, relevant_docs=relevant, top_ranked=candidates)
    kind, score = ("Any2AnyRetrieval", "ndcg_at_10") if candidates is None else ("AudioReranking", "map_at_1000")
    return _task(AbsTaskRetrieval, kind, score, {"default": {"test": data}}, **more)


def test_retrieval_is_that_of_mteb(scored: Any) -> None:
    clips, tested, records = scored
    expected = by_mteb(clips.X, retrieval(clips, tested, None, ignore_identical_ids=True))
    record = records["retrieval"]
    assert record.value == pytest.approx(expected["main_score"], abs=2e-5)  # mteb rounds to five digits
    for name in ("hit_rate_at_1", "hit_rate_at_5", "hit_rate_at_10", "recall_at_1", "recall_at_5", "recall_at_10"):
        assert record.details["scores"][name]["value"] == pytest.approx(expected[name], abs=2e-5)


def listed(clips: Clips, tested: np.ndarray) -> dict[str, list[str]]:
    names = clips.names[tested]
    queries, candidates = candidates_of(draw_others(values_of(clips, tested), names.tolist()))
    return {str(names[query]): names[some[some >= 0]].tolist() for query, some in zip(queries, candidates, strict=True)}


def test_reranking_is_that_of_mteb(scored: Any) -> None:
    clips, tested, records = scored
    expected = by_mteb(clips.X, retrieval(clips, tested, listed(clips, tested)))
    assert records["reranking"].value == pytest.approx(expected["main_score"], abs=2e-5)


def test_equal_similarities_are_ordered_as_by_mteb() -> None:
    """mteb ranks the last name first."""
    rng = np.random.default_rng(0)
    points = np.eye(3, DIM)  # of which similarities are exact
    made = [tiny.Clip(f"{n:02d}", f"class-{rng.integers(4)}", points[n % 3]) for n in range(60)]
    clips = Clips({"test": tiny.TinySet(made)})
    tested = np.arange(60)
    records = clips.scores(**WHOLE)
    expected = by_mteb(clips.X, retrieval(clips, tested, listed(clips, tested)))
    assert records["reranking"].value == pytest.approx(expected["main_score"], abs=2e-5)
    expected = by_mteb(clips.X, retrieval(clips, tested, None, ignore_identical_ids=True))
    assert records["retrieval"].value == pytest.approx(expected["main_score"], abs=2e-5)


def label_sets() -> Clips:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((4, DIM))
    sets = {}
    for name, n in (("train", 90), ("valid", 10), ("test", 55)):
        made = []
        for at in range(n):
            members = np.flatnonzero(rng.random(4) < 0.4)
            label = [f"class-{member}" for member in members] or ["class-0"]
            vector = centres[members].sum(axis=0) + rng.standard_normal(DIM)
            made.append(tiny.Clip(f"{name}-{at}", label, vector))
        sets[name] = tiny.TinySet(made)
    return Clips(sets)


def test_multilabel_is_that_of_mteb() -> None:
    clips = label_sets()
    records = clips.scores(kind="multilabel", metric="mAP", retrieve={"k": 5})
    assert list(records) == ["multilabel", "pairs", "reranking", "retrieval"]
    task = _task(
        AbsTaskMultilabelClassification,
        "AudioMultilabelClassification",
        "lrap",
        DatasetDict({name: clips.dataset(clips.rows(name)) for name in ("train", "test")}),
        evaluator_model=MultiOutputClassifier(estimator=LogisticRegression()),
    )
    expected, record = by_mteb(clips.X, task), records["multilabel"]
    each = [one["lrap"] for one in expected["scores_per_experiment"]]
    assert list(record.details["by_seed"].values()) == pytest.approx(each, abs=1e-12)
    assert record.value == pytest.approx(expected["main_score"], abs=1e-12)
    tested = clips.rows("test")
    expected = by_mteb(clips.X, retrieval(clips, tested, listed(clips, tested)))
    assert records["reranking"].value == pytest.approx(expected["main_score"], abs=2e-5)
    expected = by_mteb(clips.X, retrieval(clips, tested, None, ignore_identical_ids=True))
    assert records["retrieval"].value == pytest.approx(expected["main_score"], abs=2e-5)

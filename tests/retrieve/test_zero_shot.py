"""Zero-shot classification and text-to-audio retrieval, against scikit-learn and NumPy written plainly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

import tiny
from featstore.errors import UnknownFeatureSet, UsageError
from featstore.evaluation.runner import ScoreFailure
from featstore.records import Recipe, ScoreRecord
from featstore.retrieve import score_measures
from featstore.tasks import Manifest

PROMPTS = ["a sound of {label}", "{label}!", "hear {label}"]
DIM, N_CLASSES = 8, 4
SETS = {
    name: tiny.clips(name, n, n_classes=N_CLASSES, dim=DIM, spread=2.0, windows=3)
    for name, n in (("train", 12), ("valid", 8), ("test", 41))
}


def task(**changes: Any) -> Manifest:
    return tiny.task(**{"zero_shot": {"prompts": PROMPTS}, **changes})


def vectors_of(manifest: Manifest, classes: list[str], *, spread: float = 3.0) -> dict[str, np.ndarray]:
    """Texts around the centres that `tiny.clips` uses."""
    centres = np.random.default_rng(99).standard_normal((N_CLASSES, DIM))
    rng = np.random.default_rng(5)
    return {
        text: (10 * rng.uniform() * (centres[number] + spread * rng.standard_normal(DIM))).astype(np.float32)
        for number, name in enumerate(classes)
        for text in manifest.zero_shot.texts(name)
    }


CLASSES = [f"class-{number}" for number in range(N_CLASSES)]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clip_vectors(clips: list[tiny.Clip]) -> np.ndarray:
    """Mean of the vectors of the windows, weighted by their seconds, of unit length."""
    return unit(np.array([np.average(each.vectors, axis=0, weights=each.seconds) for each in clips]))


def cosines(manifest: Manifest, texts: Mapping[str, np.ndarray], clips: list[tiny.Clip]) -> np.ndarray:
    classes = np.array([unit(np.mean([unit(texts[t]) for t in manifest.zero_shot.texts(c)], axis=0)) for c in CLASSES])
    return clip_vectors(clips) @ classes.T


def labels(clips: list[tiny.Clip]) -> np.ndarray:
    return np.array([CLASSES.index(each.label) for each in clips])


def scored(manifest: Manifest, texts: Mapping[str, np.ndarray], **options: Any) -> ScoreRecord:
    options = {"sets": SETS, "measures": ["zero-shot"], **options}
    [record] = score_measures(tiny.TinyStore(options.pop("sets"), vectors=texts), manifest, **options)
    assert isinstance(record, ScoreRecord)
    return record


def test_a_clip_has_the_class_whose_mean_unit_prompt_is_nearest() -> None:
    manifest = task()
    texts = vectors_of(manifest, CLASSES)
    record = scored(manifest, texts)
    right = cosines(manifest, texts, SETS["test"]).argmax(axis=1) == labels(SETS["test"])
    assert 0.3 < record.value < 0.95
    assert record.value == pytest.approx(right.mean())
    assert record.ci_low < record.value < record.ci_high
    assert (record.track, record.metric, record.n_train, record.n_valid, record.n_test) == ("B", "accuracy", 0, 0, 41)
    assert record.settings == {"measure": "zero-shot", "prompts": PROMPTS}
    assert record.details["spread"]["units"] == "clips"


def test_both_are_measures_of_retrieve() -> None:
    texts = vectors_of(task(), CLASSES)
    store = tiny.TinyStore(SETS, vectors=texts)
    zero_shot, text = score_measures(store, task(), measures=("zero-shot", "text"))
    assert store.read == ["train", "valid", "test"]
    assert (zero_shot.measure, text.measure) == ("zero-shot", "text")
    assert zero_shot.value == scored(task(), texts).value
    [missing, knn] = score_measures(tiny.TinyStore(SETS), task(), measures=("zero-shot", "knn"))
    assert isinstance(missing, ScoreFailure)
    assert isinstance(knn, ScoreRecord)


def test_each_prompt_is_scored_alone() -> None:
    manifest = task()
    texts = vectors_of(manifest, CLASSES)
    record = scored(manifest, texts)
    alone = []
    for prompt in PROMPTS:
        classes = unit(np.array([texts[prompt.replace("{label}", name)] for name in CLASSES]))
        found = (clip_vectors(SETS["test"]) @ classes.T).argmax(axis=1)
        alone.append((found == labels(SETS["test"])).mean())
    assert [each["prompt"] for each in record.details["prompts"]] == PROMPTS
    assert [each["value"] for each in record.details["prompts"]] == pytest.approx(alone)
    spread = record.details["prompt_spread"]
    assert (spread["min"], spread["max"]) == pytest.approx((min(alone), max(alone)))
    assert spread["std"] == pytest.approx(np.std(alone, ddof=1))
    single = task(zero_shot={"prompts": PROMPTS[:1]})
    record = scored(single, texts)
    assert (record.value, record.details["prompt_spread"]["std"]) == (pytest.approx(alone[0]), None)


def test_windows_are_scored_by_themselves_under_xares() -> None:
    manifest = task()
    texts = vectors_of(manifest, CLASSES)
    windows = [
        tiny.Clip(key=f"{each.key}{number}", label=each.label, vectors=vector[None])
        for each in SETS["test"]
        for number, vector in enumerate(each.vectors)
    ]
    right = cosines(manifest, texts, windows).argmax(axis=1) == labels(windows)
    assert scored(manifest, texts, protocol="xares").value == pytest.approx(right.mean())


def test_folds_are_scored_without_training_on_the_others() -> None:
    manifest = task(**tiny.folds("1", "2"))
    texts = vectors_of(manifest, CLASSES)
    sets = {"1": SETS["train"], "2": SETS["test"]}
    record = scored(manifest, texts, sets=sets)
    by_fold = {
        name: (cosines(manifest, texts, clips).argmax(axis=1) == labels(clips)).mean() for name, clips in sets.items()
    }
    assert record.details["by_round"] == pytest.approx(by_fold)
    assert record.value == pytest.approx(np.mean([*by_fold.values()]))
    assert (record.n_train, record.details["warnings"]) == (0, [])


def label_sets() -> dict[str, list[tiny.Clip]]:
    rng = np.random.default_rng(3)

    def with_two(each: tiny.Clip) -> tiny.Clip:
        names = sorted({each.label, CLASSES[rng.integers(N_CLASSES)]})
        return tiny.Clip(key=each.key, label=names, vectors=each.vectors, seconds=each.seconds)

    return {name: [with_two(each) for each in clips] for name, clips in SETS.items()}


def test_several_labels_are_ranked_by_cosine() -> None:
    manifest = task(kind="multilabel", metric="mAP", retrieve={})
    texts, sets = vectors_of(manifest, CLASSES), label_sets()
    truth = np.array([[name in each.label for name in CLASSES] for each in sets["test"]])
    similar = cosines(manifest, texts, sets["test"])
    wanted = np.mean([average_precision_score(truth[:, at], similar[:, at]) for at in range(N_CLASSES)])
    assert scored(manifest, texts, sets=sets).value == pytest.approx(wanted)


def test_texts_retrieve_the_clips_of_their_class() -> None:
    manifest = task()
    texts = vectors_of(manifest, CLASSES)
    record = scored(manifest, texts, measures=["text"])
    similar = cosines(manifest, texts, SETS["test"]).T
    truth = labels(SETS["test"])[None] == np.arange(N_CLASSES)[:, None]
    order = np.argsort(-similar, axis=1)
    found = record.details["text_to_audio"]
    assert record.metric == "mAP"
    assert record.value == pytest.approx(
        np.mean([average_precision_score(*each) for each in zip(truth, similar, strict=True)])
    )
    assert found["ndcg_at_10"] == pytest.approx(ndcg_score(truth, similar, k=10))
    for k in (1, 5, 10):
        first = np.take_along_axis(truth, order[:, :k], axis=1)
        assert found["recall"][str(k)] == pytest.approx(first.any(axis=1).mean())
    assert (found["queries"], record.settings["measure"]) == (N_CLASSES, "text")
    assert record.ci_low < record.value < record.ci_high
    by_class = [average_precision_score(*each) for each in zip(truth, similar, strict=True)]
    assert record.details["by_class"] == pytest.approx(by_class)


def test_equal_texts_retrieve_nothing_by_luck() -> None:
    manifest = task()
    texts = dict.fromkeys(vectors_of(manifest, CLASSES), np.zeros(DIM, np.float32))
    found = scored(manifest, texts, measures=["text"]).details["text_to_audio"]
    assert (found["recall"]["10"], found["ndcg_at_10"]) == (0.0, 0.0)


def test_groups_are_the_units_of_the_interval() -> None:
    manifest = task(splits={"train": "train*.tar", "valid": "valid*.tar", "test": "test*.tar", "group": "label"})
    record = scored(manifest, vectors_of(manifest, CLASSES))
    assert (record.details["spread"]["units"], record.details["spread"]["n"]) == ("groups", N_CLASSES)


def test_prompts_are_part_of_the_identity_of_these_scores_only() -> None:
    plain, other = task(), task(zero_shot={"prompts": PROMPTS[:2]})
    assert plain.sha256 == other.sha256 == tiny.task().sha256
    texts = vectors_of(plain, CLASSES)
    assert scored(plain, texts).manifest_sha256 != scored(other, texts).manifest_sha256


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"kind": "regression", "metric": "mae", "zero_shot": None}, UsageError, "regression"),
        ({"kind": "multilabel", "metric": "macro_f1"}, UsageError, "macro_f1"),
        ({"zero_shot": {"prompts": ["unseen {label}"]}}, UnknownFeatureSet, "featstore extract"),
        (
            {"label": {"field": "label", "mapping": {f"class-{n}": str(n) for n in range(N_CLASSES)}}},
            UsageError,
            "labels",
        ),
    ],
)
def test_what_cannot_be_scored_is_one_line(changes: dict[str, Any], error: type[Exception], named: str) -> None:
    manifest = task(**changes)
    with pytest.raises(error, match=named) as caught:
        scored(manifest, vectors_of(task(), CLASSES))
    assert "\n" not in str(caught.value)


def test_an_encoder_without_texts_is_named() -> None:
    with pytest.raises(UnknownFeatureSet, match="text tower"):
        scored(task(), {})


def test_layers_have_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def layered(*, dim: int) -> Recipe:
        return Recipe(**{**tiny_recipe(dim=dim).as_json(), "encoder_identity": {"class": "tiny", "layer": 3}})

    tiny_recipe = tiny.recipe
    monkeypatch.setattr(tiny, "recipe", layered)
    with pytest.raises(UsageError, match="layers"):
        scored(task(), vectors_of(task(), CLASSES))

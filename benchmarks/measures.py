"""The measures of Track B, beside scikit-learn, on a task of ESC-50's size.

Libraries imported, one run before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import clip_manifest, in_child, timed
from benchmarks.recipes import commit_made_up, made_up_recipe, power_law_mixing
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most, at_most_times

DIM, CLASSES, CLIPS, FOLDS = 768, 50, 2000, 5
MEASURES = ("knn", "retrieval", "clustering", "pairs", "zero-shot", "text")
PROMPTS = ("a sound of {label}", "this is a sound of {label}", "{label}")
SEEDS = 5
TOTAL = "all measures"


def tables(options: Options) -> Iterator[Table]:
    repeats = 2 if options.quick else 5
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        in_child(make_store, folder=folder)
        ours = in_child(measure_ours, folder=folder, repeats=repeats)
        theirs = in_child(measure_sklearn, repeats=1 if options.quick else 2)
    yield Table(
        title="Measures of a task of ESC-50's size",
        measures=f"{CLIPS:,} clips x {DIM}, {CLASSES} classes, {FOLDS} folds: `featstore.retrieve` from the store to the "
        "records, with intervals; medians. scikit-learn computes the same scores without intervals and without the "
        "clusterings of HDBSCAN's intervals: KNeighborsClassifier, average_precision_score of each clip's list, "
        f"KMeans with {SEEDS} seeds and HDBSCAN, roc_curve and average_precision_score of all pairs, and accuracy_score "
        f"and average_precision_score of cosines with texts: of the mean of {len(PROMPTS)} prompts and of each.",
        unit="s",
        baseline=f"scikit-learn, {TOTAL}",
        rows=(
            Row(TOTAL, ours.pop(TOTAL), (at_most(2.0), at_most_times(1.0))),
            *(Row(name, seconds) for name, seconds in ours.items()),
            Row(f"scikit-learn, {TOTAL}", sum(theirs.values())),
            *(Row(f"scikit-learn, {name}", seconds) for name, seconds in theirs.items()),
        ),
    )


def features() -> tuple[np.ndarray, np.ndarray]:
    """Vectors around class centres, with some classes that are hard to tell apart."""
    rng = np.random.default_rng(0)
    y = np.arange(CLIPS) % CLASSES
    white = 0.3 * rng.standard_normal((CLASSES, DIM))[y] + rng.standard_normal((CLIPS, DIM))
    return white.astype(np.float32) @ power_law_mixing(DIM), y


def make_store(*, folder: str) -> None:
    """Write the five folds."""
    from featstore.store import EmbeddedWindow, open_split_writer, write_texts

    X, y = features()
    recipe = made_up_recipe("noise", dim=DIM)
    for fold in range(FOLDS):
        writer = open_split_writer(
            _store(folder), recipe=recipe, spec="noise", dataset="bench", crop_seconds=None, split=f"fold{fold}"
        )
        mine = np.flatnonzero(np.arange(CLIPS) // CLASSES % FOLDS == fold)
        with writer.begin_part(f"fold{fold}.tar") as part:
            for at in mine.tolist():
                part.add(
                    EmbeddedWindow(
                        key=f"clip-{at:05d}",
                        meta=f'{{"label": "class-{y[at]:02d}"}}',
                        start_seconds=0.0,
                        seconds=5.0,
                        utterance=X[at],
                        frames=None,
                    )
                )
            commit_made_up(part, f"fold{fold}.tar", clips=len(mine), audio_seconds=5.0 * len(mine))
        writer.write_catalogue()
    prompts = [prompt.format(label=f"class-{label:02d}") for label in range(CLASSES) for prompt in PROMPTS]
    vectors = np.random.default_rng(1).standard_normal((len(prompts), DIM)).astype(np.float32)
    write_texts(
        _store(folder), recipe, "bench", spec="noise", texts=prompts, vectors=vectors, tower_sha256="", versions={}
    )


def measure_ours(*, folder: str, repeats: int) -> dict[str, float]:
    """Seconds of all measures together, and of each alone."""
    import featstore

    manifest = _manifest()

    def score(measures: tuple[str, ...]) -> None:
        featstore.retrieve(manifest, store=_store(folder), measure=measures).raise_failures()

    def seconds(measures: tuple[str, ...]) -> float:
        return timed(lambda: score(measures), repeats=repeats, budget_seconds=12.0).median

    score(MEASURES)  # libraries are imported
    return {TOTAL: seconds(MEASURES), **{name: seconds((name,)) for name in MEASURES}}


def measure_sklearn(*, repeats: int) -> dict[str, float]:
    """Seconds of the same scores from arrays in memory."""
    X, y = features()
    fold = np.arange(CLIPS) // CLASSES % FOLDS
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    work = {"knn": _knn, "retrieval": _retrieval, "clustering": _clustering, "pairs": _pairs, "texts": _texts}
    return {
        name: timed(lambda each=each: each(X, y, fold), repeats=repeats, budget_seconds=8.0).median
        for name, each in work.items()
    }


def _knn(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    for each in range(FOLDS):
        tested = fold == each
        KNeighborsClassifier(10, metric="cosine").fit(X[~tested], y[~tested]).predict(X[tested])


def _retrieval(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
    from sklearn.metrics import average_precision_score

    similarities = X @ X.T
    for query in range(CLIPS):
        others = fold != fold[query]
        average_precision_score(y[others] == y[query], similarities[query, others])


def _clustering(X: np.ndarray, y: np.ndarray, _: np.ndarray) -> None:
    from sklearn.cluster import HDBSCAN, KMeans
    from sklearn.metrics import v_measure_score

    for seed in range(SEEDS):
        v_measure_score(y, KMeans(CLASSES, n_init=1, random_state=seed).fit_predict(X))
    v_measure_score(y, HDBSCAN(copy=False).fit_predict(X))


def _pairs(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
    from sklearn.metrics import average_precision_score, roc_curve

    i, j = np.nonzero(np.triu(fold[:, None] != fold))
    similarities, same = (X @ X.T)[i, j], y[i] == y[j]
    roc_curve(same, similarities)
    average_precision_score(same, similarities)


def _texts(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> None:
    from sklearn.metrics import accuracy_score, average_precision_score

    texts = np.random.default_rng(1).standard_normal((CLASSES, len(PROMPTS), DIM)).astype(np.float32)
    for classes in (texts.mean(axis=1), *texts.transpose(1, 0, 2)):
        similarities = X @ classes.T
        for each in range(FOLDS):
            tested = fold == each
            accuracy_score(y[tested], similarities[tested].argmax(axis=1))
            for label in range(CLASSES):
                average_precision_score(y[tested] == label, similarities[tested, label])


def _manifest() -> Any:
    folds = {f"fold{fold}": f"fold{fold}.tar" for fold in range(FOLDS)}
    return clip_manifest(folds=folds, zero_shot={"prompts": list(PROMPTS)})


def _store(folder: str) -> str:
    return str(Path(folder) / "store.zarr")


if __name__ == "__main__":
    main(only="measures")

"""X-ARES, scikit-learn and featstore on the same features: seconds of whole tasks, from the cache to a score."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import in_child, timed
from benchmarks.peer.environment import NoPeerError, make_environment, run_xares
from benchmarks.peer.features import DIM, HOP_SECONDS, Sizes, declared_task, store_url, write_features
from benchmarks.peer.grid import Grid
from benchmarks.table import figure

__all__ = ["beside_xares"]

FULL = Sizes(fold=160, declared=(2200, 300, 600), scenes=(200, 100), frames_per_scene=250, frames_per_clip=125)
QUICK = Sizes(fold=60, declared=(200, 40, 60), scenes=(20, 10), frames_per_scene=50, frames_per_clip=5)
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Seconds of each; what was to be reached is how many times faster than X-ARES."""

    what: str
    xares: float | None
    sklearn: float | None
    ours: float
    target: float | None

    def cells(self) -> tuple[str, ...]:
        gain = None if self.xares is None else self.xares / self.ours
        verdict = "" if gain is None or self.target is None else "met" if gain >= self.target else "missed"
        cells = ("-" if seconds is None else figure(seconds) for seconds in (self.xares, self.sklearn, self.ours))
        return (
            self.what,
            *cells,
            "-" if gain is None else f"{gain:.0f} x" if gain >= 10 else f"{gain:.1f} x",
            "" if self.target is None else f"at least {self.target:g} x",
            verdict,
        )


def beside_xares(*, quick: bool) -> Grid:
    """Measure all of it, X-ARES where it can be installed."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        in_child(write_features, folder=folder, sizes=asdict(sizes))
        ours = in_child(measure_ours, folder=folder, repeats=1 if quick else 5)
        sklearn = in_child(measure_sklearn, folder=folder)
        try:
            make_environment()
            xares = _measure_xares(Path(folder), threads=(2,) if quick else (2, 1))
        except NoPeerError as problem:
            xares = {}
            reason = str(problem).splitlines()[0]
        else:
            reason = "X-ARES 0.1.3"
    train, _, test = sizes.declared
    scenes = f"frame probe, {sizes.scenes[0]} x {sizes.frames_per_scene} frames"
    from_frames = f"... X-ARES from {sizes.frames_per_clip} frames a clip"
    several = f"... of {len(SEEDS)} seeds, each"
    # What, featstore's figure, X-ARES's, scikit-learn's, and the target.
    rows: tuple[tuple[str, str, str, str, float], ...] = (
        (f"probe, 5 folds of {sizes.fold}, one seed", "folds", "folds", "folds", 30),
        (several, "folds of seeds", "folds", "folds", 30),
        (from_frames, "folds", "folds from frames", "folds", 30),
        (f"probe, {train:,} training clips, one seed", "declared", "declared", "declared", 15),
        (several, "declared of seeds", "declared", "declared", 15),
        (from_frames, "declared", "declared from frames", "declared", 15),
        (f"nearest neighbours, 5 folds of {sizes.fold}", "folds kNN", "folds kNN", "folds kNN", 50),
        (from_frames, "folds kNN", "folds kNN from frames", "folds kNN", 50),
        (f"nearest neighbours, {test} in {train:,}", "declared kNN", "declared kNN", "declared kNN", 50),
        (from_frames, "declared kNN", "declared kNN from frames", "declared kNN", 50),
        (f"{scenes}, one seed", "scenes", "scenes", "scenes", 10),
        (several, "scenes of seeds", "scenes", "scenes", 10),
    )
    return Grid(
        title="Beside X-ARES",
        measures=f"Seconds on the same {DIM}-d features, from the cache to a score. X-ARES ({reason}): its own "
        "`run_mlp` and `run_knn` on its tars, the faster of a run with its two threads and one with one. featstore: "
        "`probe_task` and `retrieve_task` on its store under `xares`, medians, reading and intervals "
        "included. Imports count for none. ESC-50's and DESED's tasks are X-ARES's own; 10 epochs at batch 32. A clip "
        "is one vector in X-ARES's tars too, which is kind to it: its own cache has frames, 125 of a clip of five "
        "seconds, and the rows from frames are of such tars. scikit-learn, on arrays in memory: LogisticRegression to "
        "convergence, KNeighborsClassifier, and for frames SGDClassifier, 10 epochs for each class.",
        header=("", "X-ARES s", "scikit-learn s", "featstore s", "faster", "target", ""),
        rows=tuple(
            Row(
                what=what,
                xares=xares.get(by_xares),
                sklearn=sklearn.get(by_sklearn),
                ours=ours[mine],
                target=target,
            ).cells()
            for what, mine, by_xares, by_sklearn, target in rows
        ),
    )


def _measure_xares(folder: Path, *, threads: tuple[int, ...]) -> dict[str, float]:
    """Seconds of the fastest of its runs, one for each number of threads."""
    manifest = declared_task()
    declared = {"name": "declared", "classes": manifest["label"]["classes"], **manifest["probe"]}
    encoder = {"output_dim": DIM, "hop_size_in_ms": 1000 * HOP_SECONDS}
    found: dict[str, float] = {}
    for name, root, task, stages in (
        ("folds", "xares", {"builtin": "esc50"}, ("mlp", "knn")),
        ("folds", "frames", {"builtin": "esc50"}, ("mlp", "knn")),
        ("declared", "xares", declared, ("mlp", "knn")),
        ("declared", "frames", declared, ("mlp", "knn")),
        ("scenes", "xares", {"builtin": "desed"}, ("mlp",)),
    ):
        done = run_xares(
            "score",
            root=str(folder / root),
            task=task,
            encoder=encoder,
            stages=stages,
            seeds=tuple(range(len(threads))),
            threads=threads,
        )
        for stage in stages:
            what = name if stage == "mlp" else f"{name} kNN"
            found[what if root == "xares" else f"{what} from frames"] = min(each["seconds"] for each in done[stage])
    return found


# --- what runs in children


def measure_ours(*, folder: str, repeats: int) -> dict[str, float]:
    import featstore
    from featstore.probe import probe_task
    from featstore.retrieve import retrieve_task
    from featstore.tasks import Manifest, find_task

    def seconds(score: Callable[[Any], object]) -> float:
        return timed(lambda: score(featstore.open(store_url(folder))), repeats=repeats, budget_seconds=20.0).median

    declared, folds, scenes = Manifest.model_validate(declared_task()), find_task("esc50"), find_task("desed")
    found = {}
    for name, manifest in (("folds", folds), ("declared", declared), ("scenes", scenes)):
        found[name] = seconds(lambda store, task=manifest: probe_task(store, task, protocol="xares"))
        several = seconds(lambda store, task=manifest: probe_task(store, task, protocol="xares", seeds=SEEDS))
        found[f"{name} of seeds"] = several / len(SEEDS)
        if manifest.retrieve.enabled:
            found[f"{name} kNN"] = seconds(lambda store, task=manifest: retrieve_task(store, task, protocol="xares"))
    return found


def measure_sklearn(*, folder: str) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier

    import featstore

    store = featstore.open(store_url(folder))

    def arrays(dataset: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        X, labels = store.select(dataset=dataset, split=split).xy("label")
        return np.array(X), np.asarray(labels).astype(str)

    folds = [arrays("esc50", str(fold)) for fold in range(1, 6)]
    rounds: Mapping[str, Any] = {
        "folds": [(_joined([each for each in folds if each is not fold]), fold) for fold in folds],
        "declared": [(arrays("declared", "train"), arrays("declared", "test"))],
    }
    found = {}
    for name, parts in rounds.items():
        for suffix, model in (
            ("", LogisticRegression(max_iter=1000)),
            (" kNN", KNeighborsClassifier(10, metric="cosine")),
        ):

            def work(model: Any = model, parts: Any = parts) -> None:
                for train, (X, _) in parts:
                    model.fit(*train).predict(X)

            found[name + suffix] = timed(work, repeats=3).median
    X, y = _frames(store)
    heads = OneVsRestClassifier(SGDClassifier(loss="log_loss", max_iter=10, tol=None))
    found["scenes"] = timed(lambda: heads.fit(X, y), repeats=1).median
    return found


def _joined(folds: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([X for X, _ in folds]), np.concatenate([labels for _, labels in folds])


def _frames(store: Any) -> tuple[np.ndarray, np.ndarray]:
    """Standardised training frames, and which classes sound in each."""
    from featstore.evaluation import load_frame_task
    from featstore.probe.frame_scoring import excerpts_of
    from featstore.tasks import find_task

    task = load_frame_task(store, find_task("desed"), encoder=None, protocol="xares")
    samples = task.samples(task.rounds[0].train)
    excerpts = excerpts_of(task, samples)
    X = np.concatenate([np.asarray(task.frames[int(window)], np.float32) for window in excerpts.windows])
    y = [excerpts.targets(at, start=0, stop=int(rows)) for at, rows in enumerate(excerpts.n_rows)]
    sounds = np.concatenate(y).astype(int)
    return (X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True), sounds[:, sounds.any(axis=0)]

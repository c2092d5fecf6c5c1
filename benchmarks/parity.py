"""X-ARES 0.1.3 and featstore on the same shards with the same encoder: their scores, side by side.

Featstore runs with `--padding xares` and `--protocol xares`. Accuracy by nearest neighbours is to be equal to the last
clip; a linear probe's scores are to lie within the spread of X-ARES's own seeds; metrics are to be equal where the
predictions are.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import clip_manifest, in_child
from benchmarks.peer.environment import NoPeerError, make_environment, run_xares
from benchmarks.peer.grid import Grid
from benchmarks.peer.shards import (
    CLASSES,
    CLIPS_PER_FOLD,
    FOLDS,
    SPLITS,
    write_encoder,
    write_events,
    write_folds,
    write_splits,
)
from benchmarks.run import Options, main

__all__ = ["Parity", "parities", "tables"]

PROBE = {"epochs": 10, "learning_rate": 4e-3, "batch_size": 32}
TASKS: Mapping[str, Mapping[str, Any]] = {
    "tones": {"name": "tones", "classes": CLASSES, **PROBE},
    "crops": {"name": "crops", "classes": CLASSES, "crop_seconds": 1, **PROBE},
    "folds": {"name": "folds", "classes": CLASSES, "folds": FOLDS, **PROBE},
    "desed": {"builtin": "desed"},
}
EQUAL = 1e-6
"""Of embeddings relative to their largest number, and of scores from equal predictions: rounding, no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What both say: one number each, or one for each seed, of which a step is the least that a score can move."""

    what: str
    xares: tuple[float, ...]
    ours: tuple[float, ...]
    rule: str
    step: float

    def holds(self) -> bool:
        if self.rule == "equal":
            return all(abs(theirs - self.ours[0]) <= self.step for theirs in self.xares)
        return min(self.xares) - self.step <= float(np.mean(self.ours)) <= max(self.xares) + self.step

    def cells(self) -> tuple[str, ...]:
        return (self.what, _shown(self.xares), _shown(self.ours), self.rule, "yes" if self.holds() else "NO")


def _shown(values: tuple[float, ...]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.6f}" if values[0] > EQUAL else f"{values[0]:.1g}"
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def tables(options: Options) -> Iterator[Grid]:
    try:
        make_environment()
    except NoPeerError as problem:
        print(f"no parity: {problem}", file=sys.stderr)
        return
    seeds = tuple(range(3 if options.quick else 5))
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        found = parities(Path(folder), seeds=seeds)
    yield Grid(
        title="Parity with X-ARES",
        measures=f"Handmade shards, tones of {len(CLASSES)} classes in noise "
        f"({', '.join(map(str, SPLITS.values()))} clips of training, validation and test; {len(FOLDS)} folds of "
        f"{CLIPS_PER_FOLD}), and scenes with events under DESED's task. A random convolutional encoder, every frame of "
        "which depends on the padding. X-ARES encodes, trains, searches and scores by its own methods. "
        f"Probes: {len(seeds)} seeds each, mean (least to most).",
        header=("", "X-ARES", "featstore", "to be", "is"),
        rows=tuple(each.cells() for each in found),
    )


def parities(folder: Path, *, seeds: tuple[int, ...]) -> tuple[Parity, ...]:
    """Run both on shards that are written below a folder, once for each seed. Needs the environment of X-ARES."""
    # Both look for shards in root/task.
    data, encoder = folder / "data", write_encoder(folder)
    write_splits(data / "tones")
    write_splits(data / "crops")
    write_folds(data / "folds")
    write_events(data / "desed")
    ours = in_child(score_ours, folder=str(folder), encoder=str(encoder), seeds=seeds)
    theirs = _score_theirs(data, encoder, folder=folder, seeds=seeds)
    step_of = {
        "tones": 1 / SPLITS["test"],
        "crops": 1 / SPLITS["test"],
        "folds": 1 / (len(FOLDS) * CLIPS_PER_FOLD),
        "desed": 0.0,
    }

    def probe(task: str, what: str) -> Parity:
        values = {"xares": theirs[task]["mlp"], "ours": ours[task]["mlp"]}
        return _parity(f"linear probe, {what}", values, rule="within its seeds", step=step_of[task])

    def neighbours(task: str, what: str) -> Parity:
        return _parity(f"nearest neighbours, {what}", {"xares": theirs[task]["knn"], "ours": ours[task]["knn"]})

    return (
        _parity(
            "largest difference of an embedding",
            {"xares": [0.0], "ours": [_embeddings_differ(data, folder)]},
        ),
        neighbours("tones", "declared splits"),
        neighbours("folds", "five folds"),
        neighbours("crops", "crops of a second"),
        probe("tones", "declared splits"),
        probe("folds", "five folds"),
        probe("crops", "crops of a second"),
        probe("desed", "frames of events, segment F1"),
        *(
            _parity(f"segment F1, {average}, of one head", {"xares": [theirs["f1"][average]], "ours": [value]})
            for average, value in ours["f1"].items()
        ),
        _parity("mAP of the same predictions", {"xares": [theirs["mAP"]], "ours": [ours["mAP"]]}),
    )


def _parity(what: str, values: Mapping[str, Any], *, rule: str = "equal", step: float = EQUAL) -> Parity:
    return Parity(what=what, xares=tuple(values["xares"]), ours=tuple(values["ours"]), rule=rule, step=step)


def _score_theirs(data: Path, encoder: Path, *, folder: Path, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Encode, train and search by X-ARES's own methods."""
    given = {"file": str(encoder), "class": "TangleEncoder"}
    common = {"root": str(data), "encoder": given}
    found: dict[str, Any] = {}
    for name, task in TASKS.items():
        stages = ("encode", "mlp") if name == "desed" else ("encode", "mlp", "knn")
        done = run_xares("score", task=task, stages=stages, seeds=seeds, **common)
        found[name] = {stage: [each["score"] for each in done[stage]] for stage in stages if stage != "encode"}
    head = str(folder / "head.npz")
    found["f1"] = run_xares("segment_f1", task=TASKS["desed"], head=head, averages=("macro", "micro"), **common)
    found["mAP"] = run_xares("mean_average_precision", predictions=str(folder / "predictions.npz"), batch_size=32)
    return found


def _embeddings_differ(data: Path, folder: Path) -> float:
    """Largest difference of utterance vectors between the stores, relative to the largest number in them."""
    import io
    import tarfile

    with np.load(folder / "embeddings.npz") as arrays:
        ours = dict(zip(arrays["keys"].tolist(), arrays["vectors"], strict=True))
    worst = largest = 0.0
    n_compared = 0
    for path in (data / "tones" / "embeddings" / "TangleEncoder").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".npy"):
                    continue
                content = tar.extractfile(member)
                theirs = np.load(io.BytesIO(content.read() if content else b"")).mean(axis=0, dtype=np.float64)
                # X-ARES puts the number of the batch behind the key, which here ends in three digits.
                split, number = member.name.split("-")
                mine = ours[f"{split}-{number[:3]}"]
                worst, largest = (
                    max(worst, float(np.abs(mine - theirs).max())),
                    max(largest, float(np.abs(theirs).max())),
                )
                n_compared += 1
    if n_compared != len(ours):
        raise ValueError(f"X-ARES kept {n_compared} embeddings, featstore {len(ours)}")
    return worst / largest


# --- what runs in a child


def score_ours(*, folder: str, encoder: str, seeds: list[int]) -> dict[str, Any]:
    """Extract, probe and retrieve by featstore; leaves its embeddings, a head and predictions for the other side."""
    import featstore
    from featstore.encoders import load_encoder
    from featstore.extract import ExtractOptions, extract_task
    from featstore.probe import probe_task
    from featstore.retrieve import retrieve_task
    from featstore.tasks import find_task

    url = str(Path(folder) / "store.zarr")
    declared = {split: f"{split}*.tar" for split in SPLITS}
    folds = {str(fold): f"wds-audio-fold-{fold}-*.tar" for fold in FOLDS}
    manifests = {
        "tones": _task("tones", splits=declared),
        "crops": _task("crops", splits=declared, crop_seconds=1),
        "folds": _task("folds", folds=folds),
        "desed": find_task("desed"),
    }
    for manifest in manifests.values():
        extract_task(
            manifest,
            load_encoder(encoder),
            data_dir=Path(folder) / "data",
            store_url=url,
            options=ExtractOptions(device="cpu", padding="xares", frame_dtype="float32"),
        )
    store = featstore.open(url)
    found: dict[str, Any] = {}
    for name, manifest in manifests.items():
        found[name] = {
            "mlp": [probe_task(store, manifest, protocol="xares", seeds=(seed,)).value for seed in seeds],
        }
        if manifest.retrieve.enabled:
            found[name]["knn"] = [retrieve_task(store, manifest, protocol="xares").value]
    sets = [store.select(dataset="tones", split=split) for split in SPLITS]
    np.savez(
        Path(folder) / "embeddings.npz",
        keys=np.concatenate([each.key.astype(str) for each in sets]),
        vectors=np.concatenate([each.utterance for each in sets]),
    )
    found["f1"] = _segment_f1(store, manifests["desed"], head=Path(folder) / "head.npz")
    found["mAP"] = _mean_average_precision(Path(folder) / "predictions.npz")
    return found


def _segment_f1(store: Any, manifest: Any, *, head: Path) -> dict[str, float]:
    """Segment F1 of a head on the test clips: least squares on frames of training, kept for the other side."""
    import torch

    from featstore.evaluation import load_frame_task
    from featstore.metrics import find_metric
    from featstore.probe.frame_heads import FrameFeatures, frame_logits, worker_threads
    from featstore.probe.frame_scoring import excerpts_of, segment_groups
    from featstore.probe.linear import Trained

    task = load_frame_task(store, manifest, encoder=None, protocol="xares")
    (only,) = task.rounds
    weight, bias = _least_squares(task, only.train)
    np.savez(head, weight=weight, bias=bias)
    samples = task.samples(only.test)
    excerpts = excerpts_of(task, samples)
    segments = segment_groups(task, samples, excerpts)
    with worker_threads() as workers:
        features = FrameFeatures(task.frames, dim=task.recipe.dim, threads=workers)
    trained = Trained(weight=torch.from_numpy(weight), bias=torch.from_numpy(bias), epoch=1, history=())
    with torch.no_grad():
        counts = segments.predicted_counts(lambda group: frame_logits(features, excerpts, group, trained))
    return {
        average: float(find_metric(f"segment_f1_{average}", "xares").score(segments.true_counts(), counts))
        for average in ("macro", "micro")
    }


def _least_squares(task: Any, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Some head that is right now and then: float32 (classes, dim) of standardised frames, and (classes,)."""
    from featstore.probe.frame_scoring import excerpts_of

    samples = task.samples(clips)
    excerpts = excerpts_of(task, samples)
    X, y = [], []
    for sample, window in enumerate(excerpts.windows):
        frames = np.asarray(task.frames[int(window)], np.float64)
        X.append((frames - frames.mean(1, keepdims=True)) / np.sqrt(frames.var(1, keepdims=True) + 1e-5))
        y.append(excerpts.targets(sample, start=0, stop=len(frames)))
    inputs = np.concatenate(X)
    inputs = np.c_[inputs, np.ones(len(inputs))]
    solved = np.linalg.lstsq(inputs, 2.0 * np.concatenate(y) - 0.6, rcond=None)[0].T.astype(np.float32)
    return np.ascontiguousarray(solved[:, :-1]), np.ascontiguousarray(solved[:, -1])


def _mean_average_precision(predictions: Path) -> float:
    """MAP of scores with ties and a class that is never right, kept for the other side."""
    from featstore.metrics import find_metric

    rng = np.random.default_rng(3)
    labels = (rng.random((300, 12)) < 0.15).astype(np.int64)
    labels[:, 4] = 0
    logits = np.round(rng.standard_normal((300, 12)) + labels, 1).astype(np.float32)
    np.savez(predictions, logits=logits, labels=labels)
    return float(find_metric("mAP", "xares").score(labels.astype(np.float32), logits))


def _task(name: str, *, crop_seconds: int | None = None, **patterns: Mapping[str, str]) -> Any:
    return clip_manifest(
        name,
        data={"dataset": name, "crop_seconds": crop_seconds},
        label={"field": "label", "classes": list(CLASSES)},
        probe=PROBE,
        retrieve={"k": 10, "temperature": 0.07},
        **patterns,
    )


if __name__ == "__main__":
    main(only="parity")

"""Track A and Track B on cached embeddings, beside X-ARES, scikit-learn, FAISS and a plain torch loop.

Libraries imported, one run before.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import clip_manifest, in_child, timed
from benchmarks.peer.grid import Grid
from benchmarks.peer.speed import beside_xares
from benchmarks.recipes import commit_made_up, made_up_recipe, power_law_mixing
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most, at_most_times

DIM, CLASSES = 768, 20
FOLDS, FOLD_CLIPS, FOLD_CLASSES = 5, 2000, 50
CLIPS = {"train": 2200, "valid": 300, "test": 600}
EPOCHS, BATCH_SIZE, SEEDS = 10, 32, (0, 1, 2)
K, TEMPERATURE = 10, 0.07
QUERIES = 4000


def tables(options: Options) -> Iterator[Table | Grid]:
    repeats = 2 if options.quick else 7
    yield beside_xares(quick=options.quick)
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as folder:
        in_child(make_store, folder=folder)
        probe = in_child(measure_probe, folder=folder, repeats=repeats)
        path = in_child(measure_path, n_sets=1, repeats=repeats)
        folds = in_child(measure_path, n_sets=FOLDS, repeats=repeats)
        retrieve = in_child(measure_retrieve, folder=folder, repeats=repeats)
    search = compare_searches(n_rows=min(options.search_rows, 20_000 if options.quick else options.search_rows))
    yield Table(
        title="Linear probe",
        measures=f"{CLIPS['train']:,} x {DIM} features, {CLASSES} classes: a task from its store to its score. The "
        f"converged model chooses its strength on {CLIPS['valid']} clips; X-ARES's schedule is {EPOCHS} epochs at batch "
        f"{BATCH_SIZE}, {len(SEEDS)} seeds. Medians. The torch loop trains the heads of the schedule with nn.Module, "
        "autograd and Adam, one seed after another, on one thread, where it is fastest.",
        unit="s",
        baseline="torch loop",
        rows=_rows(probe, {"converged": (at_most(1.0),), "schedule": (at_most(1.0),)}),
    )
    yield Table(
        title="Logistic regression, the path of strengths",
        measures=f"Standardisation, a grid of strengths, the choice on validation and the final fit: {CLIPS['train']:,} x "
        f"{DIM} x {CLASSES} classes. scikit-learn fits the same strengths, each from the last: to its default tolerance, "
        "and to the loosest power of ten that leaves no larger gradient than featstore's at the chosen strength. cpu is "
        "the time of all threads.",
        unit="s",
        baseline="scikit-learn, as converged",
        rows=_rows(path, {"featstore": (at_most(1.0), at_most_times(0.05))}),
    )
    yield Table(
        title="Logistic regression, five folds",
        measures=f"As above: {FOLDS} folds of {FOLD_CLIPS:,} x {DIM} x {FOLD_CLASSES}, the size of ESC-50. "
        "scikit-learn's tolerance is the one that the first fold needs.",
        unit="s",
        baseline="scikit-learn, as converged",
        rows=_rows(folds, {"featstore": (at_most(3.0), at_most_times(0.05))}),
    )
    yield Table(
        title="Nearest neighbours",
        measures=f"{CLIPS['test']} queries against {CLIPS['train']:,} x {DIM}, k = {K}, cosine: medians. The first row "
        "scales, indexes and searches; score is the vote, the accuracy and its interval.",
        unit="ms",
        baseline="KNeighborsClassifier(metric='cosine')",
        rows=_rows(retrieve, {"retrieve_task: index + search": (at_most(20.0),)}),
    )
    yield Table(
        title=f"Exact search of {search.pop('rows'):,.0f} rows",
        measures=f"{QUERIES:,} queries x {DIM}, k = {K}, inner product of unit vectors around 1,000 centres, indexing "
        f"included; neighbours are the same but for ties and rounding: {search.pop('agree'):.5%} of them.",
        unit="s",
        baseline="FAISS flat",
        rows=_rows(search, {"featstore": (at_most_times(1.1),)}),
    )


def _rows(measured: dict[str, float], targets: dict[str, Any]) -> tuple[Row, ...]:
    return tuple(Row(what, value, targets.get(what, ())) for what, value in measured.items())


# --- what runs in children


def make_store(*, folder: str) -> None:
    """Write the three splits of `_features`."""
    from featstore.store import EmbeddedWindow, open_split_writer

    recipe = made_up_recipe("noise", dim=DIM)
    X, labels = _features(sum(CLIPS.values()), CLASSES, seed=0)
    rows = iter(zip(X, labels, strict=True))
    for split, n_clips in CLIPS.items():
        writer = open_split_writer(
            _store(folder), recipe=recipe, spec="noise", dataset="bench", crop_seconds=None, split=split
        )
        with writer.begin_part(f"{split}.tar") as part:
            for i, (vector, label) in zip(range(n_clips), rows, strict=False):
                part.add(
                    EmbeddedWindow(
                        key=f"{split}-{i:05d}",
                        meta=f'{{"label": "class-{label:02d}"}}',
                        start_seconds=0.0,
                        seconds=1.0,
                        utterance=vector,
                        frames=None,
                    )
                )
            commit_made_up(part, f"{split}.tar", clips=n_clips, audio_seconds=n_clips)
        writer.write_catalogue()


def measure_probe(*, folder: str, repeats: int) -> dict[str, float]:
    """Seconds of `probe_task` and its stages by the converged model and by the schedule, and of a torch loop."""
    import featstore
    from featstore.probe import probe_task

    X, y = _arrays(folder)
    found = {}
    for name, head in (("converged", "logistic"), ("schedule", "linear")):
        whole, stages = _task_seconds(
            lambda head=head: probe_task(featstore.open(_store(folder)), _manifest(), head=head), repeats=repeats
        )
        found |= {name: whole, **{f"{name}: {stage}": seconds for stage, seconds in stages.items()}}
    return {**found, "torch loop": timed(lambda: _torch_loop(X, y), repeats=3).median}


def measure_path(*, n_sets: int, repeats: int) -> dict[str, float]:
    """Seconds of the path of some training sets together, and of scikit-learn over the same strengths."""
    from featstore.probe import logistic

    n_classes, n, n_valid = (
        (CLASSES, CLIPS["train"], CLIPS["valid"]) if n_sets == 1 else (FOLD_CLASSES, FOLD_CLIPS, 400)
    )
    parts = []
    for seed in range(n_sets):
        X, y = _features(n + n_valid, n_classes, seed=seed)
        parts.append((X[:n], y[:n], X[n:], y[n:]))
    sets = [_training_set(*part) for part in parts]
    paths: list[Any] = []

    def ours() -> None:
        paths[:] = logistic.fit_paths(sets, n_classes=n_classes)

    measured = timed(ours, repeats=repeats, budget_seconds=15.0)
    began = time.process_time()
    ours()
    cpu = time.process_time() - began
    tolerance = _tolerance_of(paths[0], *parts[0][:2])

    def theirs(tol: float) -> None:
        for part, path in zip(parts, paths, strict=True):
            _sklearn_path(*part, grid=[tried.strength for tried in path.tried], tol=tol)

    return {
        "featstore": measured.median,
        "featstore, cpu": cpu,
        "scikit-learn, tol=1e-4": timed(lambda: theirs(1e-4), repeats=1).median,
        "scikit-learn, as converged": timed(lambda: theirs(tolerance), repeats=1).median,
    }


def _features(n: int, n_classes: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around class centres, near enough to each other that heads have work to do: see `power_law_mixing`."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    white = 0.2 * rng.standard_normal((n_classes, DIM))[y] + rng.standard_normal((n, DIM))
    return white.astype(np.float32) @ power_law_mixing(DIM), y


def _tolerance_of(path: Any, X: np.ndarray, y: np.ndarray) -> float:
    """The loosest power of ten at which scikit-learn leaves no larger a gradient than this path at its strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    Z, C = StandardScaler().fit_transform(X.astype(np.float64)), path.chosen.strength

    def share_of_penalty(weight: np.ndarray, bias: np.ndarray) -> float:
        logits = Z @ weight.T + bias
        slopes = np.exp(logits - logits.max(axis=1, keepdims=True))
        slopes /= slopes.sum(axis=1, keepdims=True)
        slopes[np.arange(len(y)), y] -= 1.0
        return float(np.linalg.norm(slopes.T @ Z + weight / C) / np.linalg.norm(weight / C))

    ours = share_of_penalty(path.model.weight.double().numpy(), path.model.bias.double().numpy())
    for exponent in range(4, 9):
        model = LogisticRegression(C=C, tol=10.0**-exponent, max_iter=10_000).fit(Z, y)
        if share_of_penalty(model.coef_, model.intercept_) <= ours:
            break
    return 10.0**-exponent


def _training_set(X: np.ndarray, y: np.ndarray, X_valid: np.ndarray, y_valid: np.ndarray) -> Any:
    from featstore.probe import log_odds as votes
    from featstore.probe import logistic

    def score(logits: np.ndarray) -> tuple[float, float]:
        return float((logits.argmax(1) == y_valid).mean()), -votes.mean_log_loss(
            y_valid, votes.log_shares_of_one(logits)
        )

    return logistic.TrainingSet(X=X, y=y, X_valid=X_valid, score=score)


def _sklearn_path(
    X: np.ndarray, y: np.ndarray, X_valid: np.ndarray, y_valid: np.ndarray, *, grid: list[float], tol: float = 1e-4
) -> None:
    """Standardise, fit each strength from the last, score by validation, as anyone would."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(X)
    Z, Z_valid = scaler.transform(X), scaler.transform(X_valid)
    model = LogisticRegression(warm_start=True, tol=tol, max_iter=10_000)
    scores = {C: model.set_params(C=C).fit(Z, y).score(Z_valid, y_valid) for C in grid}
    model.set_params(C=max(scores, key=lambda C: scores[C])).fit(Z, y)


def compare_searches(*, n_rows: int) -> dict[str, float]:
    """Seconds of an exact search, and the share of the neighbours that both find.

    Each runs in a child of its own: featstore chooses the matrix kernels of FAISS when it imports it.
    """
    ours = in_child(measure_search, n_rows=n_rows, faiss_alone=False)
    flat = in_child(measure_search, n_rows=n_rows, faiss_alone=True)
    same = [np.isin(one, other).mean() for one, other in zip(ours["rows"], flat["rows"], strict=True)]
    return {
        "featstore": ours["seconds"], "FAISS flat": flat["seconds"], "rows": n_rows, "agree": float(np.mean(same))
    }  # fmt: skip


def measure_search(*, n_rows: int, faiss_alone: bool) -> dict[str, Any]:
    """Median seconds of an exact search, and the rows that it finds, as lists."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, DIM), dtype=np.float32)

    def unit(n: int) -> np.ndarray:
        X = rng.standard_normal((n, DIM), dtype=np.float32)
        X += centres[rng.integers(len(centres), size=n)]
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        return X

    X, queries = unit(n_rows), unit(QUERIES)
    found: list[np.ndarray] = []
    if faiss_alone:
        import faiss

        def search() -> None:
            index = faiss.IndexFlatIP(DIM)
            index.add(X)
            found.append(index.search(queries, K)[1])
    else:
        from featstore.retrieve.index import Searcher

        def search() -> None:
            found.append(Searcher(X, "flat").search(queries, k=K).rows)

    return {"seconds": timed(search, repeats=3, budget_seconds=12.0).median, "rows": found[-1].tolist()}


def measure_retrieve(*, folder: str, repeats: int) -> dict[str, float]:
    """Milliseconds of `retrieve_task` and its stages, and of two peers."""
    from sklearn.neighbors import KNeighborsClassifier

    import featstore
    from featstore.retrieve import retrieve_task

    X, y = _arrays(folder)
    whole, stages = _task_seconds(lambda: retrieve_task(featstore.open(_store(folder)), _manifest()), repeats=repeats)

    def neighbours() -> None:
        KNeighborsClassifier(K, metric="cosine").fit(X["train"], y["train"]).predict(X["test"])

    seconds = {
        "retrieve_task: index + search": stages["index"] + stages["search"],
        "retrieve_task": whole,
        **{f"retrieve_task: {stage}": spent for stage, spent in stages.items()},
        "KNeighborsClassifier(metric='cosine')": timed(neighbours, repeats=repeats).median,
        "matrix product and argpartition": timed(lambda: _numpy_neighbours(X), repeats=repeats).median,
    }
    return {what: spent * 1e3 for what, spent in seconds.items()}


def _task_seconds(task: Callable[[], Any], *, repeats: int) -> tuple[float, dict[str, float]]:
    """Median wall time of a task, and medians of the stages in its record."""
    records = []
    whole = timed(lambda: records.append(task()), repeats=repeats, budget_seconds=15.0)
    stages = [record.seconds for record in records[-len(whole.seconds) :]]
    return whole.median, {stage: median(each[stage] for each in stages) for stage in stages[0]}


def _torch_loop(X: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> None:
    """LayerNorm and Linear as anyone would train them, the best epoch kept."""
    import torch

    torch.set_num_threads(1)
    features = {split: torch.from_numpy(values) for split, values in X.items()}
    targets = {split: torch.from_numpy(values) for split, values in y.items()}
    for seed in SEEDS:
        torch.manual_seed(seed)
        head = torch.nn.Sequential(torch.nn.LayerNorm(DIM), torch.nn.Linear(DIM, CLASSES))
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=1e-4)
        loss_of, best = torch.nn.CrossEntropyLoss(), -1.0
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(features["train"])).split(BATCH_SIZE):
                optimizer.zero_grad()
                loss_of(head(features["train"][batch]), targets["train"][batch]).backward()
                optimizer.step()
            schedule.step()
            with torch.inference_mode():
                accuracy = float((head(features["valid"]).argmax(1) == targets["valid"]).float().mean())
            if accuracy > best:
                best, _kept = accuracy, {name: value.clone() for name, value in head.state_dict().items()}


def _numpy_neighbours(X: dict[str, np.ndarray]) -> np.ndarray:
    train, test = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (X["train"], X["test"]))
    return np.argpartition(test @ train.T, -K, axis=1)[:, -K:]


def _arrays(folder: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Features and class indices by split, through the store's own Python names."""
    import featstore

    store = featstore.open(_store(folder))
    found = {split: store.select(split=split).xy("label") for split in CLIPS}
    return (
        {split: np.array(X) for split, (X, _) in found.items()},
        {split: np.unique(labels, return_inverse=True)[1] for split, (_, labels) in found.items()},
    )


def _manifest() -> Any:
    return clip_manifest(
        splits={split: f"{split}.tar" for split in CLIPS},
        probe={"epochs": EPOCHS, "learning_rate": 1e-3, "batch_size": BATCH_SIZE},
        retrieve={"k": K, "temperature": TEMPERATURE},
    )


def _store(folder: str) -> str:
    return str(Path(folder) / "store.zarr")


if __name__ == "__main__":
    main(only="tracks")

"""Protocol maeb beside mteb's evaluators on the same vectors.

Both compute the same scores; the vectors are in memory, and neither encodes audio.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.harness import in_child
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most_times
from featstore.records import ScoreRecord

DIM, CLASSES, CLIPS = 768, 50, 2000
WARM_UP_CLIPS, TURNS = 200, 3


def tables(options: Options) -> Iterator[Table]:
    n_clips = WARM_UP_CLIPS if options.quick else CLIPS
    ours = in_child(measure_featstore, n_clips=n_clips)
    theirs = in_child(measure_mteb, n_clips=n_clips)
    for measure, score in theirs["scores"].items():
        if abs(score - ours["scores"][measure]) > 2e-5:  # mteb rounds to five digits
            raise RuntimeError(f"{measure}: mteb's score is {score}, and featstore's is {ours['scores'][measure]}")
    for unit, of in (("wall", "Wall time, all cores"), ("cpu", "Time of all threads")):
        rows = []
        for name, found, targets in (("featstore", ours, (at_most_times(0.1),)), ("mteb", theirs, ())):
            rows.append(Row(name, sum(found[unit].values()), targets))
            rows += [Row(f"{name}: {measure}", seconds) for measure, seconds in found[unit].items()]
        yield Table(
            title=f"mteb's scores, {unit} time",
            measures=f"{of}, of the five scores that a labelled task of ESC-50's size has: {n_clips:,} x {DIM}, "
            f"{CLASSES} classes, cross-validated. featstore: `retrieve --protocol maeb` with intervals and warnings. mteb: "
            f"`mteb.evaluate` with a model that looks vectors up. Medians of {TURNS}, after one of {WARM_UP_CLIPS} clips.",
            unit="s",
            baseline="mteb",
            rows=tuple(rows),
        )


def measure_featstore(*, n_clips: int) -> dict[str, Any]:
    """Seconds and scores of `retrieve --protocol maeb` by measure; reading the vectors counts to the first."""
    from featstore.evaluation.arrays import array_task
    from featstore.retrieve import score_measures

    def evaluate(n_clips: int) -> dict[str, Any]:
        X, y = vectors(n_clips)
        store, manifest = array_task(X, [f"class-{label:02d}" for label in y], groups=None, test=None, metric=None)
        wall, cpu = time.perf_counter(), time.process_time()
        found = score_measures(store, manifest, encoder="arrays", protocol="maeb")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        records = [each for each in found if isinstance(each, ScoreRecord)]
        seconds = {str(each.settings["measure"]): sum(each.seconds.values()) for each in records}
        total = sum(seconds.values())
        return {
            "wall": {measure: spent * wall / total for measure, spent in seconds.items()},
            "cpu": {"all measures": cpu},
            "scores": {str(each.settings["measure"]): each.value for each in records},
        }

    return medians(evaluate, n_clips)


def measure_mteb(*, n_clips: int) -> dict[str, Any]:
    """Seconds and scores of mteb's evaluators by measure, on the same vectors, pairs and candidate lists."""
    import warnings

    def evaluate(n_clips: int) -> dict[str, Any]:
        X, y = vectors(n_clips)
        tasks = mteb_tasks(y)
        found: dict[str, dict[str, float]] = {"wall": {}, "cpu": {}, "scores": {}}
        score = evaluator(X)
        for measure, task in tasks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found["scores"][measure] = score(task)
            found["wall"][measure] = time.perf_counter() - wall
            found["cpu"][measure] = time.process_time() - cpu
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return medians(evaluate, n_clips)


def medians(evaluate: Callable[[int], dict[str, Any]], n_clips: int) -> dict[str, Any]:
    """Scores, and median seconds of `TURNS` evaluations after one of few clips, which imports what is needed."""
    evaluate(WARM_UP_CLIPS)
    turns = [evaluate(n_clips) for _ in range(TURNS)]
    seconds = {
        unit: {name: statistics.median(turn[unit][name] for turn in turns) for name in turns[0][unit]}
        for unit in ("wall", "cpu")
    }
    return {**seconds, "scores": turns[0]["scores"]}


def vectors(n_clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of overlapping classes, and their classes in random order."""
    from benchmarks.recipes import power_law_mixing

    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n_clips) % CLASSES)
    white = 0.2 * rng.standard_normal((CLASSES, DIM))[y] + rng.standard_normal((n_clips, DIM))
    return (white.astype(np.float32) @ power_law_mixing(DIM)).astype(np.float32), y


def evaluator(X: np.ndarray) -> Callable[[Any], float]:
    """Evaluate an mteb task whose audio is row numbers of `X`, and return its main score."""
    import mteb
    from mteb.models import ModelMeta
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim

    class Vectors:
        mteb_model_meta = ModelMeta.create_empty({"name": "bench/vectors", "revision": "1", "modalities": ["audio"]})

        def encode(self, inputs: Any, **_: Any) -> np.ndarray:
            return X[[int(audio["array"][0]) for batch in inputs for audio in batch["audio"]]]

        similarity = staticmethod(cos_sim)
        similarity_pairwise = staticmethod(pairwise_cos_sim)

    def evaluate(task: Any) -> float:
        options: dict[str, Any] = {"cache": None, "show_progress_bar": False, "co2_tracker": False}
        result = mteb.evaluate(
            Vectors(), task, encode_kwargs={"batch_size": 256, "show_progress_bar": False}, **options
        )
        [[scores]] = result.task_results[0].scores.values()
        return float(scores["main_score"])

    return evaluate


def mteb_tasks(y: np.ndarray) -> dict[str, Any]:
    """mteb tasks by measure over the clips of `array_task`, of whose names the lists are drawn."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskPairClassification, AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

    from featstore.evaluation.arrays import array_task
    from featstore.evaluation.pool import read_pool
    from featstore.retrieve.maeb.lists import candidates_of, draw_others, pairs_of

    store, manifest = array_task(
        np.ones((len(y), 1), np.float32), [f"class-{each:02d}" for each in y], groups=None, test=None, metric=None
    )
    names = np.array(read_pool(store, manifest, encoder="arrays").clip_id)
    rows = np.arange(len(y))
    labelled = DatasetDict({"train": Dataset.from_dict({"audio": audio(rows), "label": y.tolist()})})
    drawn = draw_others(y, names.tolist())
    pairs = pairs_of(drawn)
    of_pairs = {
        "audio1": audio(pairs.first),
        "audio2": audio(pairs.second),
        "label": pairs.same.astype(int).tolist(),
    }
    documents = Dataset.from_dict({"id": names.tolist(), "audio": audio(rows)})

    def relevant(candidates: Mapping[int, np.ndarray]) -> dict[str, dict[str, int]]:
        return {
            str(names[query]): {str(names[other]): int(y[other] == y[query]) for other in some if other != query}
            for query, some in candidates.items()
        }

    queries, lists = candidates_of(drawn)
    listed = {int(query): some[some >= 0] for query, some in zip(queries, lists, strict=True)}
    same = {int(query): np.flatnonzero(y == y[query]) for query in rows}
    ranked = {str(names[query]): names[some].tolist() for query, some in listed.items()}

    def search(of: Mapping[int, np.ndarray], top_ranked: dict[str, list[str]] | None) -> Any:
        return {"default": {"test": RetrievalSplitData(
            queries=documents, corpus=documents, relevant_docs=relevant(of), top_ranked=top_ranked)}}  # fmt: skip

    columns = {"input_column_name": "audio", "label_column_name": "label"}
    both = {"input1_column_name": "audio1", "input2_column_name": "audio2", "label_column_name": "label"}
    return {
        "classification": mteb_task(
            AbsTaskClassification, ("AudioClassification", "accuracy", "train"), labelled, columns,
            is_cross_validation=True,
        ),
        "clustering": mteb_task(
            AbsTaskClustering, ("AudioClustering", "v_measure", "train"), labelled, columns,
            max_fraction_of_documents_to_embed=None,
        ),
        "pairs": mteb_task(
            AbsTaskPairClassification, ("AudioPairClassification", "max_ap", "test"),
            DatasetDict({"test": Dataset.from_dict(of_pairs)}), both,
        ),
        "reranking": mteb_task(
            AbsTaskRetrieval, ("AudioReranking", "map_at_1000", "test"), search(listed, ranked), {}
        ),
        "retrieval": mteb_task(
            AbsTaskRetrieval, ("Any2AnyRetrieval", "ndcg_at_10", "test"), search(same, None), {},
            ignore_identical_ids=True,
        ),
    }  # fmt: skip


def audio(rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
    """A row number as the only sample of a clip."""
    return [{"array": np.array([row], np.float32), "sampling_rate": 16_000} for row in rows]


def mteb_task(base: type, kind: tuple[str, str, str], data: Any, columns: Mapping[str, str], **attributes: Any) -> Any:
    """A task of a class of its own, whose data is in memory; ``kind`` is its type, main score and split."""
    from mteb.abstasks.task_metadata import TaskMetadata

    name, main_score, split = kind
    metadata = TaskMetadata(
        name=f"Bench{name}",
        type=name,
        main_score=main_score,
        description="Vectors in memory.",
        dataset={"path": "local", "revision": "1"},
        category="a2a",
        modalities=["audio"],
        eval_splits=[split],
        eval_langs=["eng-Latn"],
    )

    def load_data(self: Any, **_: Any) -> None:
        self.dataset, self.data_loaded = data, True

    return type(metadata.name, (base,), {**columns, **attributes, "metadata": metadata, "load_data": load_data})()


if __name__ == "__main__":
    main(only="maeb")

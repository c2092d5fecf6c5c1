"""A task of each of mteb's kinds over local speech."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskZeroShotClassification,
)
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata

from featstore.demo.sounds import SAMPLE_RATE_HZ, generator, syllables


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One clip: what a row of a data set has as its audio, and whose voice it is."""

    audio: Any
    speaker: str


def synthetic_speech(*, speakers: int = 5, clips: int = 8) -> list[Recording]:
    """Pieces of different lengths of what each speaker says."""
    found = []
    for speaker in range(speakers):
        rng = generator(7, speaker)
        speech = 0.1 * syllables(SAMPLE_RATE_HZ * clips, rng)
        cuts = np.cumsum([0, *rng.integers(SAMPLE_RATE_HZ // 3, SAMPLE_RATE_HZ, clips)])
        found += [
            Recording(audio=as_array(speech[start:stop]), speaker=f"speaker {speaker}")
            for start, stop in pairwise(cuts)
        ]
    return found


def as_array(samples: np.ndarray, rate: int = SAMPLE_RATE_HZ) -> dict[str, Any]:
    return {"array": samples.astype(np.float32), "sampling_rate": rate}


ToDataset = Callable[[dict[str, list[Any]]], Dataset]
"""Makes a data set of columns; recordings of files are cast to `datasets.Audio` by it."""


def speech_tasks(recordings: Sequence[Recording], *, to_dataset: ToDataset = Dataset.from_dict) -> dict[str, AbsTask]:
    """Tasks by kind: who speaks, of whose clips the first half trains."""
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for each in recordings:
        by_speaker[each.speaker].append(each)
    names = sorted(by_speaker)
    halves = {
        "train": [each for clips in by_speaker.values() for each in clips[: len(clips) // 2]],
        "test": [each for clips in by_speaker.values() for each in clips[len(clips) // 2 :]],
    }

    def audio(clips: Sequence[Recording]) -> list[Any]:
        return [each.audio for each in clips]

    def labels(clips: Sequence[Recording]) -> list[int]:
        return [names.index(each.speaker) for each in clips]

    def split(clips: Sequence[Recording], values: list[Any]) -> Dataset:
        return to_dataset({"audio": audio(clips), "label": values})

    def sets(clips: Sequence[Recording]) -> list[list[int]]:
        return [sorted({number, (number + 1) % len(names)}) for number in labels(clips)]

    classes = {name: split(clips, labels(clips)) for name, clips in halves.items()}
    test = halves["test"]
    shifted = test[1:] + test[:1]
    pairs = {
        "audio1": audio(test) * 2,
        "audio2": audio(shifted) + audio(shifted[1:] + shifted[:1]),
        "label": [
            int(one.speaker == other.speaker)
            for others in (shifted, shifted[1:] + shifted[:1])
            for one, other in zip(test, others, strict=True)
        ],
    }
    queries = to_dataset({"id": [f"q{n}" for n in range(len(test))], "audio": audio(test)})
    corpus = to_dataset({"id": [f"d{n}" for n in range(len(halves["train"]))], "audio": audio(halves["train"])})
    relevant = {
        f"q{n}": {f"d{m}": int(one.speaker == other.speaker) for m, other in enumerate(halves["train"])}
        for n, one in enumerate(test)
    }
    top_ranked = {query: list(documents)[::2] for query, documents in relevant.items()}

    def retrieval(top_ranked: dict[str, list[str]] | None) -> dict[str, Any]:
        data = RetrievalSplitData(queries=queries, corpus=corpus, relevant_docs=relevant, top_ranked=top_ranked)
        return {"default": {"test": data}}

    both = DatasetDict(classes)
    three = {"samples_per_label": 3, "n_experiments": 3}
    label_sets = DatasetDict({name: split(clips, sets(clips)) for name, clips in halves.items()})
    texts = ["the voice of " + name for name in names]
    return {
        "classification": _task(AbsTaskClassification, "AudioClassification", "accuracy", both, **three),
        "cross-validation": _task(
            AbsTaskClassification, "AudioClassification", "accuracy", both, split="train", is_cross_validation=True
        ),
        "multilabel": _task(
            AbsTaskMultilabelClassification, "AudioMultilabelClassification", "lrap", label_sets, **three
        ),
        "clustering": _task(
            AbsTaskClustering,
            "AudioClustering",
            "v_measure",
            both,
            max_fraction_of_documents_to_embed=None,
            n_clusterings=3,
        ),
        "pairs": _task(
            AbsTaskPairClassification,
            "AudioPairClassification",
            "max_ap",
            DatasetDict({"test": to_dataset(pairs)}),
            input1_column_name="audio1",
            input2_column_name="audio2",
        ),
        "retrieval": _task(AbsTaskRetrieval, "Any2AnyRetrieval", "ndcg_at_10", retrieval(None)),
        "reranking": _task(AbsTaskRetrieval, "AudioReranking", "map_at_1000", retrieval(top_ranked)),
        "zero-shot": _task(
            AbsTaskZeroShotClassification,
            "AudioZeroshotClassification",
            "accuracy",
            both,
            modalities=["audio", "text"],
            get_candidate_labels=lambda self: texts,
        ),
    }


def _task(
    base: type[AbsTask],
    kind: Any,
    main_score: str,
    data: Any,
    *,
    split: str = "test",
    modalities: Sequence[Any] = ("audio",),
    **attributes: Any,
) -> AbsTask:
    """A task of a class of its own, whose data is there: mteb drops what an object has when it has evaluated it."""
    metadata = TaskMetadata(
        name=f"Local{kind}{'CrossVal' if 'is_cross_validation' in attributes else ''}",
        type=kind,
        main_score=main_score,
        description="Who speaks, in local recordings.",
        dataset={"path": "local", "revision": "1"},
        category="a2a",
        modalities=list(modalities),
        eval_splits=[split],
        eval_langs=["eng-Latn"],
    )

    def load_data(self: AbsTask, **_: Any) -> None:
        self.dataset, self.data_loaded = data, True  # type: ignore[attr-defined]

    columns = {} if base is AbsTaskRetrieval else {"input_column_name": "audio", "label_column_name": "label"}
    kind_of_task = type(metadata.name, (base,), {**columns, **attributes, "metadata": metadata, "load_data": load_data})
    task: AbsTask = kind_of_task()
    return task

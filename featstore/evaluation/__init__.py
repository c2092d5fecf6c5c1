"""A task's embeddings, labels and rounds in memory, and the record of its score."""

from __future__ import annotations

from featstore.evaluation.data import Samples, TaskData, load_task
from featstore.evaluation.few_shot import check_shots, shots_details, support_sets
from featstore.evaluation.frames import FrameTask, load_frame_task
from featstore.evaluation.scores import (
    Stopwatch,
    TaskScore,
    score_outcomes,
    score_record,
)

__all__ = [
    "FrameTask",
    "Samples",
    "Stopwatch",
    "TaskData",
    "TaskScore",
    "check_shots",
    "load_frame_task",
    "load_task",
    "score_outcomes",
    "score_record",
    "shots_details",
    "support_sets",
]

"""A task's embeddings, labels and rounds in memory, and the record of a score made from them."""

from __future__ import annotations

from featstore.taskdata.frames import FrameTask, load_frame_task
from featstore.taskdata.load import TaskData, load_task
from featstore.taskdata.samples import Samples
from featstore.taskdata.scores import (
    Outcome,
    Scores,
    score_outcomes,
    score_record,
)
from featstore.taskdata.shots import check_shots, shots_details, support_sets
from featstore.taskdata.stopwatch import Stopwatch

__all__ = [
    "FrameTask",
    "Outcome",
    "Samples",
    "Scores",
    "Stopwatch",
    "TaskData",
    "check_shots",
    "load_frame_task",
    "load_task",
    "score_outcomes",
    "score_record",
    "shots_details",
    "support_sets",
]

"""Extraction: shards -> decode -> windows -> batches -> encoder -> store."""

from featstore.extract.engines import EncoderRequest, Engine, open_engine
from featstore.extract.progress import Progress, Silent
from featstore.extract.run import ExtractOptions, TaskPlan, extract_task, plan_tasks
from featstore.extract.work import plan_recipe

__all__ = [
    "EncoderRequest",
    "Engine",
    "ExtractOptions",
    "Progress",
    "Silent",
    "TaskPlan",
    "extract_task",
    "open_engine",
    "plan_recipe",
    "plan_tasks",
]

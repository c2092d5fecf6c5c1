"""Extraction pipeline: read shards, decode, cut windows, batch, encode, pool, write and commit."""

from featstore.extract.engine import EncoderRequest, Engine
from featstore.extract.engine_choice import open_engine
from featstore.extract.job import plan_recipe
from featstore.extract.options import ExtractOptions, ExtractSettings
from featstore.extract.results import Progress, Silent
from featstore.extract.run import TaskExtraction, extract_plans
from featstore.extract.task import TaskPlan, extract_task, plan_tasks

__all__ = [
    "EncoderRequest",
    "Engine",
    "ExtractOptions",
    "ExtractSettings",
    "Progress",
    "Silent",
    "TaskExtraction",
    "TaskPlan",
    "extract_plans",
    "extract_task",
    "open_engine",
    "plan_recipe",
    "plan_tasks",
]

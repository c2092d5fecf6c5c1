"""Extraction: shards -> decode -> windows -> batches -> encoder -> store."""

from featstore.extract.progress import Progress, Silent
from featstore.extract.run import ExtractOptions, extract_task, plan_recipe

__all__ = ["ExtractOptions", "Progress", "Silent", "extract_task", "plan_recipe"]

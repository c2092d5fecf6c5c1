"""Extraction: shards -> decode -> windows -> batches -> encoder -> store."""

from featstore.extract.progress import Progress, Silent
from featstore.extract.run import ExtractOptions, extract_task

__all__ = ["ExtractOptions", "Progress", "Silent", "extract_task"]

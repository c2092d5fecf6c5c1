"""Clips to pack, from what people have: folders, tables, Hugging Face data sets, lhotse manifests, Kaldi folders."""

from featstore.extract.sources.clips import Clip
from featstore.extract.sources.source import SOURCE_FIELDS, Plan, Source, SourceSettings, plan_source

__all__ = ["SOURCE_FIELDS", "Clip", "Plan", "Source", "SourceSettings", "plan_source"]

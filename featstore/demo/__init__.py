"""Labelled audio made from nothing, and the way from there to a leaderboard: no download, no GPU, no weights."""

from featstore.demo.run import DemoOutcome, run_demo
from featstore.demo.shards import ShardPlan, make_shards, plan_shards
from featstore.demo.synth import COLLECTIONS, SYNTHESIS_VERSION, Collection, Sample, synthesise

__all__ = [
    "COLLECTIONS",
    "SYNTHESIS_VERSION",
    "Collection",
    "DemoOutcome",
    "Sample",
    "ShardPlan",
    "make_shards",
    "plan_shards",
    "run_demo",
    "synthesise",
]

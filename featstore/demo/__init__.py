"""Synthesised labelled audio, and the demo from audio to leaderboard: no download, no GPU, no weights."""

from featstore.demo.run import DemoOutcome, run_demo
from featstore.demo.shards import (
    COLLECTIONS,
    SYNTHESIS_VERSION,
    Collection,
    Sample,
    ShardPlan,
    make_shards,
    plan_shards,
    synthesise,
)

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

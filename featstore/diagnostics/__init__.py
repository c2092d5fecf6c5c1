"""Health of an embedding space: its spread, dead dimensions, and near-duplicates across splits."""

from featstore.diagnostics.health import Health, examine_health, health_notes
from featstore.diagnostics.measures import Separability, SpaceHealth, space_health
from featstore.evaluation.leakage import NEAR_COSINE, NearDuplicate, Overlap, find_overlap

__all__ = [
    "NEAR_COSINE",
    "Health",
    "NearDuplicate",
    "Overlap",
    "Separability",
    "SpaceHealth",
    "examine_health",
    "find_overlap",
    "health_notes",
    "space_health",
]

"""Who trains, who selects and who is tested: plans made from names, without reading a single embedding."""

from __future__ import annotations

from featstore.splits.hashing import grouped_folds, grouped_tenth, stratified_folds, stratified_tenth
from featstore.splits.rounds import Round, plan_rounds
from featstore.splits.support import draw_support

__all__ = [
    "Round",
    "draw_support",
    "grouped_folds",
    "grouped_tenth",
    "plan_rounds",
    "stratified_folds",
    "stratified_tenth",
]

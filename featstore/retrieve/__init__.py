"""Track B of the evaluation: score stored embeddings without training, by several measures.

`open_index` opens the saved index of a feature set for searches over millions of windows.
"""

from __future__ import annotations

from featstore.retrieve.api import retrieve_task
from featstore.retrieve.measures import MEASURES, score_measures
from featstore.retrieve.saved_index import SavedIndex, open_index

__all__ = ["MEASURES", "SavedIndex", "open_index", "retrieve_task", "score_measures"]

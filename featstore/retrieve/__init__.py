"""Track B of the evaluation: score stored embeddings by nearest neighbours, without training.

`open_index` opens the saved index of a feature set for searches over millions of windows.
"""

from __future__ import annotations

from featstore.retrieve.api import retrieve_task
from featstore.retrieve.saved_index import SavedIndex, open_index

__all__ = ["SavedIndex", "open_index", "retrieve_task"]

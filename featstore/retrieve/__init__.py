"""Track B of the evaluation: score stored embeddings without training, by several measures.

`open_index` opens the saved index of a feature set for searches over millions of windows. Names are imported on first
use: a search needs neither manifests nor measures.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featstore.retrieve.api import retrieve_task
    from featstore.retrieve.measures import MEASURES, score_measures
    from featstore.retrieve.saved_index import SavedIndex, open_index

__all__ = ["MEASURES", "SavedIndex", "open_index", "retrieve_task", "score_measures"]

_HOME = {"SavedIndex": "saved_index", "open_index": "saved_index", "retrieve_task": "api"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"featstore.retrieve.{_HOME.get(name, 'measures')}"), name)

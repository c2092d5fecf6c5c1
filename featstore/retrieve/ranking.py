"""The measure ``retrieval``: each test clip is a query for other test clips of its class."""

from __future__ import annotations

from featstore.errors import DataError
from featstore.evaluation import Stopwatch
from featstore.metrics import of_units
from featstore.metrics.ranked_clips import RETRIEVAL_METRICS, score_ranked_clips
from featstore.records import ScoreRecord
from featstore.retrieve.measured import Estimate, MeasuredTask, measure_record

__all__ = ["score_retrieval"]


def score_retrieval(of: MeasuredTask) -> ScoreRecord:
    """Rank for each test clip the comparable ones by cosine: mAP, recall at 1, 5 and 10, nDCG at 10.

    Clips that share a class, or a label of several, are relevant to each other. A clip without a relevant one is no
    query. See `featstore.retrieve.clip_set.ClipSet` for what is comparable.

    Raises
    ------
    DataError
        No clip has a relevant one.
    """
    watch = Stopwatch()
    with watch("read"):
        clips = of.clips
    with watch("search"):
        try:
            scores = score_ranked_clips(clips.comparisons(), n_clips=len(clips))
        except DataError as error:
            raise DataError(f"task {clips.task}: {error}") from error
    with watch("score"):
        estimates = {
            name: Estimate.of(scores.values[name], of_units(scores.deviations[name], clips.units), clips.units)
            for name in RETRIEVAL_METRICS
        }
    return measure_record(
        of, clips, measure="retrieval", estimates=estimates, watch=watch, details={"queries": scores.n_queries}
    )

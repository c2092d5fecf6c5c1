"""Retrieval of clips by captions, and of captions by clips, without training: the measure ``text`` of captions.

The vectors of the captions are those of the encoder's own text tower, stored at extraction; no encoder is loaded. This
is how CLAP models are evaluated on AudioCaps and Clotho (Wu et al. 2023; Elizalde et al. 2023): by cosine similarity,
over all test clips and all of their captions. Of several captions of a clip, any is relevant.
"""

from __future__ import annotations

import numpy as np

from featstore.evaluation import Stopwatch, score_record
from featstore.evaluation.captions import for_test_clips, queries_of, read_captions
from featstore.evaluation.data import PlannedTask
from featstore.evaluation.pool import read_pool
from featstore.evaluation.scores import details_by_round, score_test_sets
from featstore.evaluation.texts import text_vectors
from featstore.metrics.retrieval import RecallAt
from featstore.records import ScoreRecord
from featstore.retrieve.measured import MeasuredTask
from featstore.retrieve.scan import unit_rows
from featstore.tasks.splits import Round

__all__ = ["score_captions"]


def score_captions(of: MeasuredTask) -> ScoreRecord:
    """Retrieve test clips by their captions, and captions by their clips; the score is recall@1, the mean of both.

    Only the test clips are read: a store without the other splits will do. With folds, each fold is retrieved from
    itself, and the score is the mean over folds. ``strict`` compares the mean of the vectors of a clip's windows,
    weighted by duration; ``xares`` each window.

    Returns
    -------
    ScoreRecord
        ``metric`` is ``"recall_at_1"``. ``details["text_to_audio"]`` and ``details["audio_to_text"]`` have recall@1, 5
        and 10 and mAP@10.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings or vectors of captions; the message gives the command to run.
    LabelError, DataError
        The captions or the embeddings are invalid.
    UsageError
        The embeddings are not in the space of the text tower.
    """
    manifest, protocol = of.manifest, of.protocol
    watch = Stopwatch()
    with watch("read"):
        pool = read_pool(of.store, for_test_clips(manifest), encoder=of.encoder)
        captions = read_captions(manifest, pool.keys, pool.metas)
        text = unit_rows(text_vectors(of.store, manifest, pool.recipe, captions.texts))
    nothing = np.zeros(0, np.int64)
    rounds = tuple(
        Round(name=name, protocol=protocol, train=nothing, valid=nothing, test=clips)
        for name, clips in pool.members.items()
    )
    tested, by_round = [], {}
    for each in rounds:
        with watch("compare"):
            queries = queries_of(pool, captions, each.test, protocol=protocol)
            audio = unit_rows(queries.items(pool.X[queries.samples.windows]))
            ranks = [queries.ranks(audio, text[queries.caption])]
        tested.append(queries.test_set(ranks))
        by_round[each.name] = queries.details(ranks, captions)
    with watch("score"):
        scores = score_test_sets(RecallAt(k=1), tested, clip_ids=pool.clip_id, groups=pool.groups)
    return score_record(
        PlannedTask.of(pool, manifest=manifest, rounds=rounds, protocol=protocol),
        scores,
        track="B",
        with_leakage=False,  # nothing is trained
        seeds=(),
        settings={"measure": "text"},
        seconds=watch.seconds,
        libraries=(),
        details=details_by_round(by_round),
    )

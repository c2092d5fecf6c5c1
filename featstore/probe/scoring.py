"""Build a `ScoreRecord` from the predictions of each round, for sequence, retrieval and other non-clip kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featstore.evaluation.data import PlannedTask
from featstore.evaluation.layers import LayerFamily, record_of_family
from featstore.evaluation.pool import Windows
from featstore.evaluation.scores import details_by_round, score_record, score_test_sets
from featstore.metrics import Metric, TestSet
from featstore.probe.selection import selection_details, weight_details
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.probe.training import Fitted
    from featstore.tasks import Manifest

__all__ = ["RoundResult", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """Predictions of one round.

    Attributes
    ----------
    test_set : TestSet
        One prediction per seed.
    fits : tuple of Fitted
        One per seed.
    details : mapping
        Further numbers of the round: means over seeds.
    """

    round: Round
    test_set: TestSet
    fits: tuple[Fitted, ...]
    details: Mapping[str, Any]


def verdict(
    manifest: Manifest,
    windows: Windows,
    tested: Sequence[RoundResult],
    *,
    metric: Metric,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    libraries: Sequence[str],
    family: LayerFamily | None = None,
) -> ScoreRecord:
    """Score every round and build the record with its confidence interval.

    ``settings`` are those that are not in the manifest's ``[probe]``; ``family`` are the layers of a layer mix.
    """
    rounds = tuple(each.round for each in tested)
    task = PlannedTask.of(windows, manifest=manifest, rounds=rounds, protocol=protocol)
    details = {
        **selection_details(rounds, [each.fits for each in tested]),
        **details_by_round({each.round.name: each.details for each in tested}),
    }
    if family is not None:
        details["layer_weights"] = weight_details(
            family.layers, [fitted.layer_weights for each in tested for fitted in each.fits]
        )
        settings = {**settings, "layers": list(family.layers)}
    record = score_record(
        task,
        score_test_sets(metric, [each.test_set for each in tested], clip_ids=windows.clip_id, groups=windows.groups),
        track="A",
        seeds=seeds,
        settings={
            "head": head,
            **manifest.probe.model_dump(
                exclude_none=True, exclude={"head"} if head == "linear" else {"head", "epochs", "learning_rate"}
            ),
            **settings,
        },
        seconds=seconds,
        libraries=libraries,
        details=details,
    )
    return record if family is None else record_of_family(record, family)

"""From what a probe predicted in each round to a `ScoreRecord`, for the kinds that score more than class scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from featstore.errors import DataError
from featstore.metrics import Metric, TestSet, bootstrap_scores
from featstore.probe.selection import selection_details
from featstore.records import Protocol, ScoreRecord, sha256_of
from featstore.splits import Round, plan_rounds
from featstore.taskdata.scores import N_RESAMPLES, bootstrap_details, origin_details

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.probe.fitting import Fitted
    from featstore.taskdata.pool import Windows

__all__ = ["RoundResult", "plan", "verdict"]

DISTRIBUTIONS = {"sklearn": "scikit-learn"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What was predicted in one round.

    Attributes
    ----------
    test_set : TestSet
        One prediction per seed.
    fits : tuple of Fitted
        By seed.
    details : mapping
        More numbers of the round: means over seeds.
    """

    round: Round
    test_set: TestSet
    fits: tuple[Fitted, ...]
    details: Mapping[str, Any]


def plan(manifest: Manifest, windows: Windows, *, protocol: Protocol) -> tuple[Round, ...]:
    """Plan the rounds of a task whose clips are all of one stratum.

    Raises
    ------
    DataError
        A round has no training clip, or no test clip.
    """
    rounds = plan_rounds(
        protocol=protocol,
        members=windows.members,
        roles=None if manifest.folds is not None else manifest.feature_sets,
        ids=windows.ids,
        strata=np.zeros(len(windows.ids), np.int64),
    )
    for each in rounds:
        for part, clips in (("training", each.train), ("test", each.test)):
            if not len(clips):
                raise DataError(
                    f"task {manifest.name}, round {each.name!r}: no {part} clip is left; it takes more clips or fewer "
                    "folds"
                )
    return rounds


def verdict(
    manifest: Manifest,
    windows: Windows,
    tested: Sequence[RoundResult],
    *,
    metric: Metric,
    protocol: Protocol,
    seeds: tuple[int, ...],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    libraries: Sequence[str],
) -> ScoreRecord:
    """Score every round and build the record; the interval is bootstrapped by clip, as for every other kind.

    ``settings`` are those that the manifest's ``[probe]`` does not tell.
    """
    scores = np.array(
        [[metric.score(each.test_set.y_true, y_score) for y_score in each.test_set.y_scores] for each in tested]
    )
    names = [[windows.ids[clip] for clip in dict.fromkeys(each.test_set.clip.tolist())] for each in tested]
    clips = sha256_of(names)
    resampled = bootstrap_scores(
        metric,
        [each.test_set for each in tested],
        rng=np.random.default_rng(int(clips, 16)),
        n_resamples=N_RESAMPLES,
    )
    by_seed = scores.mean(axis=0)
    return ScoreRecord(
        task=manifest.name,
        title=manifest.title,
        track="A",
        protocol=protocol,
        encoder=windows.recipe.encoder,
        fingerprint=windows.recipe.fingerprint,
        metric=manifest.metric,
        value=float(scores.mean()),
        std=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else 0.0,
        ci_low=resampled.interval.low,
        ci_high=resampled.interval.high,
        seeds=seeds,
        n_train=round(float(np.mean([len(each.round.train) for each in tested]))),
        n_valid=round(float(np.mean([len(each.round.valid) for each in tested]))),
        n_test=sum(len(each.round.test) for each in tested),
        n_skipped=len(windows.left_out),
        eval_weight=float(manifest.eval_weight),
        private=manifest.private,
        seconds=dict(seconds),
        manifest_sha256=manifest.sha256,
        versions=_versions("featstore", "numpy", *libraries, *metric.libraries),
        settings={"head": "linear", **manifest.probe.model_dump(exclude_none=True), **settings},
        features=dict(windows.features),
        details={
            "by_round": {each.round.name: float(row.mean()) for each, row in zip(tested, scores, strict=True)},
            "by_seed": {str(seed): float(score) for seed, score in zip(seeds, by_seed, strict=True)},
            **selection_details([each.round for each in tested], [each.fits for each in tested]),
            "bootstrap": bootstrap_details(resampled, clips=clips),
            **_by_round(tested),
            **origin_details(windows.recipe, windows.left_out),
        },
    )


def _by_round(tested: Sequence[RoundResult]) -> dict[str, Any]:
    """Numbers of the rounds: as they are for a single round, else by round."""
    if len(tested) == 1:
        return dict(tested[0].details)
    names = dict.fromkeys(name for each in tested for name in each.details)
    return {name: {each.round.name: each.details[name] for each in tested} for name in names}


def _versions(*modules: str) -> dict[str, str]:
    import featstore

    distributions = {DISTRIBUTIONS.get(name, name) for name in modules} - {"featstore"}
    return {"featstore": featstore.__version__, **{name: metadata.version(name) for name in sorted(distributions)}}

"""Do rank intervals and numbers of further test clips hold what they say? By simulation, where the truth is known.

    python -m benchmarks.resolution           prints both tables of docs/protocols.md; ten minutes
    python -m benchmarks.resolution --write   writes them there

Rank intervals: the share of simulated leaderboards in which every interval contains the true rank, beside percentiles
of bootstrapped ranks. More test clips: from a leaderboard of two or more encoders of which two are not separated, their
number of further clips is taken, new test sets of that size are drawn from a population whose difference is the one
observed, and the share of them that separates the two is counted; it should be 80 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from benchmarks.coverage import DOCUMENT
from featstore.evaluation.scores import score_test_sets
from featstore.metrics import TestSet, find_metric
from featstore.metrics.comparison import ALPHA
from featstore.records import PROTOCOL_VERSION, ScoreRecord
from featstore.report import build
from featstore.report.marks import marks_of
from featstore.report.pairing import pair_over_tasks

Right = NDArray[np.bool_]
"""Which clips each encoder classifies correctly, bool (encoders, clips)."""


def records_of(right: Right, *, task: str = "task", of_group: int = 0) -> list[ScoreRecord]:
    """Score one test set by every encoder; with groups, consecutive clips belong together."""
    n = right.shape[1]
    y_true, names = np.zeros(n, np.int64), [f"clip {at}" for at in range(n)]
    groups = [f"speaker {at // of_group}" for at in range(n)] if of_group else None
    found = []
    for encoder, mine in enumerate(right):
        test_set = TestSet(
            y_true=y_true, y_scores=(np.eye(2, dtype=np.float32)[(~mine).astype(int)],), clip=np.arange(n)
        )
        scores = score_test_sets(find_metric("accuracy", "strict"), [test_set], clip_ids=names, groups=groups)
        found.append(
            ScoreRecord(
                task=task, title=task, track="B", protocol="strict", encoder=f"encoder {encoder:02d}", fingerprint="0",
                metric="accuracy", value=scores.value, std=None, ci_low=scores.interval.low,
                ci_high=scores.interval.high, seeds=(), n_train=1, n_valid=1, n_test=n, n_skipped=0, eval_weight=1.0,
                private=False, seconds={}, manifest_sha256="", versions={}, details=scores.details,
                protocol_version=PROTOCOL_VERSION,
            )
        )  # fmt: skip
    return found


def draw_right(rng: np.random.Generator, chances: Sequence[float], n: int, *, of_group: int = 0) -> Right:
    """Encoders find the same clips hard: a clip has one normal hardness, and each encoder its own noise on it."""
    from scipy.special import ndtri

    shared = rng.standard_normal(n)
    if of_group:
        shared = (shared + np.repeat(rng.standard_normal(n // of_group + 1), of_group)[:n]) / np.sqrt(2)
    own = rng.standard_normal((len(chances), n))
    return np.sqrt(0.7) * shared + np.sqrt(0.3) * own < ndtri(np.array(chances))[:, None]


def holds(ranks: Sequence[tuple[int, int] | None], truth: Sequence[float]) -> NDArray[np.bool_]:
    """Whether the interval of each encoder contains its true rank, and of equal encoders all of their ranks."""
    values = np.array(truth)
    first = 1 + (values[None] > values[:, None]).sum(axis=1)
    last = len(values) - (values[None] < values[:, None]).sum(axis=1)
    low, high = np.array([ends or (0, 0) for ends in ranks]).T
    found: NDArray[np.bool_] = (low <= first) & (high >= last)
    return found


# --- rank intervals ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Encoders of one task with true accuracies, or of several tasks with true averages.

    ``between`` is the deviation over tasks of the difference of an encoder from its average; 0 for one task.
    """

    name: str
    truth: tuple[float, ...]
    n_clips: int = 300
    of_group: int = 0
    n_tasks: int = 1
    between: float = 0.0


EVEN = tuple(np.linspace(0.72, 0.78, 8).round(4).tolist())
EQUAL = (0.75,) * 8
WIDE = tuple(np.linspace(0.5, 0.9, 8).round(4).tolist())
RANKINGS = (
    Ranking("one task, 8 equal encoders", EQUAL),
    Ranking("one task, 0.72 to 0.78", EVEN),
    Ranking("one task, 0.5 to 0.9", WIDE),
    Ranking("one task, 20 encoders, 0.72 to 0.78", tuple(np.linspace(0.72, 0.78, 20).tolist())),
    Ranking("one task, 60 groups, 0.72 to 0.78", EVEN, of_group=5),
    *(
        Ranking(f"{n} tasks, resampled, {name}", truth, n_clips=200, n_tasks=n, between=0.03)
        for n in (5, 12, 27)
        for name, truth in (("8 equal encoders", EQUAL), ("0.72 to 0.78", EVEN))
    ),
)


def rank_coverage(ranking: Ranking, *, n_experiments: int, seed: int = 0) -> tuple[float, float, float]:
    """Shares: all intervals hold; the lowest of one encoder; all percentiles of bootstrapped ranks hold."""
    rng = np.random.default_rng([seed, len(ranking.name)])
    held = np.zeros(len(ranking.truth))
    every = percentiles = 0
    for _ in range(n_experiments):
        if ranking.n_tasks > 1:
            chances = np.array(ranking.truth) + rng.normal(0, ranking.between, (ranking.n_tasks, len(ranking.truth)))
            values = np.stack(
                [draw_right(rng, each, ranking.n_clips).mean(axis=1) for each in chances.clip(0.01, 0.99)]
            )
            marks = marks_of(
                values.mean(axis=0).tolist(),
                lower_is_better=False,
                pair=lambda a, b, of=values: pair_over_tasks((of[:, a] - of[:, b]).tolist(), [1.0] * len(of)),
            )
            ranks, units = [marks.ranks[at] for at in range(len(ranking.truth))], values
        else:
            right = draw_right(rng, ranking.truth, ranking.n_clips, of_group=ranking.of_group)
            (table,) = build(records_of(right, of_group=ranking.of_group)).tables
            ranks = [table.rows[0].ranks[at] for at in range(len(ranking.truth))]
            units = right.T.reshape(-1, max(ranking.of_group, 1), len(ranking.truth)).mean(axis=1)
        ok = holds(ranks, ranking.truth)
        held += ok
        every += ok.all()
        percentiles += holds(bootstrapped(rng, units), ranking.truth).all()
    return every / n_experiments, float(held.min()) / n_experiments, percentiles / n_experiments


def bootstrapped(rng: np.random.Generator, units: NDArray[np.float64], *, n_draws: int = 400) -> list[tuple[int, int]]:
    """95 % percentiles of the ranks over resampled units (units, encoders): the common method, for comparison."""
    n = len(units)
    means = rng.multinomial(n, np.full(n, 1 / n), size=n_draws) @ units
    ranks = (-means).argsort(axis=1).argsort(axis=1) + 1
    return [tuple(each) for each in np.quantile(ranks, (0.025, 0.975), axis=0, method="inverted_cdf").T.astype(int)]


# --- more test clips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pilot:
    """Leaderboards of which two encoders that follow each other are not separated."""

    name: str
    chances: tuple[float, ...]
    n_clips: int
    of_group: int = 0


PILOTS = (
    Pilot("2 encoders, accuracy 0.70 and 0.75, 100 clips", (0.70, 0.75), 100),
    Pilot("2 encoders, accuracy 0.90 and 0.92, 400 clips", (0.90, 0.92), 400),
    Pilot("8 encoders, accuracy 0.72 to 0.78, 300 clips", EVEN, 300),
    Pilot("8 encoders, accuracy 0.72 to 0.78, 60 groups of 5 clips", EVEN, 300, of_group=5),
)


def power_after(pilot: Pilot, *, n_experiments: int, n_draws: int = 100, seed: int = 0) -> list[float]:
    """Share of new test sets of the stated size that separate the two encoders, for each pilot leaderboard.

    The new test sets are drawn with replacement from the clips or groups of the pilot, so that the true difference is
    the observed one. The level is that of one of the pairs, as in the definition.
    """
    rng = np.random.default_rng([seed, pilot.n_clips, len(pilot.chances)])
    found: list[float] = []
    while len(found) < n_experiments:
        right = draw_right(rng, pilot.chances, pilot.n_clips, of_group=pilot.of_group)
        (table,) = build(records_of(right, of_group=pilot.of_group)).tables
        resolution = table.rows[0].resolution
        if resolution is None:
            continue
        close = [each for each in resolution.adjacent if each.more_clips is not None]
        close = [each for each in close if (each.more_clips or 0) < 30 * pilot.n_clips]
        if not close:
            continue
        chosen = close[0]
        both = right[[chosen.better, chosen.worse]].T.reshape(-1, max(pilot.of_group, 1), 2)
        n = (pilot.n_clips + (chosen.more_clips or 0)) // max(pilot.of_group, 1)
        separated = 0
        for _ in range(n_draws):
            drawn = both[rng.integers(len(both), size=n)].reshape(-1, 2).T
            (again,) = build(records_of(drawn, of_group=pilot.of_group)).tables
            (pair,) = again.rows[0].resolution.adjacent if again.rows[0].resolution else (None,)
            separated += pair is not None and pair.p is not None and pair.p <= ALPHA / resolution.n_pairs
        found.append(separated / n_draws)
    return found


# --- tables -----------------------------------------------------------------------------------------------------------


def ranking_line(ranking: Ranking, *, scale: float) -> str:
    every, worst, percentiles = rank_coverage(ranking, n_experiments=int(500 * scale))
    return f"| {ranking.name} | {every:.1%} | {worst:.1%} | {percentiles:.1%} |"


def pilot_line(pilot: Pilot, *, scale: float) -> str:
    found = power_after(pilot, n_experiments=int(20 * scale))
    return f"| {pilot.name} | {np.mean(found):.0%} | {np.min(found):.0%} to {np.max(found):.0%} |"


def tables(scale: float) -> Iterator[tuple[str, list[str]]]:
    with get_context("spawn").Pool(2) as pool:
        head = [
            "| leaderboard | all intervals contain the true rank | of one encoder, at least | all bootstrap percentiles |",
            "|---|---:|---:|---:|",
        ]
        yield "rank intervals", head + pool.map(partial(ranking_line, scale=scale), RANKINGS)
        head = [
            "| leaderboard before | separated with the further clips | range over leaderboards |",
            "|---|---:|---:|",
        ]
        yield "more clips", head + pool.map(partial(pilot_line, scale=scale), PILOTS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resolution", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/protocols.md")
    parser.add_argument("--scale", type=float, default=1.0, help="number of experiments, as a share of the usual ones")
    asked = parser.parse_args()
    for name, lines in tables(asked.scale):
        print("\n".join(lines), flush=True)
        if asked.write:
            before, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition(f"<!-- end of {name} -->")
            text = "\n".join(lines)
            DOCUMENT.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Do intervals and marks hold what they say? Coverage and false positives by simulation, where the truth is known.

    python -m benchmarks.coverage           prints both tables of docs/protocols.md; half an hour
    python -m benchmarks.coverage --write   writes them there

Every row of the first is a population whose true score is known, exactly or from 400,000 of its clips: the share of
simulated test sets whose 95 % interval holds it (of accuracy, exactly), and of how many test sets there is an interval,
where there is not always one. Every row of the second is a set of encoders that are equally good: the share of simulated leaderboards in
which any is marked as worse. Another ``--seed`` draws other test sets, two cores work side by side.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from featstore.errors import FeatstoreError
from featstore.evaluation.scores import score_test_sets
from featstore.metrics import TestSet, find_metric, interval_of, jackknife, plan_units
from featstore.metrics.retrieval import RecallAt
from featstore.metrics.word_error_rate import InverseErrorRate
from featstore.records import PROTOCOL_VERSION, ScoreRecord
from featstore.report import build

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "protocols.md"
SIZES = (30, 100, 1000)
MANY = 400_000
NORMAL = NormalDist()


@dataclass(frozen=True)
class Sample:
    y_true: NDArray[Any]
    y_score: NDArray[Any] | tuple[NDArray[Any], ...]  # of several seeds
    group: NDArray[Any] | None = None
    n_folds: int = 1
    clip: NDArray[Any] | None = None


Draw = Callable[[np.random.Generator, int], Sample]


@dataclass(frozen=True)
class Population:
    """Where test sets are drawn from; ``truth`` where the true score is known exactly."""

    metric: str
    name: str
    draw: Draw
    truth: float | None = None


@dataclass(frozen=True)
class Coverage:
    truth: float
    printed: float
    held: float


def metric_of(name: str) -> Any:
    by_name = {"wer_inv": InverseErrorRate(), "recall_at_1": RecallAt(k=1)}
    return by_name.get(name) or find_metric(name, "strict")


def coverage(population: Population, n: int, *, n_experiments: int, truth: float, seed: int = 0) -> Coverage:
    """Draw test sets, and count the intervals that hold the truth."""
    metric, rng = metric_of(population.metric), np.random.default_rng([seed, n])
    printed = held = 0
    for _ in range(n_experiments):
        sample = population.draw(rng, n)
        test_sets, names, groups = _laid_out(sample)
        units = plan_units([each.clip for each in test_sets], names=names, groups=groups)
        try:
            spread = jackknife(metric, test_sets, units)
            scores = [[metric.score(each.y_true, score) for score in each.y_scores] for each in test_sets]
        except FeatstoreError:
            continue  # a test set without one of the classes has no score
        by_seed = np.mean(scores, axis=0)
        interval = interval_of(metric, spread, units, test_sets, by_seed=by_seed.tolist())
        if interval.low is not None and interval.high is not None:
            printed += 1
            held += interval.low <= truth <= interval.high
    return Coverage(truth=truth, printed=printed / n_experiments, held=held / max(printed, 1))


def exact_coverage(p: float, n: int) -> Coverage:
    """Coverage of accuracy, by the binomial distribution of the clips that are right."""
    metric, held = metric_of("accuracy"), 0.0
    for right, chance in enumerate(binom.pmf(np.arange(n + 1), n, p)):
        if chance < 1e-9:
            continue
        y_true = np.zeros(n, np.int64)
        sample = Sample(y_true=y_true, y_score=np.eye(2, dtype=np.float32)[(np.arange(n) >= right).astype(int)])
        test_sets, names, groups = _laid_out(sample)
        units = plan_units([each.clip for each in test_sets], names=names, groups=groups)
        spread = jackknife(metric, test_sets, units)
        interval = interval_of(metric, spread, units, test_sets, by_seed=[spread.score])
        if interval.low is None or interval.high is None:
            return Coverage(truth=p, printed=0.0, held=0.0)
        held += float(chance) * (interval.low <= p <= interval.high)
    return Coverage(truth=p, printed=1.0, held=held)


def true_score(population: Population) -> float:
    if population.truth is not None:
        return population.truth
    sample = population.draw(np.random.default_rng(99), MANY)
    assert not isinstance(sample.y_score, tuple)
    return metric_of(population.metric).score(sample.y_true, sample.y_score)


def _laid_out(sample: Sample) -> tuple[list[TestSet], list[str], list[str] | None]:
    clip = np.arange(len(sample.y_true)) if sample.clip is None else sample.clip
    fold = clip % sample.n_folds
    y_scores = sample.y_score if isinstance(sample.y_score, tuple) else (sample.y_score,)
    test_sets = [
        TestSet(
            y_true=sample.y_true[fold == at],
            y_scores=tuple(each[fold == at] for each in y_scores),
            clip=clip[fold == at],
        )
        for at in range(sample.n_folds)
    ]
    names = [str(each) for each in range(int(clip.max()) + 1)]
    return test_sets, names, None if sample.group is None else [f"speaker {each}" for each in sample.group.tolist()]


# --- populations ------------------------------------------------------------------------------------------------------


def classes(
    rng: np.random.Generator, n: int, *, p: float, n_classes: int = 5, imbalanced: bool = False, n_folds: int = 1
) -> Sample:
    """Right with probability p, wrong ones spread over the other classes."""
    weights = 1.0 / np.arange(1, n_classes + 1) if imbalanced else np.ones(n_classes)
    y_true = rng.choice(n_classes, size=n, p=weights / weights.sum())
    right = rng.random(n) < p
    found = np.where(right, y_true, (y_true + 1 + rng.integers(n_classes - 1, size=n)) % n_classes)
    return Sample(y_true=y_true, y_score=np.eye(n_classes, dtype=np.float32)[found], n_folds=n_folds)


def speakers(rng: np.random.Generator, n: int, *, p: float, of_speaker: int = 10, alike: float = 0.2) -> Sample:
    """Clips of one speaker are alike: each speaker has a probability of its own, of a beta distribution about p."""
    n_groups = max(2, n // of_speaker)
    group = np.sort(rng.integers(n_groups, size=n))
    own = rng.beta(p * (1 / alike - 1), (1 - p) * (1 / alike - 1), n_groups)
    y_true = rng.integers(5, size=n)
    found = np.where(rng.random(n) < own[group], y_true, (y_true + 1) % 5)
    return Sample(y_true=y_true, y_score=np.eye(5, dtype=np.float32)[found], group=group)


def seeds(rng: np.random.Generator, n: int, *, p: float, n_seeds: int, by_seed: float) -> Sample:
    """Each seed of a head has an accuracy of its own, about p; clips differ in how hard they are."""
    hardness = rng.beta(8 * p, 8 * (1 - p), n)
    y_true = rng.integers(5, size=n)
    right = [rng.random(n) < np.clip(hardness + rng.normal(0, by_seed), 0, 1) for _ in range(n_seeds)]
    found = [np.where(each, y_true, (y_true + 1) % 5) for each in right]
    return Sample(y_true=y_true, y_score=tuple(np.eye(5, dtype=np.float32)[each] for each in found))


def label_sets(
    rng: np.random.Generator,
    n: int,
    *,
    distance: float,
    rate: float = 0.2,
    n_classes: int = 6,
    of_speaker: int = 0,
) -> Sample:
    """Scores of a class are `distance` deviations apart; with speakers, clips of one are raised or lowered together."""
    y_true = (rng.random((n, n_classes)) < rate).astype(np.float32)
    y_score = distance * y_true + rng.standard_normal((n, n_classes))
    if not of_speaker:
        return Sample(y_true=y_true, y_score=y_score)
    group = np.sort(rng.integers(max(2, n // of_speaker), size=n))
    offset = rng.normal(0, 0.5, (group.max() + 1, n_classes))
    return Sample(y_true=y_true, y_score=y_score + offset[group], group=group)


def two_classes(rng: np.random.Generator, n: int, *, distance: float, rate: float = 0.5) -> Sample:
    y_true = (rng.random(n) < rate).astype(np.int64)
    scores = distance * y_true + rng.standard_normal(n)
    return Sample(y_true=y_true, y_score=np.stack([-scores, scores], axis=1))


def counts(rng: np.random.Generator, n: int, *, found: float, false: float, events: float = 2.0) -> Sample:
    """Segments or events of four classes; how many of a clip's are found differs by clip."""
    y_true = rng.poisson(events, (n, 4))
    hits = rng.binomial(y_true, np.clip(rng.beta(6 * found, 6 * (1 - found), (n, 1)), 0, 1))
    return Sample(y_true=y_true, y_score=np.stack([hits + rng.poisson(false, (n, 4)), hits], -1).astype(float))


def words(rng: np.random.Generator, n: int, *, rate: float) -> Sample:
    """Word errors of clips of about ten words; how hard a clip is differs."""
    n_words = 1 + rng.poisson(9, n)
    hardness = rng.gamma(2.0, 0.5, n)
    return Sample(y_true=n_words, y_score=rng.poisson(np.minimum(rate * hardness, 3.0) * n_words).astype(float))


def queries(rng: np.random.Generator, n: int, *, p: float, captions: int = 5) -> Sample:
    """A clip's five captions ask for it, and it asks for them; clips differ in how easily they are found."""
    own = rng.beta(4 * p, 4 * (1 - p), n)
    clip = np.r_[np.arange(n), np.repeat(np.arange(n), captions)]
    direction = np.r_[np.zeros(n, np.int64), np.ones(n * captions, np.int64)]
    return Sample(y_true=direction, y_score=np.where(rng.random(len(clip)) < own[clip], 1.0, 2.0), clip=clip)


def numbers(rng: np.random.Generator, n: int, *, rho: float, skewed: bool = False) -> Sample:
    x = rng.standard_normal(n)
    y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n)
    return Sample(y_true=np.exp(x / 2) if skewed else x, y_score=(np.exp(y / 2) if skewed else y)[:, None])


def errors(rng: np.random.Generator, n: int, *, of: str) -> Sample:
    error = (
        rng.standard_normal(n) if of == "normal" else rng.standard_t(5, n) if of == "t of 5" else rng.laplace(size=n)
    )
    return Sample(y_true=np.zeros(n), y_score=error[:, None])


POPULATIONS = (
    *(Population("accuracy", f"p = {p}", partial(classes, p=p), p) for p in (0.02, 0.1, 0.5, 0.9, 0.98, 0.99)),
    *(Population("accuracy", f"5 folds, p = {p}", partial(classes, p=p, n_folds=5), p) for p in (0.1, 0.5, 0.9, 0.98)),
    *(
        Population("accuracy", f"speakers of {size} clips, p = {p}", partial(speakers, p=p, of_speaker=size), p)
        for p in (0.1, 0.5, 0.9, 0.97)
        for size in (3, 8)
    ),
    *(
        Population("accuracy", f"{n} seeds, p = {p}", partial(seeds, p=p, n_seeds=n, by_seed=0.02), p)
        for n in (3, 5)
        for p in (0.5, 0.9)
    ),
    *(Population("macro_f1", f"p = {p}", partial(classes, p=p)) for p in (0.05, 0.5, 0.9, 0.98)),
    *(Population("macro_f1", f"imbalanced, p = {p}", partial(classes, p=p, imbalanced=True)) for p in (0.5, 0.9)),
    Population("macro_f1", "20 classes, p = 0.9", partial(classes, p=0.9, n_classes=20)),
    Population("macro_f1", "5 folds, p = 0.9", partial(classes, p=0.9, n_folds=5)),
    Population("macro_f1", "speakers of 3 clips, p = 0.9", partial(speakers, p=0.9, of_speaker=3)),
    *(
        Population("mAP", f"20 % positives, distance {d}", partial(label_sets, distance=d))
        for d in (0.0, 1.2, 2.5, 4.0)
    ),
    Population("mAP", "5 % positives, distance 1.5", partial(label_sets, distance=1.5, rate=0.05)),
    Population("mAP", "speakers of 3 clips, distance 1.5", partial(label_sets, distance=1.5, of_speaker=3)),
    Population("mAP", "50 classes of 2 %, distance 1.5", partial(label_sets, distance=1.5, rate=0.02, n_classes=50)),
    *(
        Population("eer", f"distance {d}", partial(two_classes, distance=d), NORMAL.cdf(-d / 2))
        for d in (0.3, 1.5, 3.0, 4.0)
    ),
    *(
        Population(
            "eer", f"10 % positives, distance {d}", partial(two_classes, distance=d, rate=0.1), NORMAL.cdf(-d / 2)
        )
        for d in (1.5, 3.0)
    ),
    *(Population("d_prime", f"distance {d}", partial(two_classes, distance=d), d) for d in (0.0, 1.5, 3.0)),
    *(
        Population("d_prime", f"10 % positives, distance {d}", partial(two_classes, distance=d, rate=0.1), d)
        for d in (1.5, 3.0)
    ),
    *(
        Population(name, f"found {found}, false {false}", partial(counts, found=found, false=false))
        for name in ("segment_f1_micro", "segment_f1_macro")
        for found, false in ((0.05, 0.1), (0.5, 1.0), (0.97, 0.03))
    ),
    *(Population("wer_inv", f"WER {rate}", partial(words, rate=rate)) for rate in (0.02, 0.3, 0.8)),
    *(Population("recall_at_1", f"p = {p}", partial(queries, p=p)) for p in (0.02, 0.5, 0.97)),
    *(Population("pearson", f"rho = {rho}", partial(numbers, rho=rho), rho) for rho in (0.0, 0.5, 0.95)),
    *(
        Population("pearson", f"rho = {rho}, skewed", partial(numbers, rho=rho, skewed=True))
        for rho in (0.0, 0.5, 0.95)
    ),
    *(
        Population("spearman", f"rho = {rho}", partial(numbers, rho=rho), 6 / math.pi * math.asin(rho / 2))
        for rho in (0.0, 0.5, 0.95)
    ),
    *(
        Population(name, f"errors {of}", partial(errors, of=of), truth)
        for name, truths in (("mae", (math.sqrt(2 / math.pi), 1.0, None)), ("mse", (1.0, 2.0, 5 / 3)))
        for of, truth in zip(("normal", "Laplace", "t of 5"), truths, strict=True)
    ),
)


# --- false positives --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equals:
    """Encoders that are equally good: all are right on a clip with the same probability, which differs by clip.

    ``seeds`` above 1: each seed of each encoder has an accuracy of its own, normal about p with deviation ``by_seed``.
    """

    n_encoders: int
    p: float
    metric: str = "accuracy"
    seeds: int = 1
    by_seed: float = 0.0
    of_speaker: int = 0


EQUALS = (
    *(Equals(n, p) for n in (2, 8, 16) for p in (0.5, 0.9, 0.98)),
    *(Equals(n, p, metric="macro_f1") for n in (2, 8) for p in (0.5, 0.97)),
    *(Equals(n, 0.7, metric="mAP") for n in (2, 8)),
    *(Equals(n, 0.9, seeds=3, by_seed=0.02) for n in (2, 8)),
    *(Equals(n, 0.8, of_speaker=5) for n in (2, 8)),
)


def records_of(equals: Equals, rng: np.random.Generator, n: int) -> list[ScoreRecord]:
    """Score one test set by every encoder."""
    n_classes = 4
    hardness = rng.beta(4 * equals.p, 4 * (1 - equals.p), n)
    y_true = rng.integers(n_classes, size=n)
    groups = [f"speaker {clip // equals.of_speaker}" for clip in range(n)] if equals.of_speaker else None
    found = []
    for encoder in range(equals.n_encoders):
        alike = np.zeros(n)
        if equals.of_speaker:
            alike = np.repeat(rng.normal(0, 0.15, n // equals.of_speaker + 1), equals.of_speaker)[:n]
        y_scores = []
        for _ in range(equals.seeds):
            chance = hardness + alike + rng.normal(0, equals.by_seed)
            if equals.metric == "mAP":
                y_scores.append(np.eye(n_classes)[y_true] * 2 * hardness[:, None] + rng.standard_normal((n, n_classes)))
                continue
            wrong = (y_true + 1 + rng.integers(n_classes - 1, size=n)) % n_classes
            y_scores.append(np.eye(n_classes, dtype=np.float32)[np.where(rng.random(n) < chance, y_true, wrong)])
        test_set = TestSet(y_true=y_true, y_scores=tuple(y_scores), clip=np.arange(n))
        scores = score_test_sets(
            find_metric(equals.metric, "strict"), [test_set], clip_ids=[f"clip {at}" for at in range(n)], groups=groups
        )
        found.append(
            ScoreRecord(
                task="equal", title="Equal", track="A", protocol="strict", encoder=f"encoder {encoder}", fingerprint="0",
                metric=equals.metric, value=scores.value, std=scores.std, ci_low=scores.interval.low,
                ci_high=scores.interval.high, seeds=tuple(range(equals.seeds)) if equals.seeds > 1 else (), n_train=1,
                n_valid=1, n_test=n, n_skipped=0, eval_weight=1.0, private=False, seconds={}, manifest_sha256="",
                versions={}, details=scores.details, protocol_version=PROTOCOL_VERSION,
            )
        )  # fmt: skip
    return found


def false_positives(equals: Equals, n: int, *, n_experiments: int, seed: int = 0) -> float:
    """Share of leaderboards in which an encoder is marked as worse than another."""
    rng = np.random.default_rng([seed, n])
    wrong = 0
    for _ in range(n_experiments):
        (table,) = build(records_of(equals, rng, n)).tables
        (row,) = table.rows
        wrong += any(first_last != (1, equals.n_encoders) for first_last in row.ranks.values())
    return wrong / n_experiments


# --- tables -----------------------------------------------------------------------------------------------------------


COVERAGE_HEAD = ("| metric | population | true score | ", "|---|---|---:|")
FALSE_POSITIVES_HEAD = ("| metric | encoders | accuracy | seeds | by group | ", "|---|---:|---:|---:|---|")


def coverage_line(population: Population, *, scale: float, seed: int) -> str:
    truth = true_score(population)
    cells = []
    for n in SIZES:
        experiments = int((4000 if population.metric == "accuracy" and n < 1000 else 1000) * scale)
        found = (
            exact_coverage(truth, n)
            if population.metric == "accuracy" and population.name == f"p = {population.truth}"
            else coverage(population, n, n_experiments=experiments, truth=truth, seed=seed)
        )
        some = f" of {found.printed:.0%}" if found.printed < 0.995 else ""
        cells.append("none" if found.printed < 0.05 else f"{found.held:.1%}{some}")
    return f"| {population.metric} | {population.name} | {truth:.3f} | {' | '.join(cells)} |"


def false_positive_line(equals: Equals, *, scale: float, seed: int) -> str:
    cells = [f"{false_positives(equals, n, n_experiments=int(600 * scale), seed=seed):.1%}" for n in SIZES]
    group = f"of {equals.of_speaker} clips" if equals.of_speaker else "no"
    return f"| {equals.metric} | {equals.n_encoders} | {equals.p} | {equals.seeds} | {group} | {' | '.join(cells)} |"


def table(head: tuple[str, str], line: Callable[..., str], rows: Sequence[Any], **kwargs: float) -> Iterator[str]:
    """Lines of a table, whose rows are simulated on two cores."""
    yield head[0] + " | ".join(f"n = {n:,}" for n in SIZES) + " |"
    yield head[1] + "---:|" * len(SIZES)
    with get_context("spawn").Pool(2) as pool:
        yield from pool.imap(partial(line, **kwargs), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into docs/protocols.md")
    parser.add_argument("--scale", type=float, default=1.0, help="number of experiments, as a share of the usual ones")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found: dict[str, str] = {}
    for name, lines in (
        ("coverage", table(COVERAGE_HEAD, coverage_line, POPULATIONS, scale=asked.scale, seed=asked.seed)),
        (
            "false positives",
            table(FALSE_POSITIVES_HEAD, false_positive_line, EQUALS, scale=asked.scale, seed=asked.seed),
        ),
    ):
        printed = []
        for line in lines:
            print(line, flush=True)
            printed.append(line)
        found[name] = "\n".join(printed)
    if asked.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        for name, table_text in found.items():
            before, begin, rest = text.partition(f"<!-- {name} -->\n")
            _, end, after = rest.partition(f"<!-- end of {name} -->")
            text = f"{before}{begin}\n{table_text}\n\n{end}{after}"
        DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

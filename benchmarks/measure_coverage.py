"""Do the intervals of the measures of Track B hold the mean score of test sets of their size? By simulation.

    python -m benchmarks.measure_coverage                   prints the table of docs/protocols.md; 5 minutes
    python -m benchmarks.measure_coverage --protocol maeb   the same of mteb's scores
    python -m benchmarks.measure_coverage --write           writes it there

Classes are normal distributions around centres that are the same for all test sets. A cell has the share of test sets
whose interval holds the mean over all of them and, in brackets, the mean width of the intervals as a multiple of what it
should be: of the standard deviation of the score.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from featstore.records import ScoreRecord

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "protocols.md"
NAMES = {"strict": "coverage of measures", "maeb": "coverage of mteb's scores"}
DIM = 16
METRICS = {
    "mAP": ("retrieval", "mAP"),
    "nDCG@10": ("retrieval", "ndcg_at_10"),
    "R@1": ("retrieval", "recall_at_1"),
    "EER": ("pairs", "eer"),
    "AP of pairs": ("pairs", "average_precision"),
    "area": ("pairs", "roc_area"),
    "V-measure, k-means": ("clustering", "v_measure"),
    "V-measure, HDBSCAN": ("hdbscan", "v_measure"),
}
OF_MTEB = {
    "V-measure": "clustering",
    "AP of pairs": "pairs",
    "mAP of candidates": "reranking",
    "nDCG@10": "retrieval",
}


@dataclass(frozen=True)
class Population:
    """Classes at a distance from each other; with ``of_speaker``, so many clips of each speaker, who is a group."""

    n: int
    n_classes: int
    distance: float
    of_speaker: int = 1

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        centres = self.distance * np.random.default_rng(1).standard_normal((self.n_classes, DIM))
        speaker = np.arange(self.n) // self.of_speaker
        n_speakers = int(speaker[-1]) + 1
        y = rng.integers(self.n_classes, size=n_speakers)[speaker]
        X = centres[y] + rng.standard_normal((self.n, DIM))
        if self.of_speaker > 1:
            X += 0.6 * rng.standard_normal((n_speakers, DIM))[speaker]
        return X.astype(np.float32), y, speaker if self.of_speaker > 1 else None

    def __str__(self) -> str:
        speakers = f", speakers of {self.of_speaker} clips" if self.of_speaker > 1 else ""
        return f"{self.n} clips, {self.n_classes} classes, distance {self.distance:g}{speakers}"


POPULATIONS = (
    Population(60, 5, 1.2),
    Population(200, 10, 0.3),
    Population(200, 10, 0.7),
    Population(200, 2, 0.4),
    Population(200, 40, 0.8),
    Population(120, 4, 0.6, of_speaker=3),
)


def scores_of(population: Population, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """The metrics of one test set."""
    import featstore

    X, y, groups = population.draw(rng)
    found = {each.measure: each.details for each in featstore.measure_arrays(X, y, groups=groups)}
    by_measure = {name: details["scores"] for name, details in found.items()}
    by_measure["hdbscan"] = found["clustering"]["hdbscan"]["scores"]
    return {name: by_measure[measure][metric] for name, (measure, metric) in METRICS.items()}


def mteb_scores_of(population: Population, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """mteb's scores of one test set."""
    from featstore.evaluation.arrays import array_task
    from featstore.retrieve import score_measures

    X, y, groups = population.draw(rng)
    store, manifest = array_task(X, [f"c{label}" for label in y], groups=groups, test=None, metric=None)
    records = score_measures(store, manifest, encoder="arrays", measures=[*OF_MTEB.values()], protocol="maeb")
    return {
        name: {"value": each.value, "low": each.ci_low, "high": each.ci_high}
        for name, each in zip(OF_MTEB, records, strict=True)
        if isinstance(each, ScoreRecord)
    }


def line(population: Population, *, protocol: str, n_sets: int, seed: int) -> str:
    rng = np.random.default_rng([seed, population.n, population.n_classes])
    score = mteb_scores_of if protocol == "maeb" else scores_of
    drawn = [score(population, rng) for _ in range(n_sets)]
    cells = []
    for name in drawn[0]:
        values = np.array([each[name]["value"] for each in drawn])
        ends = np.array([[each[name]["low"], each[name]["high"]] for each in drawn if each[name]["low"] is not None])
        if len(ends) < 0.05 * n_sets:
            cells.append("none")
            continue
        held = np.mean((ends[:, 0] <= values.mean()) & (values.mean() <= ends[:, 1]))
        some = "" if len(ends) == n_sets else f" of {len(ends) / n_sets:.0%}"
        width = np.mean(ends[:, 1] - ends[:, 0]) / (2 * 1.96 * values.std(ddof=1))
        cells.append(f"{held:.0%}{some} ({width:.2f})")
    return f"| {population} | {' | '.join(cells)} |"


def table(*, protocol: str, n_sets: int, seed: int) -> Iterator[str]:
    columns = list(OF_MTEB if protocol == "maeb" else METRICS)
    yield f"| test set | {' | '.join(columns)} |"
    yield "|---|" + "---:|" * len(columns)
    with get_context("spawn").Pool(2) as pool:
        yield from pool.imap(partial(line, protocol=protocol, n_sets=n_sets, seed=seed), POPULATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure_coverage", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into docs/protocols.md")
    parser.add_argument("--protocol", choices=[*NAMES], default="strict")
    parser.add_argument("--sets", type=int, default=200, help="test sets of each row")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    printed = []
    for each in table(protocol=asked.protocol, n_sets=asked.sets, seed=asked.seed):
        print(each, flush=True)
        printed.append(each)
    if asked.write:
        name = NAMES[asked.protocol]
        text = DOCUMENT.read_text(encoding="utf-8")
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        DOCUMENT.write_text(f"{before}{begin}" + "\n".join(printed) + f"\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

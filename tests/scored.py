"""Score records with everything that a report draws, as tracks make them, without training anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import tiny
from featstore.records import ScoreRecord, sha256_of

N_UNITS = 200
HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror=window.pwned=1>',
    "</script></style></title><svg onload=window.pwned=1>",
    "' onmouseover='window.pwned=1",
    "{{ 7*7 }}{% raw %}",
    r"$\frac{1}{2}$ &amp; &lt;",
    "javascript:window.pwned=1",
    "\x00\x1b[2J\u202eback",
)


_ORDINARY: dict[str, Any] = {
    "task": "words",
    "title": "Words",
    "track": "A",
    "protocol": "strict",
    "encoder": "logmel",
    "fingerprint": "3f9c2a71",
    "metric": "accuracy",
    "value": 0.5,
    "std": 0.0,
    "ci_low": 0.5,
    "ci_high": 0.5,
    "seeds": (0, 1, 2),
    "n_train": 100,
    "n_valid": 10,
    "n_test": 20,
    "n_skipped": 0,
    "eval_weight": 20.0,
    "private": False,
    "seconds": {"train": 1.5},
    "manifest_sha256": "ab" * 32,
    "versions": {"featstore": "0.1.0"},
    "settings": {"head": "linear"},
    "features": {"words/test": "cd" * 8},
    "details": {"per_seed": [0.5, 0.5, 0.5]},
}


def score(**fields: Any) -> ScoreRecord:
    """Make a score; what is not given is ordinary."""
    return ScoreRecord(**{**_ORDINARY, **fields})


def scored(
    task: str,
    encoder: str,
    value: float,
    *,
    track: str = "A",
    protocol: str = "strict",
    title: str | None = None,
    metric: str = "accuracy",
    classes: Sequence[str] = (),
    private: bool = False,
    eval_weight: float = 100.0,
    curves: bool = True,
    left_out: Sequence[tuple[str, str, str]] = (),
) -> ScoreRecord:
    rng = np.random.default_rng(int(sha256_of([task, encoder, track]), 16) % 2**32)
    # what is hard for one encoder is hard for the others too: a standard error of 0.015, and of 0.005 of its own
    shared = np.random.default_rng(int(sha256_of([task]), 16) % 2**32).standard_normal(N_UNITS)
    deviations = (0.015 * shared + 0.005 * rng.standard_normal(N_UNITS)) / np.sqrt(N_UNITS)
    recipe = {**tiny.recipe(dim=16).as_json(), "encoder": encoder}
    details: dict[str, Any] = {
        "by_round": {"test": value},
        "by_seed": {"0": value, "1": value},
        "interval": {"method": "Wilson", "reason": ""},
        "spread": {
            "clips": sha256_of(task)[:32],
            "units": "clips",
            "n": N_UNITS,
            "variance": float(np.square(deviations).sum()),
            "deviations": deviations.tolist(),
        },
        "recipe": recipe,
        "left_out": [list(each) for each in left_out],
    }
    if classes:
        details |= by_class(classes, value, rng)
    if curves:
        if track == "B":
            details["k_curve"] = {str(k): float(value - 0.002 * k) for k in (1, 5, 10, 20)}
        details["shots"] = {
            str(n): {"mean": value * n / (n + 2), "std": 0.01, "low": value * n / (n + 3), "high": value * n / (n + 1)}
            for n in (1, 5, 10)
        }
    return ScoreRecord(
        task=task,
        title=task if title is None else title,
        track=track,  # type: ignore[arg-type]
        protocol=protocol,  # type: ignore[arg-type]
        encoder=encoder,
        fingerprint=sha256_of(encoder)[:8],
        metric=metric,
        value=value,
        std=0.004,
        ci_low=max(0.0, value - 0.03),
        ci_high=min(1.0, value + 0.03),
        seeds=(0, 1) if track == "A" else (),
        n_train=1000,
        n_valid=100,
        n_test=400,
        n_skipped=len(left_out),
        eval_weight=eval_weight,
        private=private,
        seconds={"read": 0.1, "train": 1.0},
        manifest_sha256=sha256_of(task),
        versions={"featstore": "0.1.0", "numpy": "2.4.6"},
        settings={"head": "linear"} if track == "A" else {"k": 10, "temperature": 0.07, "index": "flat"},
        features={"train": "ab" * 8, "test": "cd" * 8},
        details=details,
        protocol_version=2,
    )


def by_class(classes: Sequence[str], value: float, rng: np.random.Generator) -> dict[str, Any]:
    n = len(classes)
    support = rng.integers(5, 60, n)
    found: dict[str, Any] = {
        "classes": list(classes),
        "by_class": np.clip(value + 0.2 * rng.standard_normal(n), 0, 1).tolist(),
        "support": support.tolist(),
        "classes_not_in_training": [],
    }
    wrong = np.full(n, (1 - value) / max(1, n - 1))
    counts = np.array([rng.multinomial(m, _one_hot(wrong, at, value)) for at, m in enumerate(support)])
    if n <= 60:
        return {**found, "confusion": counts.tolist()}
    np.fill_diagonal(counts, 0)
    most = np.argsort(-counts, axis=None)[:100]
    return {**found, "confused": [[int(at // n), int(at % n), int(counts.flat[at])] for at in most]}


def _one_hot(wrong: np.ndarray, at: int, value: float) -> np.ndarray:
    shares = wrong.copy()
    shares[at] = value
    return shares / shares.sum()


def a_full_board(
    tasks: Iterable[str], encoders: Sequence[str], *, classes: Sequence[int], curves_every: int = 1
) -> list[ScoreRecord]:
    """Every task by every encoder on both tracks; task number i has ``classes[i % len(classes)]`` classes.

    One task in `curves_every` has curves by k and by shots.
    """
    records = []
    for at, task in enumerate(tasks):
        names = [f"class {number}" for number in range(classes[at % len(classes)])]
        for number, encoder in enumerate(encoders):
            for track in "AB":
                value = 0.3 + 0.02 * at + 0.03 * number - 0.05 * (track == "B")
                record = scored(
                    task,
                    encoder,
                    min(0.99, value),
                    track=track,
                    classes=names,
                    private=at % 9 == 8,
                    eval_weight=100.0 + at,
                    curves=at % curves_every == 0,
                    left_out=[("a.tar", "clip", "it has no samples")] if at == 0 else (),
                )
                records.append(record)
    return records


def hostile_records() -> list[ScoreRecord]:
    """Scores whose every text tries to be more than text."""
    return [
        scored(
            f"task {at}{text}", text, 0.5 + at / 50, track=track, title=text, metric=text, classes=[*HOSTILE, "\ud800"],
            left_out=[(text, text, text)],
        )
        for at, text in enumerate(HOSTILE)
        for track in "AB"
    ]  # fmt: skip

"""Scores by scikit-learn and NumPy, and a trained encoder in NumPy: nothing of featstore is imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, log_loss, roc_curve
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler

GRID = tuple(10.0 ** (half_decade / 2) for half_decade in range(-8, -1))
LOWEST_C, HIGHEST_C = 1e-6, 1e6

SAME_SIMILARITY = 1e-6
"""Cosines of unit vectors in float32 are off by some 1e-7: nearer ones have no order."""


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """A task's windows: their clip, its seconds and label, and the vector.

    Attributes
    ----------
    clip : str (windows,)
        ``split/key``.
    y : int64 (windows,) or (windows, n_classes)
        Place of the label in the sorted labels, or sets of 0 and 1.
    """

    X: NDArray[np.float64]
    clip: NDArray[np.str_]
    seconds: NDArray[np.float64]
    y: NDArray[np.int64]
    classes: tuple[str, ...]


def read_vectors(store: Path, *, encoder: str, dataset: str) -> Vectors:
    """Read what `store` has of an encoder's group and a dataset's group."""
    X, clip, seconds, labels = [], [], [], []
    for part in sorted((store / encoder / dataset).glob("*/*/utterance")):
        of = zarr.open_group(part.parent, mode="r")
        keys = [str(key).partition("#")[0] for key in of["key"][:]]
        X.append(np.asarray(of["utterance"][:], np.float64))
        clip += [f"{part.parent.parent.name}/{key}" for key in keys]
        seconds.append(np.asarray(of["seconds"][:]))
        labels += [json.loads(str(meta))["label"] for meta in of["meta"][:]]
    classes = sorted({name for label in labels for name in ([label] if isinstance(label, str) else label)})
    if isinstance(labels[0], str):
        y = np.array([classes.index(label) for label in labels])
    else:
        y = np.array([[name in label for name in classes] for label in labels]).astype(int)
    return Vectors(
        X=np.concatenate(X), clip=np.array(clip), seconds=np.concatenate(seconds), y=y, classes=tuple(classes)
    )


@dataclass(frozen=True, kw_only=True)
class Voted:
    """Clips, the shares (clips, n_classes) that their windows vote for, and what is true."""

    clip: NDArray[np.str_]
    shares: NDArray[np.float64]
    y: NDArray[np.int64]

    def score(self) -> float:
        """Accuracy, or mAP."""
        if self.y.ndim == 1:
            return float(accuracy_score(self.y, self.shares.argmax(axis=1)))
        return float(average_precision_score(self.y, self.shares, average="macro"))

    def loss(self) -> float:
        """Mean log loss of a clip; of sets of labels, of a label of a clip."""
        if self.y.ndim == 1:
            return float(log_loss(self.y, self.shares, labels=np.arange(self.shares.shape[1])))
        likely = np.clip(np.where(self.y > 0, self.shares, 1.0 - self.shares), 1e-300, None)
        return float(-np.log(likely).mean())


def vote(of: Vectors, windows: NDArray[np.bool_], shares: NDArray[np.float64]) -> Voted:
    """The windows of a clip vote, weighted by their seconds."""
    clips, first, place = np.unique(of.clip[windows], return_index=True, return_inverse=True)
    weights = of.seconds[windows]
    total = np.zeros((len(clips), shares.shape[1]))
    np.add.at(total, place, shares * weights[:, None])
    return Voted(
        clip=clips, shares=total / np.bincount(place, weights)[:, None], y=of.y[windows][first]
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Regression:
    """What scikit-learn chooses in one round, and how it votes on the test clips."""

    C: float
    tested: Voted


def logistic_regression(of: Vectors, *, train: Sequence[str], valid: Sequence[str], test: Sequence[str]) -> Regression:
    """Fit every strength to convergence; validation chooses by score, of equals by loss.

    The grid has half decades. While its first or last strength is the best, and the last extension improved the score,
    it is extended by a decade.
    """
    trained, selects, tested = (np.isin(of.clip, clips) for clips in (train, valid, test))
    scaler = StandardScaler().fit(of.X[trained])

    def voted(model: LogisticRegression, windows: NDArray[np.bool_]) -> Voted:
        logits = model.decision_function(scaler.transform(of.X[windows]))
        if of.y.ndim == 2:
            return vote(of, windows, expit(logits))
        shares = np.zeros((len(logits), len(of.classes)))
        shares[:, model.classes_] = softmax(logits, axis=1)
        return vote(of, windows, shares)

    models: dict[float, LogisticRegression] = {}
    validated: dict[float, tuple[float, float]] = {}
    pending, reached = list(GRID), -np.inf
    while pending:
        for C in pending:
            model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
            if of.y.ndim == 2:
                model = OneVsRestClassifier(model)
            models[C] = model.fit(scaler.transform(of.X[trained]), of.y[trained])
            selected = voted(model, selects)
            validated[C] = selected.score(), -selected.loss()
        best = max(sorted(validated), key=lambda C: validated[C])
        beyond = (
            {max(validated): (1, 2), min(validated): (-1, -2)}.get(best, ()) if validated[best][0] > reached else ()
        )
        reached = validated[best][0]
        pending = [C for C in (best * 10 ** (step / 2) for step in beyond) if LOWEST_C * 0.99 < C < HIGHEST_C * 1.01]
    return Regression(C=best, tested=voted(models[best], tested))


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """How the nearest neighbours vote, and which clips have a window whose last one could as well be another."""

    voted: Voted
    tied: NDArray[np.bool_]


def nearest_neighbours(of: Vectors, *, k: int = 10, temperature: float = 0.07) -> Neighbours:
    """Cosine; the training split votes on the test split, or, where there is one set for all, all other clips do."""
    queries = np.char.startswith(of.clip, "test/")
    reference = queries if queries.all() else np.char.startswith(of.clip, "train/")
    unit = of.X / np.linalg.norm(of.X, axis=1, keepdims=True)
    similarity = unit[queries] @ unit[reference].T
    similarity[of.clip[queries][:, None] == of.clip[reference]] = -np.inf
    order = np.argsort(-similarity, axis=1)
    nearest, next_one = order[:, :k], order[:, k : k + 1]
    similarities = np.take_along_axis(similarity, nearest, axis=1)
    weights = softmax(similarities / temperature, axis=1)
    held = of.y[reference] if of.y.ndim == 2 else np.eye(len(of.classes))[of.y[reference]]
    voted = vote(of, queries, np.einsum("qk,qkc->qc", weights, held[nearest]))
    # Neighbours who all agree are 1, whatever the rounding of their weights: average precision ranks by it.
    voted = replace(voted, shares=voted.shares.astype(np.float32).astype(np.float64))
    tied = similarities[:, -1] - np.take_along_axis(similarity, next_one, axis=1)[:, 0] < SAME_SIMILARITY
    return Neighbours(voted=voted, tied=np.isin(voted.clip, of.clip[queries][tied]))


def mel_power(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples,) at 16 kHz -> (1 + samples // 160, 40), as librosa 0.11's ``melspectrogram(n_fft=400, n_mels=40)``."""
    padded = np.pad(wave, 200)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160]
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    hertz = np.arange(0, 8000 + 1, 40)
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = [mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27) for mel in np.linspace(0, top, 42)]
    filters = [
        np.interp(hertz, [low, middle, high], [0, 2 / (high - low), 0], left=0, right=0)
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    return power @ np.array(filters).T


def speaker_vector(wave: NDArray[np.float64], weights: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """GE2E's vector (256,) of a clip (samples,) at 16 kHz: three LSTM layers written out, in float64."""
    x = mel_power(wave * max(1.0, 10 ** (-30 / 20) / np.sqrt(np.mean(wave**2))))
    for layer in range(3):
        of_input, of_state, b1, b2 = (
            weights[f"lstm.{name}_l{layer}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h, c, states = np.zeros(256), np.zeros(256), []
        for driven in x @ of_input.T + b1 + b2:
            i, f, g, o = np.split(driven + of_state @ h, 4)
            c = expit(f) * c + expit(i) * np.tanh(g)
            h = expit(o) * np.tanh(c)
            states.append(h)
        x = np.array(states)
    vector = np.maximum(weights["linear.weight"] @ x[-1] + weights["linear.bias"], 0)
    return vector / np.linalg.norm(vector)


def compared_clips(of: Vectors, folds: Sequence[Sequence[str]]) -> tuple[float, float]:
    """Mean average precision of retrieving test clips by clips, and the equal error rate of all pairs.

    A clip is the mean of its windows by seconds; clips of different folds are compared, or with one fold all clips.
    """
    tested = np.isin(of.clip, np.concatenate(folds))
    clips = vote(of, tested, of.X[tested])
    unit = clips.shares / np.linalg.norm(clips.shares, axis=1, keepdims=True)
    fold = np.array([next(at for at, members in enumerate(folds) if clip in set(members)) for clip in clips.clip])
    same = clips.y[:, None] == clips.y if clips.y.ndim == 1 else clips.y @ clips.y.T > 0
    similarity, apart = unit @ unit.T, ~np.eye(len(unit), dtype=bool)
    if len(folds) > 1:
        apart &= fold[:, None] != fold
    precision = [
        average_precision_score(same[at, apart[at]], similarity[at, apart[at]])
        for at in range(len(unit))
        if same[at, apart[at]].any()
    ]
    pairs = np.triu(apart)
    alarms, found, _ = roc_curve(same[pairs], similarity[pairs], drop_intermediate=False)
    at = int(np.argmin(np.abs(1 - found - alarms)))
    return float(np.mean(precision)), float((1 - found[at] + alarms[at]) / 2)

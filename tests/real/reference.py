"""Scores by scikit-learn and by NumPy, of vectors that zarr alone reads: nothing of featstore is imported here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler


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


def logistic_regression(
    of: Vectors, *, train: Sequence[str], valid: Sequence[str], test: Sequence[str], grid: Sequence[float]
) -> Regression:
    """Fit every strength to convergence; validation chooses by score, of equals by loss."""
    trained, selects, tested = (np.isin(of.clip, clips) for clips in (train, valid, test))
    scaler = StandardScaler().fit(of.X[trained])
    found = []
    for C in grid:
        model = LogisticRegression(C=C, tol=1e-8, max_iter=10_000)
        if of.y.ndim == 2:
            model = OneVsRestClassifier(model)
        model.fit(scaler.transform(of.X[trained]), of.y[trained])

        def voted(windows: NDArray[np.bool_], model: LogisticRegression = model) -> Voted:
            logits = model.decision_function(scaler.transform(of.X[windows]))
            if of.y.ndim == 2:
                return vote(of, windows, expit(logits))
            shares = np.zeros((len(logits), len(of.classes)))
            shares[:, model.classes_] = softmax(logits, axis=1)
            return vote(of, windows, shares)

        validated = voted(selects)
        found.append((validated.score(), -validated.loss(), C, voted(tested)))
    _, _, C, best = max(found, key=lambda each: each[:2])
    return Regression(C=C, tested=best)


def nearest_neighbours(of: Vectors, *, k: int = 10, temperature: float = 0.07) -> Voted:
    """Cosine; the training split votes on the test split, or, where there is one set for all, all other clips do."""
    queries = np.char.startswith(of.clip, "test/")
    reference = queries if queries.all() else np.char.startswith(of.clip, "train/")
    unit = of.X / np.linalg.norm(of.X, axis=1, keepdims=True)
    similarity = unit[queries] @ unit[reference].T
    similarity[of.clip[queries][:, None] == of.clip[reference]] = -np.inf
    nearest = np.argsort(-similarity, axis=1)[:, :k]
    weights = softmax(np.take_along_axis(similarity, nearest, axis=1) / temperature, axis=1)
    held = of.y[reference] if of.y.ndim == 2 else np.eye(len(of.classes))[of.y[reference]]
    return vote(of, queries, np.einsum("qk,qkc->qc", weights, held[nearest]))

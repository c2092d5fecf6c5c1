"""The linear models that a training set of classes or label sets takes, and the logits of all classes from theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CERTAIN", "ClassModels"]

CERTAIN = 100.0
"""Absolute logit of a class that no training clip has, or that all have."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassModels:
    """One multinomial model of the classes in training (binomial for two), or one binary model for each label.

    Attributes
    ----------
    classes : int64 (n,)
        Classes that have a model.
    per_class : bool
        Whether models are binary, with targets of 0 and 1.
    y : int64 (samples,), or float32 (samples, n_models) if ``per_class``
        Targets of the models.
    certain : bool (n_classes,)
        Labels that all training samples have.
    """

    classes: NDArray[np.int64]
    per_class: bool
    y: Tensor
    certain: NDArray[np.bool_]

    @classmethod
    def of(cls, y: NDArray[Any], *, n_classes: int) -> ClassModels:
        """Plan the models of class indices (samples,), or of multi-hot labels (samples, n_classes)."""
        certain = np.zeros(n_classes, bool)
        if y.ndim == 2:
            classes = np.flatnonzero(y.min(axis=0) < y.max(axis=0))
            targets = torch.from_numpy(np.ascontiguousarray(y[:, classes], np.float32))
            return cls(classes=classes, per_class=True, y=targets, certain=y.min(axis=0) > 0)
        classes = np.unique(y)
        known = np.searchsorted(classes, y)
        if len(classes) == 2:
            targets = torch.from_numpy(known.astype(np.float32)[:, None])
            return cls(classes=classes, per_class=True, y=targets, certain=certain)
        return cls(classes=classes, per_class=False, y=torch.from_numpy(known), certain=certain)

    @property
    def n_models(self) -> int:
        """Number of logits."""
        return self.y.shape[1] if self.per_class else len(self.classes)

    def expand(self, of_models: Tensor, *, missing: float | None = None) -> Tensor:
        """Expand columns (n, n_models) to all classes; classes without a model get a certain logit, or ``missing``."""
        columns = torch.full((len(of_models), len(self.certain)), -CERTAIN if missing is None else missing)
        if missing is None:
            columns[:, torch.from_numpy(self.certain)] = CERTAIN
        if self.per_class and self.y.shape[1] < len(self.classes):  # two classes share a binomial model
            columns[:, int(self.classes[0])] = 0.0
            columns[:, int(self.classes[1])] = of_models[:, 0]
        else:
            columns[:, torch.from_numpy(self.classes)] = of_models
        return columns

"""Word and character error rates, by jiwer, an optional library: ``pip install featstore[asr]``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, missing_extra

__all__ = ["Edits", "InverseErrorRate", "count_edits", "require_jiwer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """Edits that turn each hypothesis into its reference.

    Attributes
    ----------
    n_edits : int64 (n,)
        Substitutions, deletions and insertions of a shortest edit.
    n_reference : int64 (n,)
        Words, or characters, of the reference.
    """

    n_edits: NDArray[np.int64]
    n_reference: NDArray[np.int64]

    @property
    def rate(self) -> float:
        """Edits per word (or character) of all references. Raises DataError if all references are empty."""
        if not self.n_reference.sum():
            raise DataError(f"an error rate needs a reference with a word; all {len(self.n_reference)} are empty")
        return float(self.n_edits.sum() / self.n_reference.sum())


def require_jiwer() -> None:
    """Raise UsageError with the command to install jiwer if it is missing."""
    _jiwer()


def count_edits(references: Sequence[str], hypotheses: Sequence[str], *, unit: Literal["word", "character"]) -> Edits:
    """Count the edits between references and hypotheses, pair by pair.

    Words are separated by spaces. There is no other normalisation.

    Raises
    ------
    UsageError
        jiwer is not installed.
    """
    jiwer = _jiwer()
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    n_edits = np.zeros(len(references), np.int64)
    n_reference = np.zeros(len(references), np.int64)
    # jiwer has no rate for an empty reference: every word of its hypothesis is an insertion.
    not_empty = [at for at, reference in enumerate(references) if reference.strip()]
    for at in set(range(len(references))) - set(not_empty):
        hypothesis = hypotheses[at].strip()
        n_edits[at] = len(hypothesis.split()) if unit == "word" else len(hypothesis)
    if not_empty:
        found = process([references[at] for at in not_empty], [hypotheses[at] for at in not_empty])
        n_edits[not_empty] = [sum(map(_cost, chunks)) for chunks in found.alignments]
        n_reference[not_empty] = [len(reference) for reference in found.references]
    return Edits(n_edits=n_edits, n_reference=n_reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseErrorRate:
    """``max(0, 1 - error rate)`` of all samples together, as X-ARES scores speech recognition.

    See `featstore.metrics.Metric`. ``y_true`` (n,) is the number of words (or characters) of each reference,
    ``y_score`` (n,) the number of edits; see `count_edits`.
    """

    name: str = "wer_inv"
    higher_is_better: bool = True
    libraries: tuple[str, ...] = ("jiwer",)

    def score(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> float:
        """Score of all samples. Raises DataError if no reference has a word."""
        edits = Edits(n_edits=y_score.astype(np.int64), n_reference=y_true.astype(np.int64))
        return max(0.0, 1.0 - edits.rate)

    def weighted(
        self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]], weights: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Score for each column of ``weights``; NaN if a column has no word."""
        counts = weights.astype(np.float64)
        edits, words = np.asarray(y_score, np.float64) @ counts, np.asarray(y_true, np.float64) @ counts
        rate = np.divide(edits, words, out=np.full(len(words), np.nan), where=words > 0)
        return np.asarray(np.maximum(0.0, 1.0 - rate), dtype=np.float64)

    def per_class(self, y_true: NDArray[Any], y_score: NDArray[np.floating[Any]]) -> NDArray[np.float64]:  # noqa: ARG002
        """Return an empty array (0,): texts have no classes."""
        return np.zeros(0)


def _cost(chunk: Any) -> int:
    if chunk.type == "equal":
        return 0
    return int(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))


def _jiwer() -> Any:
    try:
        return importlib.import_module("jiwer")
    except ModuleNotFoundError as error:
        raise missing_extra("the word error rate", error, "asr") from None

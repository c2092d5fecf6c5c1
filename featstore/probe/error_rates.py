"""What heads made of speech, beside what was said: the result of a round of the kinds ``ctc`` and ``asr``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.metrics import TestSet
from featstore.metrics.wer import count_edits
from featstore.probe.verdict import RoundResult
from featstore.splits import Round

if TYPE_CHECKING:
    from featstore.probe.fitting import Fitted

__all__ = ["compare_texts"]

N_EXAMPLES = 5


def compare_texts(
    each: Round,
    *,
    clips: NDArray[np.int64],
    references: Sequence[str],
    said: Sequence[Sequence[str]],
    fits: Sequence[Fitted],
    details: Mapping[str, Any],
) -> RoundResult:
    """Count the edits between the texts of a round's test clips and what was made of them.

    Parameters
    ----------
    clips : int64 (n,)
        The test clips, in the order of their texts.
    references : sequence of str (n,)
        What was said, in the form that words are compared in.
    said : sequence of sequence of str (seeds, n)
        What was made of it, in the same form.
    details : mapping
        More numbers of the round.
    """
    words = [count_edits(references, texts, unit="word") for texts in said]
    characters = [count_edits(references, texts, unit="character") for texts in said]
    return RoundResult(
        round=each,
        test_set=TestSet(
            y_true=words[0].n_reference,
            y_scores=tuple(of.n_edits.astype(np.float64) for of in words),
            clip=clips,
        ),
        fits=tuple(fits),
        details={
            "wer": float(np.mean([of.rate for of in words])),
            "cer": float(np.mean([of.rate for of in characters])),
            **details,
            "examples": [list(pair) for pair in zip(references[:N_EXAMPLES], said[0][:N_EXAMPLES], strict=True)],
        },
    )

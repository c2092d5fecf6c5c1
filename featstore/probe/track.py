"""One task's linear probe, from the store to a score."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, cast, get_args
from typing import Protocol as Interface

from featstore.errors import UsageError
from featstore.records import Protocol, ScoreRecord
from featstore.taskdata import check_shots

if TYPE_CHECKING:
    from featstore.manifest import Manifest
    from featstore.store import Store

__all__ = ["Head", "KindScorer", "probe_task"]

Head = Literal["linear", "sweep", "logreg"]

SEEDS: Mapping[Protocol, tuple[int, ...]] = {"strict": (0, 1, 2), "xares": (42,)}


class KindScorer(Interface):
    """What scores the tasks of one kind: it trains, selects and tests as the protocol has it, and builds the record."""

    def __call__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        encoder: str | None,
        protocol: Protocol,
        seeds: tuple[int, ...],
    ) -> ScoreRecord:
        """Score one task; ``seeds`` are one or more different numbers from 0 on."""


# Kinds of one target for each clip, whose heads can be chosen: see featstore.probe.clips.
CLIP_KINDS = ("clip", "multilabel")

# Module and function by kind, imported when a task of that kind comes.
SCORERS: Mapping[str, tuple[str, str]] = {
    "frame": ("featstore.probe.frame", "score_frames"),
    "regression": ("featstore.probe.regression", "score_regression"),
    "contrastive": ("featstore.probe.contrastive", "score_contrastive"),
    "ctc": ("featstore.probe.ctc", "score_ctc"),
    "asr": ("featstore.probe.asr", "score_asr"),
}


def probe_task(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None = None,
    protocol: Protocol = "strict",
    seeds: tuple[int, ...] | None = None,
    head: str = "linear",
    shots: tuple[int, ...] = (),
) -> ScoreRecord:
    """Train a linear head on a task's cached embeddings and score it.

    An epoch is selected on the round's validation clips: see `featstore.splits.plan_rounds` for which these are under
    each protocol.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; not needed where the store holds one encoder.
    protocol : "strict" or "xares"
    seeds : tuple of int, optional
        Of initial weights and batch order: (0, 1, 2) under ``strict``, (42,) under ``xares``.
    head : "linear", "sweep" or "logreg"
        ``linear`` is the manifest's. Kinds ``clip`` and ``multilabel`` also have ``sweep``, a grid of learning rates
        and weight decays, and ``logreg``, scikit-learn's logistic regression; validation chooses.
    shots : tuple of int, optional
        Kinds ``clip`` and ``multilabel`` only: ``details["shots"]`` has the scores of linear heads that learn from so
        many clips of each class.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The labels or the embeddings cannot be learned from.
    UsageError
        The head, the metric or the kind of the task is not one that the probe knows.
    """
    _check_options(manifest, head=head, shots=shots)
    seeds = SEEDS[protocol] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds must be one or more different numbers from 0 on, got {seeds}")
    if manifest.kind in CLIP_KINDS:
        from featstore.probe.clips import score_clips

        return score_clips(
            store, manifest, encoder=encoder, protocol=protocol, seeds=seeds, head=cast(Head, head), shots=shots
        )
    module, name = SCORERS[manifest.kind]
    scorer: KindScorer = getattr(importlib.import_module(module), name)
    return scorer(store, manifest, encoder=encoder, protocol=protocol, seeds=seeds)


def _check_options(manifest: Manifest, *, head: str, shots: tuple[int, ...]) -> None:
    check_shots(shots)
    if head not in get_args(Head):
        raise UsageError(f"there is no head {head!r}; there are {', '.join(get_args(Head))}")
    if manifest.kind not in CLIP_KINDS and (head != "linear" or shots):
        asked = f"--head {head}" if head != "linear" else "--shots"
        raise UsageError(
            f"{asked} is for tasks of kind {' and '.join(CLIP_KINDS)}, and {manifest.name} is of kind {manifest.kind}"
        )

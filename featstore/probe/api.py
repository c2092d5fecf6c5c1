"""Score one task with a trained head: `probe_task` selects the scorer of the task's kind."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, get_args
from typing import Protocol as Interface

from featstore.errors import UsageError
from featstore.evaluation import check_shots
from featstore.probe.selection import Head
from featstore.records import Protocol, ScoreRecord

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["KindScorer", "probe_task"]

ALIASES: Mapping[str, Head] = {"logreg": "logistic"}

SEEDS: Mapping[Protocol, tuple[int, ...]] = {"strict": (0, 1, 2), "xares": (42,)}


class KindScorer(Interface):
    """Scores the tasks of one kind: trains, selects and tests a head by the protocol, and returns the record."""

    def __call__(
        self,
        store: Store,
        manifest: Manifest,
        *,
        encoder: str | None,
        protocol: Protocol,
        seeds: tuple[int, ...],
        head: Head,
    ) -> ScoreRecord:
        """Score one task; ``seeds`` are unique and non-negative, ``head`` is one of `HEADS` for the task's kind."""


HEADS: Mapping[str, tuple[Head, ...]] = {
    "clip": ("logistic", "linear", "sweep"),
    "multilabel": ("logistic", "linear", "sweep"),
    "regression": ("ridge", "linear"),
    "frame": ("sweep", "linear"),
    "contrastive": ("sweep", "linear"),
    "ctc": ("sweep", "linear"),
    "asr": ("sweep", "linear"),
}
"""Heads by kind. The first is the default under ``strict``; ``xares`` uses ``linear``."""

# Kinds with one target per clip: see featstore.probe.clips.
CLIP_KINDS = ("clip", "multilabel")

# Module and function by kind, imported on first use.
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
    head: str | None = None,
    shots: tuple[int, ...] = (),
) -> ScoreRecord:
    """Train a head on a task's stored embeddings and score it.

    Regularisation strengths, learning rates and epochs are selected on the validation clips of each round
    (`featstore.tasks.splits.plan_rounds` makes the rounds of each protocol). The selected model is tested as it is; it
    is not refitted on training plus validation clips.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; optional where the store has one encoder.
    protocol : "strict" or "xares"
    seeds : tuple of int, optional
        Seeds of the initial weights and the batch order; by default (0, 1, 2) under ``strict`` and (42,) under
        ``xares``. ``logistic`` and ``ridge`` use no seed.
    head : str, optional
        ``logistic`` (kinds ``clip`` and ``multilabel``; alias ``logreg``) and ``ridge`` (kind ``regression``):
        converged linear models on standardised features. ``sweep`` (all kinds but ``regression``): minibatches on
        standardised features with early stopping, at a learning rate selected by validation. ``linear``: the schedule
        of X-ARES with the manifest's epochs, batch size and learning rate. Default under ``strict``: the manifest's
        ``[probe] head``, else the first of `HEADS` for the kind; under ``xares``: ``linear``.
    shots : tuple of int, optional
        Kinds ``clip`` and ``multilabel`` only: ``details["shots"]`` reports the scores of heads that are trained on
        this many clips of each class.


    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid.
    UsageError
        The head, the metric, the seeds or ``shots`` do not apply to the task.
    """
    if protocol not in SEEDS:
        raise UsageError(f"protocol {protocol} has no Track A: run `featstore retrieve --protocol {protocol}`")
    chosen = _head_of(manifest, requested=head, protocol=protocol)
    check_shots(shots)
    if shots and manifest.kind not in CLIP_KINDS:
        raise UsageError(
            f"--shots is for tasks of kind {' and '.join(CLIP_KINDS)}, and {manifest.name} is of kind {manifest.kind}"
        )
    seeds = SEEDS[protocol] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds must be one or more unique non-negative numbers, got {seeds}")
    if manifest.kind in CLIP_KINDS:
        from featstore.probe.clips import score_clips

        return score_clips(store, manifest, encoder=encoder, protocol=protocol, seeds=seeds, head=chosen, shots=shots)
    module, name = SCORERS[manifest.kind]
    scorer: KindScorer = getattr(importlib.import_module(module), name)
    return scorer(store, manifest, encoder=encoder, protocol=protocol, seeds=seeds, head=chosen)


def _head_of(manifest: Manifest, *, requested: str | None, protocol: Protocol) -> Head:
    """The head that was requested, else the default. Raises UsageError where the task's kind does not have it."""
    heads = HEADS[manifest.kind]
    named = manifest.probe.head if requested is None and protocol == "strict" else requested
    if named is None:
        return "linear" if protocol == "xares" else heads[0]
    head = ALIASES.get(named, named)
    if head not in get_args(Head):
        raise UsageError(f"there is no head {named!r}; there are {', '.join((*get_args(Head), *ALIASES))}")
    if head not in heads:
        kinds = [kind for kind, its_heads in HEADS.items() if head in its_heads]
        raise UsageError(
            f"--head {named} is for tasks of kind {' and '.join(kinds)}, and {manifest.name} is of kind "
            f"{manifest.kind}: take {' or '.join(heads)}"
        )
    return head

"""One task's probe, from the store to a score."""

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
    """What scores the tasks of one kind: it trains, selects and tests as the protocol has it, and builds the record."""

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
        """Score one task; ``seeds`` are one or more different numbers from 0 on, ``head`` is one of its kind's."""


HEADS: Mapping[str, tuple[Head, ...]] = {
    "clip": ("logistic", "linear", "sweep"),
    "multilabel": ("logistic", "linear", "sweep"),
    "regression": ("ridge", "linear"),
    "frame": ("sweep", "linear"),
    "contrastive": ("sweep", "linear"),
    "ctc": ("sweep", "linear"),
    "asr": ("sweep", "linear"),
}
"""By kind; the first is what ``strict`` takes. ``xares`` takes ``linear``."""

# Kinds of one target for each clip: see featstore.probe.clips.
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
    head: str | None = None,
    shots: tuple[int, ...] = (),
) -> ScoreRecord:
    """Train a head on a task's cached embeddings and score it.

    Strengths, learning rates and epochs are selected on the round's validation clips:
    `featstore.tasks.splits.plan_rounds` chooses these for each protocol. The selected model is tested as it is; it is
    not fitted again with the validation clips.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str, optional
        ``"logmel"`` or ``"logmel@3f9c2a71"``; not needed where the store holds one encoder.
    protocol : "strict" or "xares"
    seeds : tuple of int, optional
        Of initial weights and batch order: (0, 1, 2) under ``strict``, (42,) under ``xares``. ``logistic`` and
        ``ridge`` have none.
    head : str, optional
        ``logistic`` (kinds ``clip`` and ``multilabel``; ``logreg`` is another name of it) and ``ridge`` (kind
        ``regression``): converged linear models on standardised features. ``sweep`` (all but ``regression``):
        minibatches on standardised features, at a learning rate that validation chooses, until validation stops
        improving. ``linear``: X-ARES's schedule, as the manifest says. By default that of the manifest's ``[probe]
        head``, else the converged model of the kind or ``sweep`` under ``strict``; ``linear`` under ``xares``.
    shots : tuple of int, optional
        Kinds ``clip`` and ``multilabel`` only: ``details["shots"]`` has the scores of heads that learn from so many
        clips of each class.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs; the message says what to run.
    LabelError, DataError
        The labels or the embeddings cannot be learned from.
    UsageError
        The head, the metric or the kind of the task is not one that the probe knows.
    """
    chosen = _head_of(manifest, asked=head, protocol=protocol)
    check_shots(shots)
    if shots and manifest.kind not in CLIP_KINDS:
        raise UsageError(
            f"--shots is for tasks of kind {' and '.join(CLIP_KINDS)}, and {manifest.name} is of kind {manifest.kind}"
        )
    seeds = SEEDS[protocol] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds must be one or more different numbers from 0 on, got {seeds}")
    if manifest.kind in CLIP_KINDS:
        from featstore.probe.clips import score_clips

        return score_clips(store, manifest, encoder=encoder, protocol=protocol, seeds=seeds, head=chosen, shots=shots)
    module, name = SCORERS[manifest.kind]
    scorer: KindScorer = getattr(importlib.import_module(module), name)
    return scorer(store, manifest, encoder=encoder, protocol=protocol, seeds=seeds, head=chosen)


def _head_of(manifest: Manifest, *, asked: str | None, protocol: Protocol) -> Head:
    """The head that is asked for, or the default. Raises UsageError for one that the task's kind does not have."""
    heads = HEADS[manifest.kind]
    named = manifest.probe.head if asked is None and protocol == "strict" else asked
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

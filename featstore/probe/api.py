"""Score one task with a trained head: `probe_task` selects the scorer of the task's kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from featstore.errors import UsageError
from featstore.evaluation import check_shots
from featstore.probe.selection import Head
from featstore.probe.split_by import with_random_folds
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import SplitBy

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["probe_task"]

ALIASES: Mapping[str, Head] = {"logreg": "logistic"}

SEEDS: Mapping[Protocol, tuple[int, ...]] = {"strict": (0, 1, 2), "xares": (42,)}


HEADS: Mapping[str, tuple[Head, ...]] = {
    "clip": ("logistic", "linear", "sweep", "layer-mix"),
    "multilabel": ("logistic", "linear", "sweep", "layer-mix"),
    "regression": ("ridge", "linear", "layer-mix"),
    "frame": ("sweep", "linear", "layer-mix"),
    "contrastive": ("sweep", "linear"),
    "ctc": ("sweep", "linear", "layer-mix"),
    "asr": ("sweep", "linear", "layer-mix"),
}
"""Heads by kind. The first is the default under ``strict``; ``xares`` uses ``linear``."""

# Kinds with one class or one set of labels per clip: see featstore.probe.clips.
CLIP_KINDS = ("clip", "multilabel")

# Kinds whose clips can be split again, stratified by their labels.
SPLIT_KINDS = ("clip", "multilabel", "regression", "frame")

# Module and function by kind, imported on first use.
SCORERS: Mapping[str, tuple[str, str]] = {
    "clip": ("featstore.probe.clips", "score_clips"),
    "multilabel": ("featstore.probe.clips", "score_clips"),
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
    split_by: str | None = None,
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
        of X-ARES with the manifest's epochs, batch size and learning rate. ``layer-mix`` (all kinds but
        ``contrastive``, under ``strict``): the default head of the kind on a weighted sum of the layers of an encoder,
        learned with the weights (`featstore.probe.layer_mix`); `encoder` is then its name without a layer. All
        utterance vectors are in memory; frames are read chunk by chunk. Default under ``strict``: the manifest's
        ``[probe] head``, else the first of `HEADS` for the kind; under ``xares``: ``linear``.
    shots : tuple of int, optional
        Kinds ``clip`` and ``multilabel`` only: ``details["shots"]`` reports the scores of heads that are trained on
        this many clips of each class.
    split_by : str, optional
        Field of a clip's JSON, or ``"group"`` for that of the manifest's ``[splits] group``. All clips of the task are
        assigned to five folds of complete groups, stratified by label, in place of the declared splits. The score of
        five random folds and the difference are in ``details["random_folds"]``. Kinds ``clip``, ``multilabel``,
        ``regression`` and ``frame``, under ``strict``.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks embeddings that the task needs; the message gives the command to run.
    LabelError, DataError
        The labels or the embeddings are invalid.
    UsageError
        The head, the metric, the seeds, ``shots`` or ``split_by`` do not apply to the task.
    """
    if protocol not in SEEDS:
        raise UsageError(f"protocol {protocol} has no Track A: run `featstore retrieve --protocol {protocol}`")
    chosen = _head_of(manifest, requested=head, protocol=protocol)
    check_shots(shots)
    if shots and manifest.kind not in CLIP_KINDS:
        raise UsageError(
            f"--shots is for tasks of kind {' and '.join(CLIP_KINDS)}, and {manifest.name} is of kind {manifest.kind}"
        )
    if chosen == "layer-mix" and (shots or protocol == "xares"):
        what = "--shots" if shots else "--protocol xares"
        raise UsageError(f"--head layer-mix does not support {what}")
    field = None if split_by is None else _group_field(manifest, split_by, protocol=protocol)
    seeds = SEEDS[protocol] if seeds is None else seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError(f"seeds must be one or more unique non-negative numbers, got {seeds}")
    module, name = SCORERS[manifest.kind]
    options: dict[str, Any] = {"encoder": encoder, "protocol": protocol, "seeds": seeds, "head": chosen}
    if manifest.kind in CLIP_KINDS:
        options["shots"] = shots
    scorer: Callable[..., ScoreRecord] = partial(
        getattr(importlib.import_module(module), name), store, manifest, **options
    )
    if field is None:
        return scorer()
    grouped = scorer(split_by=SplitBy(field=field))
    return with_random_folds(grouped, scorer(split_by=SplitBy(field=field, is_grouped=False)), field=field)


def _group_field(manifest: Manifest, split_by: str, *, protocol: Protocol) -> str:
    """Field of a clip's JSON that holds its group. Raises UsageError where a task cannot be split by it."""
    if protocol == "xares":
        raise UsageError("--split-by is for --protocol strict: xares uses the declared splits")
    if manifest.kind not in SPLIT_KINDS:
        raise UsageError(
            f"--split-by is for tasks of kind {', '.join(SPLIT_KINDS)}, and {manifest.name} is of kind {manifest.kind}"
        )
    return manifest.group or split_by if split_by == "group" else split_by


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

"""Kind ``frame``: train a linear head on every frame; score by segments and, under ``strict``, by events.

``--head layer-mix`` is the linear head of a weighted sum of the layers' frames: see `featstore.probe.layer_mix`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from featstore.evaluation import (
    FrameTask,
    Samples,
    Stopwatch,
    load_frame_task,
    score_outcomes,
    score_record,
)
from featstore.evaluation.layers import LayeredFrameTask, load_layered_frame_task, record_of_family
from featstore.metrics import Metric, TestSet, find_metric
from featstore.metrics.classification import Average, CountF1
from featstore.probe import frame_heads
from featstore.probe.frame_heads import FrameFeatures, WorkerThreads
from featstore.probe.frame_scoring import (
    Excerpts,
    Group,
    Rows,
    SegmentGroups,
    count_events,
    count_segments,
    excerpts_of,
    segment_groups,
)
from featstore.probe.layer_mix import frame_products
from featstore.probe.linear import Trained, layer_normalised
from featstore.probe.selection import selection_details, weight_details
from featstore.probe.standardisation import Standardisation
from featstore.probe.training import over_seeds
from featstore.records import Protocol, ScoreRecord
from featstore.tasks.splits import Round, SplitBy

if TYPE_CHECKING:
    from featstore.probe.selection import Head
    from featstore.store import Store
    from featstore.tasks import Manifest

__all__ = ["score_frames"]

ONSET_TOLERANCE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """Frames of a task, and the thread pool that processes them; ``products`` are of the layers of a mix."""

    features: FrameFeatures
    products: Tensor | None
    threads: WorkerThreads

    def rows(self, part: _Part, group: range, head: Trained) -> Rows:
        return frame_heads.frame_logits(self.features, part.excerpts, group, head)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The training, validation or test clips of a round, as rows of frames with their targets."""

    samples: Samples
    excerpts: Excerpts
    segments: SegmentGroups
    true: NDArray[np.int64]


def score_frames(
    store: Store,
    manifest: Manifest,
    *,
    encoder: str | None,
    protocol: Protocol,
    seeds: tuple[int, ...],
    head: Head,
    split_by: SplitBy | None = None,
) -> ScoreRecord:
    """Score a task of kind ``frame``.

    Frames are read from disk through a memory map, chunk by chunk, so a set may be larger than memory. ``layer-mix``
    reads those of all layers.
    """
    metric = find_metric(manifest.metric, protocol)
    watch = Stopwatch()
    load = load_layered_frame_task if head == "layer-mix" else load_frame_task
    with watch("read"):
        task = load(store, manifest, encoder=encoder, protocol=protocol, split_by=split_by)
    with frame_heads.worker_threads() as threads:
        outcomes, events, trained = [], [], []
        frames = None
        for number, each in enumerate(task.rounds):
            with watch("train"):
                if frames is None or head != "linear":
                    frames = _frames_of(task, each, threads, head=head)
                trained.append(_train(task, frames, number, metric=metric, seeds=seeds, head=head))
            with watch("score"):
                part = _part(task, each.test)
                found, events_of_round = zip(
                    *(_predicted_counts(task, frames, part, layer) for layer in trained[-1]), strict=True
                )
                events.append([counts for counts in events_of_round if counts is not None])
                outcomes.append(TestSet(y_true=part.true, y_scores=found, clip=part.samples.clip))
    with watch("score"):
        scores = score_outcomes(task, outcomes)
    details = selection_details(task.rounds, trained)
    layers = list(task.family.layers) if isinstance(task, LayeredFrameTask) else None
    if layers is not None:
        details["layer_weights"] = weight_details(layers, [each.layer_weights for of in trained for each in of])
    if protocol == "strict":
        details["event_f1"] = _event_f1(events, average="micro" if manifest.metric.endswith("micro") else "macro")
    record = score_record(
        task,
        scores,
        track="A",
        seeds=seeds,
        settings={
            "head": head,
            **({} if layers is None else {"layers": layers}),
            **manifest.probe.model_dump(
                exclude_none=True, exclude={"head"} if head == "linear" else {"head", "epochs", "learning_rate"}
            ),
            **manifest.metric_args.model_dump(exclude_none=True),
        },
        seconds=watch.seconds,
        libraries=("torch",),
        details=details,
    )
    return record_of_family(record, task.family) if isinstance(task, LayeredFrameTask) else record


def _part(task: FrameTask, clips: NDArray[np.int64]) -> _Part:
    samples = task.samples(clips)
    excerpts = excerpts_of(task, samples)
    segments = segment_groups(task, samples, excerpts)
    return _Part(samples=samples, excerpts=excerpts, segments=segments, true=segments.true_counts())


def _frames_of(task: FrameTask, each: Round, threads: WorkerThreads, *, head: Head) -> _Frames:
    """Frames normalised for a head: standardised by the round's training clips, or by LayerNorm."""
    normalise: frame_heads.Normalise = layer_normalised
    n_layers, products = 1, None
    if head != "linear":
        windows = task.samples(each.train).windows.tolist()
        statistics = Standardisation.of_chunks(task.frames[window] for window in windows)
        normalise = frame_heads.standardised_by(statistics)
        if isinstance(task, LayeredFrameTask):
            n_layers = len(task.family.layers)
            products = frame_products((task.frames[window] for window in windows), statistics, n_layers=n_layers)
    dim = task.recipe.dim * n_layers
    features = frame_heads.FrameFeatures(task.frames, dim=dim, threads=threads, normalise=normalise)
    return _Frames(features=features, products=products, threads=threads)


def _train(
    task: FrameTask, frames: _Frames, number: int, *, metric: Metric, seeds: tuple[int, ...], head: Head
) -> tuple[Trained, ...]:
    """Heads of a round, one per seed."""
    each, probe = task.rounds[number], task.manifest.probe
    excerpts = excerpts_of(task, task.samples(each.train))
    score = _validation(task, frames, each, metric=metric, head=head)

    def train(*, seed: int, rates: Sequence[float]) -> Trained:
        return frame_heads.train_frame_head(
            frames.features,
            excerpts,
            threads=frames.threads,
            padded=task.protocol == "xares",
            pos_weight=probe.pos_weight or 1.0,
            seed=(seed, number),
            score=score,
            epochs=probe.epochs,
            batch_size=probe.batch_size,
            learning_rate=probe.learning_rate,
            rates=None if head == "linear" else rates,
            products=frames.products,
        )

    return tuple(over_seeds(seeds, train))


def _validation(
    task: FrameTask, frames: _Frames, each: Round, *, metric: Metric, head: Head
) -> Callable[[Trained], tuple[float, float]] | None:
    """Return a function from a head to its metric and a tie-breaker: minus the loss, or 0 for `linear`."""
    if not len(each.valid):
        return None
    part = _part(task, each.valid)
    pos_weight = task.manifest.probe.pos_weight or 1.0

    def score(layer: Trained) -> tuple[float, float]:
        losses = []

        def rows(group: range) -> Rows:
            found = frames.rows(part, group, layer)
            if head != "linear":
                losses.append((group.start, _loss_sum(part, group, found.logits, pos_weight=pos_weight)))
            return found

        found = part.segments.predicted_counts(rows, each=frames.threads.map)
        return metric.score(part.true, found), -sum(loss for _, loss in sorted(losses))

    return score


def _loss_sum(part: _Part, group: range, logits: NDArray[np.float32], *, pos_weight: float) -> float:
    excerpts = part.excerpts
    targets = np.concatenate([excerpts.targets(at, start=0, stop=int(excerpts.n_rows[at])) for at in group])
    losses = np.logaddexp(0.0, np.where(targets, -logits, logits)) * np.where(targets, pos_weight, 1.0)
    return float(losses.sum(dtype=np.float64))


def _predicted_counts(
    task: FrameTask, frames: _Frames, part: _Part, head: Trained
) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.float64]] | None]:
    """Segment counts by sample and, under ``strict``, event counts (true, and predicted and matched)."""

    def count(group: Group) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.float64]] | None]:
        rows = frames.rows(part, group.samples, head)
        if task.protocol != "strict":
            return count_segments(group, rows), None
        events = count_events(
            task,
            part.samples,
            part.excerpts,
            group.samples,
            logits=rows.logits,
            tolerance_seconds=ONSET_TOLERANCE_SECONDS,
        )
        return count_segments(group, rows), events

    segments, by_group = zip(*frames.threads.map(count, part.segments.groups), strict=True)
    events = [each for each in by_group if each is not None]
    if not events:
        return np.concatenate(segments), None
    true, found = zip(*events, strict=True)
    return np.concatenate(segments), (np.concatenate(true), np.concatenate(found))


def _event_f1(
    events: Sequence[Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]], *, average: Average
) -> Mapping[str, Any]:
    """Onset-based event F1 with the averaging of the task's segment F1; the mean over rounds and seeds."""
    metric = CountF1(name="event_f1", average=average, absent_class="skip")
    values = [metric.score(true, found) for of_round in events for true, found in of_round]
    return {"value": float(np.mean(values)), "average": average, "onset_tolerance_seconds": ONSET_TOLERANCE_SECONDS}

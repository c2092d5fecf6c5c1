"""A task of kind ``frame``: its windows on the clips' own time axes, and the events in them. Frames stay on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError
from featstore.evaluation.data import Samples, Targets, check_round, group_windows, rarest_label
from featstore.evaluation.leakage import check_sides
from featstore.evaluation.pool import read_windows
from featstore.records import Protocol, Recipe, SkippedClip
from featstore.tasks.splits import Round, plan_rounds

if TYPE_CHECKING:
    from featstore.store import FeatureSet, Frames, Store
    from featstore.tasks import Manifest

__all__ = ["Events", "FrameReader", "FrameTask", "load_frame_task"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events of all clips, those of a clip behind one another.

    Attributes
    ----------
    onset, offset : float64 (events,)
        In seconds of the clip.
    label : int64 (events,)
        Index of the class.
    bounds : int64 (n_clips + 1,)
        The events of clip ``i`` are ``bounds[i]`` to ``bounds[i + 1]``.
    """

    onset: NDArray[np.float64]
    offset: NDArray[np.float64]
    label: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def of(self, clip: int) -> slice:
        """Where a clip's events are."""
        return slice(int(self.bounds[clip]), int(self.bounds[clip + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Frames of the windows of several feature sets, read when they are asked for.

    Attributes
    ----------
    lengths : int64 (windows,)
        How many frames each window has.
    """

    frames: tuple[Frames, ...]
    lengths: NDArray[np.int64]
    firsts: tuple[int, ...]

    def __getitem__(self, window: int) -> NDArray[Any]:
        """Frames of one window, (lengths[window], dim) of the stored type: not to be written to."""
        part = bisect_right(self.firsts, window) - 1
        return self.frames[part][window - self.firsts[part]][: self.lengths[window]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTask:
    """A task's windows, the events of its clips, and who trains, selects and is tested.

    Attributes
    ----------
    frames : FrameReader
        By window. Under ``strict`` without what an encoder said of padding, under ``xares`` as they are stored.
    start_seconds, seconds : float64 (windows,)
        Where each window begins in its clip, and its true duration.
    clip : int64 (windows,)
        Clip of each window; rising.
    clip_id : tuple of str (n_clips,)
        ``set/key``.
    events : Events
    targets : Targets
        By clip: which classes some event is of.
    rounds : tuple of Round
        Of clips.
    features : mapping
        Name of a feature set -> content hash of what was read.
    sets : tuple of FeatureSet
        Those whose windows follow one another.
    members : mapping
        Name of a feature set -> int64 (n,), its clips; in the order of ``sets``.
    left_out : tuple of SkippedClip
        Clips that are not in the store, each with its reason.
    groups : tuple of str (n_clips,), optional
        Group of each clip, where the manifest names a field for it.
    """

    manifest: Manifest
    protocol: Protocol
    recipe: Recipe
    frames: FrameReader
    start_seconds: NDArray[np.float64]
    seconds: NDArray[np.float64]
    clip: NDArray[np.int64]
    clip_id: tuple[str, ...]
    events: Events
    targets: Targets
    rounds: tuple[Round, ...]
    features: Mapping[str, str]
    sets: tuple[FeatureSet, ...]
    members: Mapping[str, NDArray[np.int64]]
    left_out: tuple[SkippedClip, ...]
    groups: tuple[str, ...] | None = None

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.recipe.hop_seconds

    def samples(self, clips: NDArray[np.int64]) -> Samples:
        """Group the windows of some clips: by clip under ``strict``, each by itself under ``xares``.

        ``y_true`` says which classes a sample's clip has events of.
        """
        return group_windows(
            clips, clip=self.clip, seconds=self.seconds, values=self.targets.values, protocol=self.protocol
        )


def load_frame_task(store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol) -> FrameTask:
    """Find a task's frames, read its events and plan its rounds.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str or None
        ``"logmel"``, ``"logmel@3f9c2a71"``, or None where the store holds one encoder.
    protocol : "strict" or "xares"

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store does not hold what the task needs, or no frames of it; the message says what to run.
    LabelError
        A clip has no usable events, or the training clips of a round show no event.
    DataError
        A split has no clip.
    """
    windows = read_windows(store, manifest, encoder=encoder)
    frames = tuple(each.frames for each in windows.sets)
    stored = np.concatenate([each.lengths for each in frames])
    if not stored.all():
        key = windows.ids[windows.clip[int(np.argmin(stored))]]
        raise DataError(f"task {manifest.name}: clip {key} has a window without frames: extract it again")
    real = np.maximum(1, np.rint(windows.seconds / windows.recipe.hop_seconds)).astype(np.int64)
    lengths = stored if protocol == "xares" else np.minimum(stored, real)
    events, targets = _read_events(manifest, windows.keys, windows.metas)
    rounds = plan_rounds(
        protocol=protocol,
        members=windows.members,
        roles=None if manifest.folds is not None else manifest.feature_sets,
        ids=windows.ids,
        stratify=targets.stratify,
        groups=windows.groups,
    )
    check_sides(windows, rounds, protocol=protocol, task=manifest.name)
    for each in rounds:
        check_round(each, targets, task=manifest.name, least=1)
    return FrameTask(
        manifest=manifest,
        protocol=protocol,
        recipe=windows.recipe,
        frames=FrameReader(
            frames=frames,
            lengths=lengths,
            firsts=tuple(np.cumsum([0, *(len(each) for each in windows.sets[:-1])]).tolist()),
        ),
        start_seconds=np.concatenate([each.start_seconds for each in windows.sets]),
        seconds=windows.seconds,
        clip=windows.clip,
        clip_id=windows.ids,
        events=events,
        targets=targets,
        rounds=rounds,
        features=windows.features,
        sets=windows.sets,
        members=windows.members,
        left_out=windows.left_out,
        groups=windows.groups,
    )


def _read_events(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> tuple[Events, Targets]:
    from featstore.tasks import labels

    by_clip = labels.field_events(manifest, keys, metas)
    classes = labels.class_names(manifest, (event.label for events in by_clip for event in events))
    index = {name: number for number, name in enumerate(classes)}
    flat = [event for events in by_clip for event in events]
    bounds = np.cumsum([0, *(len(events) for events in by_clip)])
    label = np.array([index[event.label] for event in flat], dtype=np.int64)
    shown = np.zeros((len(by_clip), len(classes)), np.float32)
    shown[np.repeat(np.arange(len(by_clip)), np.diff(bounds)), label] = 1.0
    events = Events(
        onset=np.array([event.onset for event in flat], dtype=np.float64),
        offset=np.array([event.offset for event in flat], dtype=np.float64),
        label=label,
        bounds=bounds,
    )
    return events, Targets(values=shown, classes=classes, stratify=lambda clips: rarest_label(shown, clips))

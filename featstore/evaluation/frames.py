"""Tasks of kind ``frame``: windows on the time axes of their clips, and their events. Frames are not read here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, UnknownFeatureSet
from featstore.evaluation.data import Targets, TaskWindows, plan_task, rarest_label
from featstore.evaluation.pool import Windows, extract_command, read_windows
from featstore.records import Protocol

if TYPE_CHECKING:
    from featstore.store import Frames, Store
    from featstore.tasks import Manifest
    from featstore.tasks.splits import SplitBy

__all__ = ["Events", "FrameReader", "FrameTask", "load_frame_task", "read_frames"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Events of all clips, concatenated in clip order.

    Attributes
    ----------
    onset, offset : float64 (events,)
        In seconds from the start of the clip.
    label : int64 (events,)
        Class index.
    bounds : int64 (n_clips + 1,)
        The events of clip ``i`` are ``bounds[i]:bounds[i + 1]``.
    """

    onset: NDArray[np.float64]
    offset: NDArray[np.float64]
    label: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def of(self, clip: int) -> slice:
        """Return the slice of a clip's events."""
        return slice(int(self.bounds[clip]), int(self.bounds[clip + 1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Frames of the windows of several feature sets, read on access.

    Attributes
    ----------
    frames : tuple of tuple of Frames
        For each layer of an encoder that is read, one for each feature set.
    lengths : int64 (windows,)
        Number of frames of each window.
    firsts : tuple of int
        First window of each feature set.
    """

    frames: tuple[tuple[Frames, ...], ...]
    lengths: NDArray[np.int64]
    firsts: tuple[int, ...]

    def __getitem__(self, window: int) -> NDArray[Any]:
        """Return the frames of one window, (lengths[window], layers x dim), in the stored dtype. They are read-only."""
        part = bisect_right(self.firsts, window) - 1
        row, length = window - self.firsts[part], self.lengths[window]
        layers = [of_layer[part][row][:length] for of_layer in self.frames]
        return layers[0] if len(layers) == 1 else np.concatenate(layers, axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTask(TaskWindows):
    """A task's frames, with the events and rounds; see `TaskWindows`.

    ``targets`` and ``samples(...).y_true`` are the classes of the events of each clip.

    Attributes
    ----------
    frames : FrameReader
        Frames by window: without padding frames under ``strict``, as stored under ``xares``.
    start_seconds : float64 (windows,)
        Start of each window in its clip.
    events : Events
    """

    frames: FrameReader
    start_seconds: NDArray[np.float64]
    events: Events

    @property
    def hop_seconds(self) -> float:
        """Time from one frame to the next."""
        return self.recipe.hop_seconds


def load_frame_task(
    store: Store, manifest: Manifest, *, encoder: str | None, protocol: Protocol, split_by: SplitBy | None = None
) -> FrameTask:
    """Find a task's frames, read its events and plan its rounds.

    Parameters
    ----------
    store : Store
    manifest : Manifest
    encoder : str or None
        ``"logmel"``, ``"logmel@3f9c2a71"``, or None if the store has one encoder.
    protocol : "strict" or "xares"
    split_by : SplitBy, optional
        Folds of all clips, in place of the declared splits.

    Raises
    ------
    UnknownFeatureSet, AmbiguousSelection
        The store lacks a feature set of the task, or its frames; the message has the command to run.
    LabelError
        A clip has no usable events, or the training clips of a round have no event.
    DataError
        A split has no clip.
    """
    group = None if split_by is None else split_by.field
    windows = read_windows(store, manifest, encoder=encoder, group=group)
    frames = read_frames(store, manifest, windows, protocol=protocol)
    events, targets = _read_events(manifest, windows.keys, windows.metas)
    return FrameTask.of(
        windows,
        manifest=manifest,
        protocol=protocol,
        targets=targets,
        rounds=plan_task(manifest, windows, protocol=protocol, targets=targets, split_by=split_by),
        frames=frames,
        start_seconds=np.concatenate([each.start_seconds for each in windows.sets]),
        events=events,
    )


def read_frames(store: Store, manifest: Manifest, windows: Windows, *, protocol: Protocol) -> FrameReader:
    """Open the frames of some windows: without those of padding under ``strict``, as stored under ``xares``.

    Raises
    ------
    UnknownFeatureSet
        A feature set has no frames; the message has the command to run.
    DataError
        A window has no frame.
    """
    without = sorted({each.split for each in windows.sets if not each.has_frames})
    if without:
        raise UnknownFeatureSet(
            f"task {manifest.name}: {store.url} has no frames of {manifest.feature_dataset} {', '.join(without)} by "
            f"{windows.recipe.group_name}: run "
            f"`{extract_command(manifest, windows.recipe, store, options=' --frames always')}`"
        )
    frames = tuple(each.frames for each in windows.sets)
    stored = np.concatenate([each.lengths for each in frames])
    if not stored.all():
        key = windows.clip_id[windows.clip[int(np.argmin(stored))]]
        raise DataError(f"task {manifest.name}: clip {key} has a window without frames: extract it again")
    real = np.maximum(1, np.rint(windows.seconds / windows.recipe.hop_seconds)).astype(np.int64)
    return FrameReader(
        frames=(frames,),
        lengths=stored if protocol == "xares" else np.minimum(stored, real),
        firsts=tuple(np.cumsum([0, *(len(each) for each in windows.sets[:-1])]).tolist()),
    )


def _read_events(manifest: Manifest, keys: Sequence[str], metas: Sequence[str]) -> tuple[Events, Targets]:
    from featstore.tasks import labels

    by_clip = labels.field_events(manifest, keys, metas)
    classes = labels.class_names(manifest, (event.label for events in by_clip for event in events))
    index = {name: number for number, name in enumerate(classes)}
    flat = [event for events in by_clip for event in events]
    bounds = np.cumsum([0, *(len(events) for events in by_clip)])
    label = np.array([index[event.label] for event in flat], dtype=np.int64)
    present = np.zeros((len(by_clip), len(classes)), np.float32)
    present[np.repeat(np.arange(len(by_clip)), np.diff(bounds)), label] = 1.0
    events = Events(
        onset=np.array([event.onset for event in flat], dtype=np.float64),
        offset=np.array([event.offset for event in flat], dtype=np.float64),
        label=label,
        bounds=bounds,
    )
    return events, Targets(values=present, classes=classes, stratify=lambda clips: rarest_label(present, clips))

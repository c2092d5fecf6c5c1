"""The same random features twice: in a store of featstore's, and in the tars that X-ARES keeps its embeddings in."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIM", "HOP_SECONDS", "Sizes", "declared_task", "store_url", "write_features"]

DIM, HOP_SECONDS = 768, 0.04
ENCODER = "GivenEncoder"
FOLD_CLASSES, DECLARED_CLASSES = 50, 20
EVENT_CLASSES = ("Cat", "Speech", "Running_water", "Dishes", "Dog", "Frying")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Clips of each fold, of training, validation and test, of scenes for training and evaluation; frames of a scene.

    ``frames_per_clip`` is what X-ARES keeps of a clip in a second copy of the tars, each frame the vector: in the first
    it keeps one.
    """

    fold: int
    declared: tuple[int, int, int]
    scenes: tuple[int, int]
    frames_per_scene: int
    frames_per_clip: int


def write_features(*, folder: str, sizes: dict[str, Any]) -> None:
    """Write ESC-50's five folds, a task of declared splits, and DESED's frames, below ``store.zarr`` and ``xares``.

    Values are rounded to float16, which featstore keeps frames in, and X-ARES reads them as the float32 they are.
    """
    given = Sizes(**{name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()})
    rng = np.random.default_rng(0)
    root = Path(folder)
    centres = 0.2 * rng.standard_normal((FOLD_CLASSES, DIM))
    for fold in range(1, 6):
        labels = np.arange(given.fold) % FOLD_CLASSES
        X = _rounded(centres[labels] + rng.standard_normal((len(labels), DIM)))
        metas = [{"label": int(label)} for label in labels]
        _write_store(root, "esc50", str(fold), X, metas, shard=f"wds-audio-fold-{fold}-000000.tar")
        _write_tar(root / "xares", "esc50", f"fold-{fold}-", [row[None] for row in X], metas)
        spread = np.zeros((given.frames_per_clip, 1), np.float32)
        _write_tar(root / "frames", "esc50", f"fold-{fold}-", (row[None] + spread for row in X), metas)
    centres = 0.12 * rng.standard_normal((DECLARED_CLASSES, DIM))
    for split, n_clips in zip(("train", "valid", "test"), given.declared, strict=True):
        labels = np.arange(n_clips) % DECLARED_CLASSES
        X = _rounded(centres[labels] + rng.standard_normal((n_clips, DIM)))
        metas = [{"label": f"class-{label:02d}"} for label in labels]
        _write_store(root, "declared", split, X, metas, shard=f"{split}.tar")
        _write_tar(root / "xares", "declared", split, [row[None] for row in X], metas)
        spread = np.zeros((given.frames_per_clip, 1), np.float32)
        _write_tar(root / "frames", "declared", split, (row[None] + spread for row in X), metas)
    centres = 0.5 * rng.standard_normal((len(EVENT_CLASSES), DIM))
    for split, n_clips, name in zip(("train", "test"), given.scenes, ("train", "eval"), strict=True):
        scenes = [_scene(rng, centres, n_frames=given.frames_per_scene) for _ in range(n_clips)]
        frames, events = [frames for frames, _ in scenes], [events for _, events in scenes]
        X = np.stack([each.mean(axis=0) for each in frames])
        _write_store(root, "desed", split, X, events, shard=f"wds-audio-{name}-000000.tar", frames=frames)
        _write_tar(root / "xares", "desed", f"wds-audio-{name}", frames, events)


def declared_task(*, epochs: int = 10, batch_size: int = 32) -> dict[str, Any]:
    """The manifest of the task of declared splits, as a mapping."""
    return {
        "name": "declared",
        "title": "Declared splits",
        "kind": "clip",
        "metric": "accuracy",
        "eval_weight": 1.0,
        "data": {"dataset": "declared"},
        "splits": {split: f"{split}*.tar" for split in ("train", "valid", "test")},
        "label": {"field": "label", "classes": [f"class-{label:02d}" for label in range(DECLARED_CLASSES)]},
        "probe": {"epochs": epochs, "learning_rate": 1e-3, "batch_size": batch_size},
        "retrieve": {"k": 10, "temperature": 0.07},
    }


def store_url(folder: str | Path) -> str:
    return str(Path(folder) / "store.zarr")


def _scene(
    rng: np.random.Generator, centres: NDArray[np.float64], *, n_frames: int
) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
    frames = rng.standard_normal((n_frames, DIM))
    events = []
    for _ in range(3):
        which, first = int(rng.integers(len(EVENT_CLASSES))), int(rng.integers(n_frames - 10))
        last = min(n_frames, first + int(rng.integers(10, 80)))
        frames[first:last] += centres[which]
        times = {"onset": round(first * HOP_SECONDS, 4), "offset": round(last * HOP_SECONDS, 4)}
        events.append({**times, "label": EVENT_CLASSES[which]})
    return _rounded(frames), events


def _rounded(X: NDArray[np.float64]) -> NDArray[np.float32]:
    return X.astype(np.float16).astype(np.float32)


def _write_tar(
    root: Path, task: str, name: str, clips: Sequence[NDArray[np.float32]] | Iterator[Any], metas: Sequence[Any]
) -> None:
    """As X-ARES writes it: frames (frames, dim) and the labels of each clip."""
    path = root / task / "embeddings" / ENCODER / f"wds-encoded-{name}000000.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (frames, meta) in enumerate(zip(clips, metas, strict=True)):
            out = io.BytesIO()
            np.save(out, frames)
            for extension, content in (("npy", out.getvalue()), ("json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _write_store(
    folder: Path,
    dataset: str,
    split: str,
    X: NDArray[np.float32],
    metas: Sequence[Any],
    *,
    shard: str,
    frames: Sequence[NDArray[np.float32]] | None = None,
) -> None:
    from benchmarks.recipes import commit_made_up, made_up_recipe
    from featstore.store import EmbeddedWindow, open_split_writer

    recipe = made_up_recipe("given", dim=DIM, hop_seconds=HOP_SECONDS, padding="xares")
    writer = open_split_writer(
        store_url(folder), recipe=recipe, spec="given", dataset=dataset, crop_seconds=None, split=split
    )
    seconds = 5.0 if frames is None else HOP_SECONDS * len(frames[0])
    with writer.begin_part(shard) as part:
        for number, (vector, meta) in enumerate(zip(X, metas, strict=True)):
            part.add(
                EmbeddedWindow(
                    key=f"{split}-{number:06d}",
                    meta=json.dumps(meta),
                    start_seconds=0.0,
                    seconds=seconds,
                    utterance=vector,
                    frames=None if frames is None else frames[number].astype(np.float16),
                )
            )
        commit_made_up(part, shard, clips=len(X), audio_seconds=seconds * len(X))
    writer.write_catalogue()

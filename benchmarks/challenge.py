"""A store with random embeddings of every task of the challenge, in the numbers and lengths that its data sets have.

Each class has a centre, and vectors and frames lie around it with the spectrum of trained encoders
(`benchmarks.recipes.power_law_mixing`).
Numbers of clips are those that the authors of the data sets give for their splits. Where X-ARES has a set of its own
(its private tasks, the subset of VoxLingua33, the excerpts of MAESTRO), the test clips are the task's weight, which
counts them, and the training clips are assumed: `ASSUMED` names these tasks. Labels are read by the manifests that
ship, from JSON as they ask for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.recipes import commit_made_up, made_up_recipe, power_law_mixing

__all__ = ["ASSUMED", "SIZES", "Sizes", "write_challenge"]

DIM, HOP_SECONDS = 768, 0.04
WINDOWS_PER_PART = 20_000
N_WORDS, WORDS_OF_A_CAPTION, N_CAPTIONS = 4366, (8, 20), 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Clips of each split, or of every fold, and the shortest and longest of them in seconds."""

    clips: tuple[int, ...]
    seconds: tuple[float, float]
    classes: int | None = None  # where the manifest leaves them to be observed


SIZES: Mapping[str, Sizes] = {
    "asvspoof2015": Sizes(clips=(16_375, 53_372, 193_404), seconds=(1, 6)),
    "clotho": Sizes(clips=(3839, 1045, 1045), seconds=(15, 30)),
    "cremad": Sizes(clips=(5155, 1171, 1116), seconds=(1, 5)),
    "desed": Sizes(clips=(2584, 1153, 1153), seconds=(10, 10)),
    "esc50": Sizes(clips=(400,), seconds=(5, 5), classes=50),
    "finger_snap": Sizes(clips=(5000, 5000, 5000), seconds=(1, 5)),
    "fluentspeechcommands": Sizes(clips=(23_132, 3118, 3793), seconds=(1, 5)),
    "freemusicarchive": Sizes(clips=(6400, 800, 800), seconds=(30, 30)),
    "fsd50k": Sizes(clips=(36_796, 4170, 10_231), seconds=(0.3, 15)),
    "fsdkaggle2018": Sizes(clips=(9473, 1600, 1600), seconds=(0.3, 30)),
    "gtzan_genre": Sizes(clips=(100,), seconds=(30, 30)),
    "inside_outside_car": Sizes(clips=(5000, 5000, 5000), seconds=(1, 5)),
    "key_scratching": Sizes(clips=(5000, 5000, 5000), seconds=(1, 5)),
    "libricount": Sizes(clips=(1144,), seconds=(5, 5)),
    "librispeechmalefemale": Sizes(clips=(28_539, 2703, 2620), seconds=(2, 23)),
    "liveenv": Sizes(clips=(5000, 5000, 5000), seconds=(1, 10)),
    "maestro": Sizes(clips=(300, 60, 65), seconds=(60, 60)),
    "nsynthinstument": Sizes(clips=(289_205, 12_678, 4096), seconds=(4, 4)),
    "ravdess": Sizes(clips=(360,), seconds=(3, 5)),
    "speechcommandsv1": Sizes(clips=(51_088, 6798, 6835), seconds=(1, 1)),
    "subway_broadcast": Sizes(clips=(5000, 5000, 5000), seconds=(1, 10)),
    "urbansound8k": Sizes(clips=(873,), seconds=(1, 4)),
    "vocalimitations": Sizes(clips=(1867,), seconds=(1, 10)),
    "vocalsound": Sizes(clips=(15_570, 1855, 3591), seconds=(2, 6)),
    "voxceleb1": Sizes(clips=(138_361, 6904, 8251), seconds=(4, 12)),
    "voxlingua33": Sizes(clips=(33_000, 1609, 1609), seconds=(2, 20)),
}
ASSUMED = (
    "desed",
    "finger_snap",
    "inside_outside_car",
    "key_scratching",
    "liveenv",
    "maestro",
    "subway_broadcast",
    "voxlingua33",
)


def write_challenge(*, url: str, names: Sequence[str], share: float) -> dict[str, int]:
    """Write the feature sets of tasks, a share of their clips; returns the windows of each task."""
    from featstore.tasks import find_task

    rng = np.random.default_rng(0)
    return {name: _write_task(url, find_task(name), SIZES[name], share=share, rng=rng) for name in names}


def _write_task(url: str, manifest: Any, sizes: Sizes, *, share: float, rng: np.random.Generator) -> int:
    classes = manifest.label.classes or tuple(map(str, range(sizes.classes or 0)))
    centres = (0.25 * rng.standard_normal((max(1, len(classes)), DIM))).astype(np.float32)
    clips = sizes.clips if manifest.splits is not None else sizes.clips * len(manifest.folds)
    # Splits of one pattern share one feature set: its clips are those of the last of them.
    n_clips = dict(zip(manifest.feature_sets.values(), clips, strict=True))
    return sum(
        _write_split(url, manifest, split, max(40, round(share * n)), sizes, classes=classes, centres=centres, rng=rng)
        for split, n in n_clips.items()
    )


def _write_split(
    url: str,
    manifest: Any,
    split: str,
    n_clips: int,
    sizes: Sizes,
    *,
    classes: Sequence[str],
    centres: NDArray[np.float32],
    rng: np.random.Generator,
) -> int:
    from featstore.store import EmbeddedWindow, open_split_writer

    mixing = power_law_mixing(DIM)
    writer = open_split_writer(
        url,
        recipe=made_up_recipe("random", dim=DIM, hop_seconds=HOP_SECONDS),
        spec="random",
        dataset=manifest.data.dataset,
        crop_seconds=manifest.data.crop_seconds,
        split=split,
    )
    label = np.arange(n_clips) % max(1, len(classes))
    seconds = np.round(rng.uniform(*sizes.seconds, n_clips), 3)
    crop = manifest.data.crop_seconds or np.inf
    windows_of_clip = np.maximum(1, np.ceil(seconds / crop)).astype(int)
    bounds = np.cumsum([0, *windows_of_clip])
    with_frames = manifest.wants_frames
    begins = 0
    pattern = manifest.patterns[split]
    windows_per_part = WINDOWS_PER_PART if "*" in pattern else int(bounds[-1])
    for number in range(-(-int(bounds[-1]) // windows_per_part)):
        ends = int(np.searchsorted(bounds, min((number + 1) * windows_per_part, bounds[-1])))
        name = pattern.replace("*", f"{number:06d}")
        of_windows = label[begins:ends].repeat(windows_of_clip[begins:ends])
        noise = rng.standard_normal((len(of_windows), DIM), dtype=np.float32)
        vectors = iter((centres[of_windows] + noise) @ mixing)
        with writer.begin_part(name) as part:
            for clip in range(begins, ends):
                meta = json.dumps(_meta(manifest, classes, int(label[clip]), float(seconds[clip]), rng))
                for window in range(windows_of_clip[clip]):
                    start = 0.0 if np.isinf(crop) else window * crop
                    length = float(min(crop, seconds[clip] - start))
                    vector = next(vectors)
                    frames = None
                    if with_frames:
                        n_frames = max(1, round(length / HOP_SECONDS))
                        frames = (rng.standard_normal((n_frames, DIM), dtype=np.float32) @ mixing).astype(np.float16)
                    key = f"{split}-{clip:06d}"
                    part.add(
                        EmbeddedWindow(
                            key=key if window == 0 else f"{key}#{window + 1}",
                            meta=meta,
                            start_seconds=start,
                            seconds=length,
                            utterance=vector,
                            frames=frames,
                        )
                    )
            commit_made_up(part, name, clips=ends - begins, audio_seconds=float(seconds[begins:ends].sum()))
        begins = ends
    writer.write_catalogue()
    return int(bounds[-1])


def _meta(manifest: Any, classes: Sequence[str], label: int, seconds: float, rng: np.random.Generator) -> Any:
    """JSON that the manifest reads this label from."""
    rules = manifest.label
    if manifest.kind == "contrastive":
        return {f"caption_{number}": " ".join(_words(rng)) for number in range(1, N_CAPTIONS + 1)}
    if manifest.kind == "frame":
        return list(_events(rules, classes, seconds, rng))
    value = _as_written(rules.mapping, classes[label])
    if manifest.kind == "multilabel":
        others = rng.choice(len(classes), size=2, replace=False)
        names = dict.fromkeys([value, *(_as_written(rules.mapping, classes[other]) for other in others)])
        return {rules.field: rules.separator.join(names)}
    return {rules.field: value}


def _as_written(mapping: Mapping[str, str] | None, name: str) -> str:
    return name if mapping is None else next(raw for raw, mapped in mapping.items() if mapped == name)


def _words(rng: np.random.Generator) -> Iterator[str]:
    """As often as words are: by Zipf's law."""
    for rank in rng.zipf(1.3, int(rng.integers(*WORDS_OF_A_CAPTION, endpoint=True))):
        yield _spelt(int(rank) % N_WORDS)


def _spelt(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[number // 676 % 26] + letters[number // 26 % 26] + letters[number % 26]


def _events(rules: Any, classes: Sequence[str], seconds: float, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for _ in range(int(rng.integers(2, 6)) if seconds < 30 else round(8 * seconds)):
        onset = round(float(rng.uniform(0, seconds - 0.3)), 3)
        yield {
            rules.onset: onset,
            rules.offset: round(min(seconds, onset + float(rng.uniform(0.2, 4))), 3),
            rules.field: classes[int(rng.integers(len(classes)))],
        }

"""What the tests of scoring believe of a store, asked of the real one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tiny
from featstore.evaluation import load_task
from featstore.store import EmbeddedWindow, Member, ShardIdentity, open_split_writer, open_store

SETS = {name: tiny.clips(name, 12, windows=windows) for name, windows in (("train", 1), ("valid", 2), ("test", 3))}


def write(url, split, clips, *, n_shards, padding="0.25"):
    recipe = replace(tiny.recipe(dim=8), padding=padding)
    writer = open_split_writer(url, recipe=recipe, spec="tiny", dataset="tiny", crop_seconds=None, split=split)
    for shard in range(n_shards):
        mine = clips[shard * len(clips) // n_shards : (shard + 1) * len(clips) // n_shards]
        name = f"{split}-{shard}.tar"
        with writer.begin_part(name) as part:
            for clip in mine:
                starts = np.r_[0.0, np.cumsum(clip.seconds)[:-1]]
                for at, (start, seconds) in enumerate(zip(starts, clip.seconds, strict=True)):
                    part.add(
                        EmbeddedWindow(
                            key=clip.key if at == 0 else f"{clip.key}#{at + 1}",
                            meta=f'{{"label": "{clip.label}"}}',
                            start_seconds=float(start),
                            seconds=float(seconds),
                            utterance=clip.vectors[at].astype(np.float32),
                            frames=None,
                        )
                    )
            member = Member(
                shard=ShardIdentity(name=name, size=1),
                clips=len(mine),
                windows=part.windows,
                frames=0,
                audio_seconds=1.0,
                skipped=(),
            )
            part.commit([member], frames_stored=False, versions={})


@pytest.mark.parametrize("n_shards", [1, 3])
def test_a_task_read_from_a_real_store_is_the_task_that_was_written(tmp_path, n_shards):
    url = str(tmp_path / "store.zarr")
    for split, clips in SETS.items():
        write(url, split, clips, n_shards=n_shards)
    real = load_task(open_store(url), tiny.task(), encoder=None, protocol="strict")
    believed = load_task(tiny.TinyStore(SETS), tiny.task(), encoder=None, protocol="strict")
    for name in ("X", "seconds", "clip"):
        np.testing.assert_array_equal(getattr(real, name), getattr(believed, name))
    np.testing.assert_array_equal(real.targets.values, believed.targets.values)
    assert (real.clip_id, real.classes) == (believed.clip_id, believed.classes)


@pytest.mark.parametrize(
    ("n_shards", "straddling"),
    [
        pytest.param(1, [16, 32], id="a clip that goes on in the next sixteen windows of its shard counts there again"),
        pytest.param(3, [], id="every shard begins with a new sixteen"),
    ],
)
def test_under_xares_a_window_takes_the_place_of_none_that_was_encoded_with_it(tmp_path, n_shards, straddling):
    url = str(tmp_path / "store.zarr")
    for split in SETS:
        write(url, split, tiny.clips(split, 12, windows=3), n_shards=n_shards, padding="xares")
    tested = {}
    for protocol in ("strict", "xares"):
        task = load_task(open_store(url), tiny.task(), encoder=None, protocol=protocol)
        tested[protocol] = task.X[task.windows_of(task.rounds[0].test)]

    kept = sorted([*range(0, 36, 3), *straddling])
    np.testing.assert_array_equal(tested["xares"], tested["strict"][kept])

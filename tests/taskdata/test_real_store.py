"""What the tests of scoring believe of a store, asked of the real one."""

from __future__ import annotations

import numpy as np
import pytest

import tiny
from featstore.store import EmbeddedWindow, Member, ShardIdentity, open_split_writer, open_store
from featstore.taskdata import load_task

SETS = {name: tiny.clips(name, 12, windows=windows) for name, windows in (("train", 1), ("valid", 2), ("test", 3))}


def write(url, split, clips, *, n_shards):
    writer = open_split_writer(
        url, recipe=tiny.recipe(dim=8), spec="tiny", dataset="tiny", crop_seconds=None, split=split
    )
    for shard in range(n_shards):
        mine = clips[shard * len(clips) // n_shards : (shard + 1) * len(clips) // n_shards]
        with writer.begin_part(f"shard-{shard}") as part:
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
                shard=ShardIdentity(name=f"shard-{shard}", size=1),
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

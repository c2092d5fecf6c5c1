"""Memory does not grow with the data."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featstore.encoders.batch_outputs import Encoded
from featstore.extract.batching import LengthBatcher
from featstore.extract.pipeline import PartTarget, Pipeline
from featstore.extract.results import EncodeSettings, Silent, collect
from featstore.extract.shard_reader import ClipRead, ClipStream
from featstore.extract.shards import find_shards
from featstore.extract.windows import Padding, plan_windows
from featstore.store import EmbeddedWindow, Member
from handmade import audio_bytes, clip, environment, noise, write_split, write_tar


class Part:
    """Holds what it is given, as a part's writer does."""

    def __init__(self) -> None:
        self.held: list[EmbeddedWindow] = []
        self.frames = 0

    @property
    def windows(self) -> int:
        return len(self.held)

    def add(self, window: EmbeddedWindow) -> None:
        self.held.append(window)

    def commit(self, members: list[Member], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(members=members, objects={})

    def abort(self) -> None:
        pass


class Writer:
    """Notes how many parts are alive whenever another begins."""

    def __init__(self) -> None:
        self.parts: list[weakref.ref[Part]] = []
        self.most_alive = 0

    def begin_part(self, _: str, *, generation: int | None) -> Part:
        self.most_alive = max(self.most_alive, sum(part() is not None for part in self.parts))
        part = Part()
        self.parts.append(weakref.ref(part))
        return part


class FirstFour:
    """An encoder that gives the first four samples of a window back."""

    batches_ahead = 1
    busy_seconds = 0.0

    def blank(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    def begin(self, audio: NDArray[np.float32], n_samples: NDArray[np.int64]) -> Callable[[], Sequence[Encoded]]:
        return lambda: [Encoded(utterance=audio[:, :4].copy(), frames=None)]


def test_parts_that_were_committed_are_let_go(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [clip(f"c{n}", noise(0.05, seed=n)) for n in range(24)], shards=24)
    writer = Writer()
    pipeline = Pipeline(
        targets=lambda _: [PartTarget(output=0, writer=writer, frames_stored=False, generation=0)],  # type: ignore[arg-type]
        encoder=FirstFour(),
        encoder_name="first four",
        plan=lambda n: plan_windows(n, crop_seconds=None, padding=Padding.parse("exact"), sample_rate_hz=16_000),
        max_pending_bytes=None,
        batcher=LengthBatcher(budget_samples=16_000, shards_ahead=0),
        settings=EncodeSettings(
            sample_rate_hz=16_000, max_clip_seconds=10, decode_threads=2, versions={}, device="cpu", batch_seconds=1.0
        ),
    )
    result = collect(pipeline.run(find_shards(tmp_path, "*.tar")), progress=Silent())
    assert len(result.stored[0]) == 24
    assert writer.most_alive <= 10  # those whose writes wait, not those that were


def test_no_more_is_decoded_ahead_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from featstore.extract import shard_reader as stream

    monkeypatch.setattr(stream, "_DECODED_BYTES_AHEAD", 4 * 16_000 * 3)  # three seconds
    quiet = audio_bytes(np.zeros(16_000, np.float32), "flac")
    members = [m for n in range(40) for m in ((f"c{n:02d}.flac", quiet), (f"c{n:02d}.json", b"{}"))]
    write_tar(tmp_path / "s.tar", members)
    shards = find_shards(tmp_path, "*.tar")
    read: list[ClipRead] = []
    with ClipStream(shards, sample_rate_hz=16_000, max_clip_seconds=10, decode_threads=4) as clips:
        for event in clips:
            if isinstance(event, ClipRead):
                read.append(event)
                assert len(event.decoded.result(timeout=20).samples) == 16_000
                inside = clips._decoded._bytes
                assert inside <= 4 * 16_000 * 4
    assert [clip.key for clip in read] == [f"c{n:02d}" for n in range(40)]


HOSTILE_CHILD = """
import resource, sys
from pathlib import Path
from handmade import extract
from tiny import task
import featstore.encoders.runner, featstore.extract.pipeline, soxr, soundfile, zarr

used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024
most = {most_bytes}
resource.setrlimit(resource.RLIMIT_AS, (used + most, used + most))
folder = Path(sys.argv[1])
try:
    extract(task(), folder / "data", folder / "store")
except featstore.errors.FeatstoreError as error:
    print(error)
peak = int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) // 1024
print("peak MB", peak)
"""


def test_a_hostile_shard_is_read_within_bounded_memory(tmp_path: Path) -> None:
    """Two clips at a time that unpack to 0.25 GB each, in a child that may map 0.54 GB more than it began with.

    A thread maps up to 128 MB for its heap, of which it uses little: the heartbeat of a part is a thread.
    """
    import soundfile

    loud = tmp_path / "long.flac"
    with soundfile.SoundFile(loud, "w", 192_000, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(40):
            file.write(np.zeros((192_000, 8), np.int16))
    data = loud.read_bytes()  # silence: 0.25 GB as floats
    assert len(data) < 4 << 20
    members = [m for n in range(2) for m in ((f"c{n}.flac", data), (f"c{n}.json", b"[" + b"[]," * 450_000 + b"[]]"))]
    write_tar(tmp_path / "data/tiny/train-0.tar", members)
    child = subprocess.run(
        [sys.executable, "-c", HOSTILE_CHILD.format(most_bytes=512 << 20), str(tmp_path)],
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    assert int(child.stdout.split()[-1]) < 1500

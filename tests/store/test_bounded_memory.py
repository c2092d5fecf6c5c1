"""Frames are read where they lie: a set that is larger than the memory a process may have is read all the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from stores import split_writer, window, write_part

import handmade

CHILD = """
import resource, sys
import numpy as np
import featstore

fs = featstore.open(sys.argv[1]).select()
fs.frames[0]
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
limit = used + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # memory of its own: files that it maps do not count
total = frames = 0
for start in range(0, len(fs), 2):
    batch = fs.frames[list(range(start, min(start + 2, len(fs))))]
    total += int(batch.values.view(np.uint16).sum(dtype=np.uint64))
    frames += int(batch.lengths.sum())
print(frames, total)
try:
    np.concatenate(list(fs.frames))
except MemoryError:
    print("and all at once they do not fit")
"""
DIM = 512
WINDOWS, FRAMES = 24, 4000


def test_frames_of_many_times_the_memory_allowed_are_read_batch_by_batch(tmp_path):
    windows = [window(f"k{at}", n_frames=FRAMES, seed=at, dim=DIM) for at in range(WINDOWS)]
    write_part(split_writer(tmp_path / "s.zarr", dim=DIM), "a.tar", windows)
    allowed_bytes = 24 << 20
    assert 3 * allowed_bytes < WINDOWS * FRAMES * DIM * 2
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "s.zarr"), str(allowed_bytes)],
        env=handmade.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    expected = sum(int(each.frames.view(np.uint16).sum(dtype=np.uint64)) for each in windows)
    assert child.stdout.splitlines() == [f"{WINDOWS * FRAMES} {expected}", "and all at once they do not fit"], child


MANY_PARTS = """
import resource, sys
import featstore

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
fs = featstore.open(sys.argv[1]).select()
rows = fs.utterance_rows
for _ in range(2):
    print(rows.take(range(len(fs))).sum(axis=0).tolist())
first = rows.slice(0, 1)
rows.take(range(len(fs)))
print((first == fs.utterance[:1]).all())
"""


def test_a_set_of_more_parts_than_a_process_may_open_files_is_read_row_by_row(tmp_path):
    writer = split_writer(tmp_path / "s.zarr", dim=4)
    windows = [window(f"k{at}", n_frames=2, seed=at, dim=4) for at in range(80)]
    for at, each in enumerate(windows):
        write_part(writer, f"{at:03d}.tar", [each])
    child = subprocess.run(
        [sys.executable, "-c", MANY_PARTS, str(tmp_path / "s.zarr")],
        env=handmade.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    total = np.stack([each.utterance for each in windows]).sum(axis=0).tolist()
    assert child.stdout.splitlines() == [str(total), str(total), "True"], child

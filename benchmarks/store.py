"""The store beside six other ways to keep the same arrays: writing, reading in bulk and at random, opening, memory.

Every contestant writes and reads in processes of its own, and reads files that are in the page cache. No contestant
compresses. featstore and the two zarrs write a CRC-32C with each chunk; the zarrs check it on every read, featstore
does in `featstore verify` and ``open(..., verify=True)``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arrays import DIM, Ragged, load_frames, load_vectors, make_inputs, padded, shuffled_batches, touch
from benchmarks.contestants import CONTESTANTS
from benchmarks.harness import PeakMemory, in_child, timed
from benchmarks.machine import available_memory_bytes, filesystem_of
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_least, at_least_times, at_most

# All 20,000 clips (`--frames-clips 20000`) are 6.5 GB, once for each contestant, and a quarter of an hour.
BYTES_PER_CLIP = 213 * DIM * 2  # on average
PARTS = 1000
ROWS_PER_PART = 16
RANDOM_READS = 200
BATCH_SIZE = 32
DURABLE = ("featstore", "zarr-python")
TENTH = "tar of .npy"
TENTH_NOTE = "The tar has a tenth of them: all would take a minute, at the same speed."
WRITERS = tuple(name for name in CONTESTANTS if name != "np.memmap")  # it reads what np.save wrote


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    n_vectors: int
    n_clips: int
    n_parts: int

    @classmethod
    def of(cls, options: Options) -> Sizes:
        """2,000 clips with frames, or as many as take an eighth of the memory and a twentieth of the disk."""
        room = min(available_memory_bytes() // 8, shutil.disk_usage(tempfile.gettempdir()).free // 20)
        fitting = max(64, min(2_000, room // BYTES_PER_CLIP))
        if options.quick:
            return cls(n_vectors=20_000, n_clips=options.frames_clips or 200, n_parts=50)
        return cls(n_vectors=200_000, n_clips=options.frames_clips or fitting, n_parts=PARTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the children said: figures of each contestant, by name and measure."""

    writing: dict[str, dict[str, float]]
    reading: dict[str, dict[str, float]]
    floors: dict[str, float]
    durable: dict[str, float]
    n_bytes: dict[str, int]


def tables(options: Options) -> Iterator[Table]:
    sizes = Sizes.of(options)
    with _folders() as (disk, memory):
        measured = _measure(sizes, disk, memory)
        yield from _writing_tables(measured, sizes, disk, memory)
        yield from _reading_tables(measured, sizes)
        yield from _memory_tables(measured)
        yield _parts_table(sizes, disk, memory)


def _measure(sizes: Sizes, disk: Path, memory: Path) -> Measured:
    inputs = str(_fresh(memory / "inputs"))
    n_bytes = in_child(make_inputs, folder=inputs, n_vectors=sizes.n_vectors, n_clips=sizes.n_clips)
    writing: dict[str, dict[str, float]] = {}
    reading: dict[str, dict[str, float]] = {}
    for name in WRITERS:
        folder = disk / "contestant"
        writing[name] = in_child(write, contestant=name, inputs=inputs, disk=str(folder), memory=str(memory))
        writing[name]["peak"] = in_child(peak_of_writing, contestant=name, inputs=inputs, memory=str(memory))
        for reader in (name, "np.memmap") if name == "np.load" else (name,):
            reading[reader] = in_child(read, contestant=reader, inputs=inputs, folder=str(folder))
            for what in ("bulk", "epoch"):
                megabytes = in_child(peak_of_reading, contestant=reader, inputs=inputs, folder=str(folder), what=what)
                reading[reader][f"{what} peak"] = megabytes
        shutil.rmtree(folder)
    floors = in_child(measure_floors, inputs=inputs, memory=str(memory))
    durable = in_child(write_durably, inputs=inputs, disk=str(disk))
    shutil.rmtree(inputs)
    return Measured(writing=writing, reading=reading, floors=floors, durable=durable, n_bytes=n_bytes)


# --- what runs in children


def write(*, contestant: str, inputs: str, disk: str, memory: str) -> dict[str, float]:
    """Write everything into a folder in memory, timed, then onto the disk, where it stays to be read."""
    who = CONTESTANTS[contestant]
    vectors, ragged = _vectors_for(contestant, inputs), load_frames(Path(inputs))
    in_memory = Path(memory) / "contestant"

    def seconds(work: Callable[[], object]) -> float:
        # memory that the kernel hands out for the first time is slow: the warm-up takes it, and never counts alone
        return timed(work, repeats=2, budget_seconds=60.0, before=lambda: _fresh(in_memory)).best

    vectors_seconds = seconds(lambda: who.write_vectors(in_memory, vectors))
    frames_seconds = seconds(lambda: who.write_frames(in_memory, ragged))
    shutil.rmtree(in_memory)
    folder = _fresh(Path(disk))
    who.write_vectors(folder, vectors)
    vectors_size = _size(folder)
    who.write_frames(folder, ragged)
    return {
        "vectors": vectors.nbytes / vectors_seconds / 1e9,
        "frames": ragged.frames.nbytes / frames_seconds / 1e9,
        "vectors size": vectors_size / vectors.nbytes,
        "frames size": (_size(folder) - vectors_size) / ragged.frames.nbytes,
    }


def write_durably(*, inputs: str, disk: str) -> dict[str, float]:
    """GB/s until all is fsynced, half of the vectors; contestants take turns, for a disk's speed changes as it will."""
    vectors = load_vectors(Path(inputs))
    vectors = vectors[: len(vectors) // 2]
    folder = Path(disk) / "durable"
    writers: dict[str, Callable[[], object]] = {
        "plain file": lambda: vectors.tofile(folder / "file"),
        **{name: partial(CONTESTANTS[name].write_vectors, folder, vectors) for name in DURABLE},
    }
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(2):
        for name, work in writers.items():
            _fresh(folder)
            began = time.perf_counter()
            work()
            _settle(folder)
            seconds[name].append(time.perf_counter() - began)
    shutil.rmtree(folder)
    return {name: vectors.nbytes / min(each) / 1e9 for name, each in seconds.items()}


def read(*, contestant: str, inputs: str, folder: str) -> dict[str, float]:
    """Read everything, and things at random; every repeat opens anew."""
    who, where = CONTESTANTS[contestant], Path(folder)
    lengths = np.diff(np.load(Path(inputs) / "offsets.npy"))
    opened: dict[str, Any] = {}

    def reopen() -> None:
        opened.clear()
        opened["reader"] = who.open(where)

    def vectors() -> np.ndarray:
        return opened["reader"].vectors()

    def epoch() -> None:
        for clips in shuffled_batches(len(lengths), batch_size=BATCH_SIZE):
            opened["reader"].batch(clips)

    reopen()
    n_vectors = len(vectors())
    bulk = timed(vectors, before=reopen, budget_seconds=2.0)
    epochs = timed(epoch, before=reopen, repeats=3, budget_seconds=2.0)
    first = timed(lambda: touch(opened["reader"].vector(n_vectors // 2)), before=reopen, repeats=3)
    reader = who.open(where)
    measured = {
        "bulk": n_vectors * DIM * 4 / bulk.best / 1e9,
        "epoch": int(lengths.sum()) * DIM * 2 / epochs.best / 1e9,
        "first row": first.median * 1e3,
        "row": _each(lambda i: touch(reader.vector(i)), n_vectors),
        "clip": _each(lambda i: touch(reader.clip(i)), len(lengths)),
    }
    if hasattr(reader, "batch_into"):
        room = np.zeros((BATCH_SIZE, int(lengths.max()), DIM), np.float16)
        into = timed(lambda: _batches_into(opened["reader"], room, len(lengths)), before=reopen, repeats=3)
        measured["epoch into"] = int(lengths.sum()) * DIM * 2 / into.best / 1e9
    return measured


def _batches_into(reader: Any, room: np.ndarray, n_clips: int) -> None:
    for clips in shuffled_batches(n_clips, batch_size=BATCH_SIZE):
        reader.batch_into(room, clips)


def peak_of_writing(*, contestant: str, inputs: str, memory: str) -> float:
    """Megabytes, in a process that has done nothing before but to import the library."""
    who, ragged = CONTESTANTS[contestant], load_frames(Path(inputs))
    who.write_frames(_fresh(Path(memory) / "warm-up"), Ragged(ragged.frames[: ragged.offsets[2]], ragged.offsets[:3]))
    with PeakMemory() as peak:
        who.write_frames(_fresh(Path(memory) / "contestant"), ragged)
    for name in ("warm-up", "contestant"):
        shutil.rmtree(Path(memory) / name)
    return peak.bytes / 1e6


def peak_of_reading(*, contestant: str, inputs: str, folder: str, what: str) -> float:
    """Megabytes, opening counted, in a process that has done nothing before but to import the library."""
    who, where = CONTESTANTS[contestant], Path(folder)
    n_clips = len(np.load(Path(inputs) / "offsets.npy")) - 1
    who.open(where)
    with PeakMemory() as peak:
        reader = who.open(where)
        if what == "bulk":
            reader.vectors()
        else:
            for clips in shuffled_batches(n_clips, batch_size=BATCH_SIZE):
                reader.batch(clips)
    return peak.bytes / 1e6


def measure_floors(*, inputs: str, memory: str) -> dict[str, float]:
    """The same from arrays in memory, and plain files."""
    vectors, ragged = load_vectors(Path(inputs)), load_frames(Path(inputs))
    warm = np.ones_like(vectors)

    def epoch() -> None:
        for clips in shuffled_batches(len(ragged), batch_size=BATCH_SIZE):
            padded([ragged.clip(i) for i in clips])

    folder = Path(memory) / "plain"
    plain = timed(lambda: vectors.tofile(folder / "file"), repeats=2, before=lambda: _fresh(folder))
    shutil.rmtree(folder)
    return {
        "memcpy": vectors.nbytes / timed(vectors.copy).best / 1e9,
        "memcpy, warm": vectors.nbytes / timed(lambda: np.copyto(warm, vectors)).best / 1e9,
        "memcpy frames": ragged.frames.nbytes / timed(ragged.frames.copy).best / 1e9,
        "epoch": ragged.frames.nbytes / timed(epoch, repeats=3).best / 1e9,
        "row": _each(lambda i: touch(vectors[i]), len(vectors)),
        "clip": _each(lambda i: touch(ragged.clip(i)), len(ragged)),
        "vectors": vectors.nbytes / plain.best / 1e9,
    }


def write_parts(*, contestant: str, folder: str, n_parts: int) -> None:
    rng = np.random.default_rng(2)
    parts = [rng.standard_normal((ROWS_PER_PART, DIM), dtype=np.float32) for _ in range(n_parts)]
    CONTESTANTS[contestant].write_parts(Path(folder), parts)


def open_parts(*, contestant: str, folder: str, n_parts: int) -> float:
    """Milliseconds to open; the libraries are imported by then."""
    who = CONTESTANTS[contestant]
    found = who.open_parts(Path(folder))
    if found != n_parts * ROWS_PER_PART:
        raise ValueError(f"{contestant} found {found} rows of {n_parts * ROWS_PER_PART}")
    return timed(lambda: who.open_parts(Path(folder))).median * 1e3


def _vectors_for(contestant: str, inputs: str) -> np.ndarray:
    vectors = load_vectors(Path(inputs))
    return vectors[: len(vectors) // 10] if contestant == TENTH else vectors


def _each(look: Callable[[int], object], n: int) -> float:
    """Microseconds for one of many at random, the best of three passes over the same ones."""
    indices = np.random.default_rng(3).permutation(n)[:RANDOM_READS].tolist()

    def look_at_all() -> None:
        for i in indices:
            look(i)

    return timed(look_at_all, repeats=3, budget_seconds=1.0).best / len(indices) * 1e6


# --- tables


def _writing_tables(measured: Measured, sizes: Sizes, disk: Path, memory: Path) -> Iterator[Table]:
    targets = {"featstore": (at_least(0.8), at_least_times(1.0))}
    vectors = f"{sizes.n_vectors:,} x {DIM} float32"
    frames = f"{sizes.n_clips:,} clips of 25 to 400 frames, {DIM} wide, float16"
    where = f"a folder on {filesystem_of(memory)}, where an fsync costs nothing"
    yield Table(
        title="Writing utterance vectors",
        measures=f"{vectors} ({_gb(measured, 'vectors')}) into {where}. {TENTH_NOTE}",
        unit="GB/s",
        baseline="zarr-python",
        rows=(
            Row("plain file", measured.floors["vectors"]),
            *(Row(_writer(name), measured.writing[name]["vectors"], targets.get(name, ())) for name in WRITERS),
        ),
    )
    yield Table(
        title="Writing frames",
        measures=f"{frames} ({_gb(measured, 'frames')}) into {where}.",
        unit="GB/s",
        baseline="zarr-python",
        rows=tuple(Row(_writer(name), measured.writing[name]["frames"], targets.get(name, ())) for name in WRITERS),
    )
    yield Table(
        title="Writing utterance vectors so that a power cut does no harm",
        measures=f"{sizes.n_vectors // 2:,} of them onto {filesystem_of(disk)}, until all is fsynced: the best of "
        "two turns each. The disk bounds it.",
        unit="GB/s",
        baseline="plain file",
        rows=tuple(Row(name, speed) for name, speed in measured.durable.items()),
    )


def _reading_tables(measured: Measured, sizes: Sizes) -> Iterator[Table]:
    floors, reading = measured.floors, measured.reading
    vectors = f"{sizes.n_vectors:,} x {DIM} float32"
    yield Table(
        title="Reading all utterance vectors",
        measures=f"{vectors} from the page cache into memory of their own; memcpy copies them from memory "
        f"that way. {TENTH_NOTE}",
        unit="GB/s",
        baseline="memcpy",
        rows=(
            Row("memcpy", floors["memcpy"]),
            Row("memcpy into memory in use", floors["memcpy, warm"]),
            *_rows(reading, "bulk", featstore=(at_least_times(0.9),)),
        ),
    )
    yield Table(
        title="A shuffled epoch of frames",
        measures=f"{sizes.n_clips:,} clips in random order, in batches of {BATCH_SIZE} padded to their longest; bytes "
        "of real frames, the zeros (nearly as many) not counted. memcpy copies all frames as stored; arrays in "
        "memory makes the same batches of an array; padded(out=...) makes them in one buffer that is kept.",
        unit="GB/s",
        baseline="memcpy",
        rows=(
            Row("memcpy", floors["memcpy frames"]),
            Row("arrays in memory", floors["epoch"]),
            *_rows(reading, "epoch", featstore=(at_least_times(0.7),)),
            Row("featstore, padded(out=...)", reading["featstore"]["epoch into"]),
        ),
    )
    yield Table(
        title="One utterance vector",
        measures="At random, the data set being open and a vector having been read; one number of it is looked at. "
        "np.load holds them all in memory by then.",
        unit="us",
        baseline="arrays in memory",
        rows=(Row("arrays in memory", floors["row"]), *_rows(reading, "row", featstore=(at_most(10),))),
    )
    yield Table(
        title="The first utterance vector",
        measures="One in the middle, of a data set that was just opened.",
        unit="ms",
        baseline="np.memmap",
        rows=_rows(reading, "first row"),
    )
    yield Table(
        title="Frames of one clip",
        measures="At random, the data set being open; one number of each frame is looked at, in a view where one is "
        "handed out.",
        unit="us",
        baseline="arrays in memory",
        rows=(Row("arrays in memory", floors["clip"]), *_rows(reading, "clip", featstore=(at_most(15),))),
    )


def _memory_tables(measured: Measured) -> Iterator[Table]:
    mapped = "pages of mapped files count, though they are the page cache's"
    n_bytes = measured.n_bytes
    yield Table(
        title="Peak memory of reading all utterance vectors",
        measures=f"What became resident, opening included; {mapped}. np.load holds the frames too. {TENTH_NOTE}",
        unit="MB",
        baseline="the vectors",
        rows=(Row("the vectors", n_bytes["vectors"] / 1e6), *_rows(measured.reading, "bulk peak")),
    )
    yield Table(
        title="Peak memory of a shuffled epoch of frames",
        measures=f"What became resident, opening included (np.load then holds the vectors too); {mapped}.",
        unit="MB",
        baseline="the frames",
        rows=(Row("the frames", n_bytes["frames"] / 1e6), *_rows(measured.reading, "epoch peak")),
    )
    yield Table(
        title="Peak memory of writing frames",
        measures="What became resident above the array that is written.",
        unit="MB",
        baseline="the frames",
        rows=(
            Row("the frames", n_bytes["frames"] / 1e6),
            *(Row(_writer(name), measured.writing[name]["peak"]) for name in WRITERS),
        ),
    )
    yield Table(
        title="Bytes on disk",
        measures="For each byte of the arrays; featstore's include keys, JSON, times and commit records.",
        unit="bytes",
        baseline="the arrays",
        rows=(
            Row("the arrays", 1.0),
            *(
                Row(f"{_writer(name)}: {what}", measured.writing[name][f"{what} size"])
                for what in ("vectors", "frames")
                for name in WRITERS
            ),
        ),
    )


def _parts_table(sizes: Sizes, disk: Path, memory: Path) -> Table:
    rows = []
    for name in CONTESTANTS:
        made, folder = _fresh(memory / "parts"), disk / "parts"
        in_child(write_parts, contestant=name, folder=str(made), n_parts=sizes.n_parts)
        shutil.copytree(made, folder)
        milliseconds = in_child(open_parts, contestant=name, folder=str(folder), n_parts=sizes.n_parts)
        rows.append(Row(name, milliseconds, (at_most(50),) if name == "featstore" else ()))
        shutil.rmtree(folder)
    return Table(
        title=f"Opening {sizes.n_parts:,} parts",
        measures=f"Parts of {ROWS_PER_PART} vectors, until their rows are counted; libraries imported, zarr's metadata "
        "consolidated, one .npy, one tar or one HDF5 group for each part.",
        unit="ms",
        baseline="zarr-python",
        rows=tuple(rows),
    )


def _rows(reading: dict[str, dict[str, float]], measure: str, **targets: Any) -> tuple[Row, ...]:
    return tuple(Row(name, figures[measure], targets.get(name, ())) for name, figures in reading.items())


def _writer(name: str) -> str:
    return "np.save" if name == "np.load" else name


def _gb(measured: Measured, name: str) -> str:
    return f"{measured.n_bytes[name] / 1e9:.2f} GB"


# --- folders


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """A folder on the disk, and one in memory where the system has one."""
    shared = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="featstore-bench-") as disk,
        tempfile.TemporaryDirectory(prefix="featstore-bench-", dir=shared if shared.is_dir() else None) as memory,
    ):
        yield Path(disk), Path(memory)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _settle(folder: Path) -> None:
    """Fsync every file."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(only="store")

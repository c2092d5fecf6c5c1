"""Who takes part in `benchmarks.store`: one class for each way to keep embeddings, doing as its own manual would.

All keep the same arrays uncompressed. The two zarrs use featstore's own layout (chunks of whole rows of about 16 MiB,
frames in shards of 64 MiB, CRC-32C on each chunk), so that what differs is the software; the others check nothing.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.arrays import DIM, Ragged, padded
from benchmarks.recipes import commit_made_up, made_up_recipe

__all__ = ["CONTESTANTS", "Contestant", "Reader"]


class Reader(Protocol):
    """An open data set."""

    def vectors(self) -> NDArray[np.float32]:
        """All utterance vectors, in memory of their own."""

    def vector(self, i: int) -> NDArray[np.float32]:
        """One of them."""

    def clip(self, i: int) -> NDArray[np.float16]:
        """Frames of one clip."""

    def batch(self, clips: Sequence[int]) -> NDArray[np.float16]:
        """Frames of several, padded."""


class Contestant(Protocol):
    """Writes and opens data sets below a folder of its own."""

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        """Keep utterance vectors, float32 (n, dim)."""

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        """Keep the frames of clips."""

    def open(self, folder: Path) -> Reader:
        """Open what was written."""

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        """Keep utterance vectors as one object for each part, as shards of an extraction come."""

    def open_parts(self, folder: Path) -> int:
        """Open what `write_parts` wrote, to the point where its rows are counted: returns how many there are."""


class Featstore:
    """Parts of 10,000 vectors, or of 1,000 clips with frames, each with its fsync and its commit record."""

    VECTORS_PER_PART = 10_000
    CLIPS_PER_PART = 1_000

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        step = self.VECTORS_PER_PART
        self.write_parts(folder, [vectors[at : at + step] for at in range(0, len(vectors), step)])

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        writer = self._writer(folder, "vectors")
        for number, part in enumerate(parts):
            self._write_part(writer, number, part, None)
        writer.write_catalogue()

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        writer = self._writer(folder, "frames")
        nothing = np.zeros(DIM, np.float32)
        for number, first in enumerate(range(0, len(ragged), self.CLIPS_PER_PART)):
            clips = [ragged.clip(i) for i in range(first, min(first + self.CLIPS_PER_PART, len(ragged)))]
            self._write_part(writer, number, [nothing] * len(clips), clips)
        writer.write_catalogue()

    def open(self, folder: Path) -> Reader:
        return _FeatstoreReader(folder)

    def open_parts(self, folder: Path) -> int:
        import featstore

        return len(featstore.open(_store(folder)).select(encoder="noise", dataset="bench", split="vectors"))

    @staticmethod
    def _writer(folder: Path, split: str) -> Any:
        from featstore.store import open_split_writer

        recipe = made_up_recipe("noise", dim=DIM)
        return open_split_writer(
            _store(folder), recipe=recipe, spec="noise", dataset="bench", crop_seconds=None, split=split
        )

    @staticmethod
    def _write_part(writer: Any, number: int, vectors: Sequence[Any], clips: Sequence[Any] | None) -> None:
        from featstore.store import WindowBlock

        shard = f"shard-{number:06d}.tar"
        with writer.begin_part(shard) as part:
            part.add_block(
                WindowBlock(
                    keys=[f"{number:06d}-{at:06d}" for at in range(len(vectors))],
                    metas=['{"label": "a"}'] * len(vectors),
                    start_seconds=np.zeros(len(vectors)),
                    seconds=np.full(len(vectors), 5.0),
                    utterance=np.asarray(vectors),
                    frames=None if clips is None else np.concatenate(clips),
                    frame_counts=None if clips is None else np.array([len(clip) for clip in clips]),
                )
            )
            commit_made_up(part, shard, clips=len(vectors), audio_seconds=5.0 * len(vectors))


class _FeatstoreReader:
    def __init__(self, folder: Path) -> None:
        import featstore

        store = featstore.open(_store(folder))
        self._vectors = store.select(encoder="noise", dataset="bench", split="vectors")
        self._frames = store.select(encoder="noise", dataset="bench", split="frames").frames

    def vectors(self) -> NDArray[np.float32]:
        return self._vectors.utterance

    def vector(self, i: int) -> NDArray[np.float32]:
        return self._vectors.utterance_rows.slice(i, i + 1)[0]

    def clip(self, i: int) -> NDArray[np.float16]:
        return self._frames[i]

    def batch(self, clips: Sequence[int]) -> NDArray[np.float16]:
        return self._frames[clips].values

    def batch_into(self, out: NDArray[np.float16], clips: Sequence[int]) -> NDArray[np.float16]:
        """The same, laid into memory that a training loop keeps."""
        return self._frames.padded(clips, out=out).values


def _store(folder: Path) -> str:
    return str(folder / "store.zarr")


class ZarrPython:
    """zarr-python and its own codec pipeline."""

    ROWS = (16 << 20) // (DIM * 4)
    BLOCK_ROWS = (1 << 20) // (DIM * 2)
    BLOCKS_PER_SHARD = 64

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        self._create(folder / "vectors.zarr", vectors, chunks=(self.ROWS, DIM), shards=None)

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        shard = self.BLOCK_ROWS * self.BLOCKS_PER_SHARD
        self._create(folder / "frames.zarr", ragged.frames, chunks=(self.BLOCK_ROWS, DIM), shards=(shard, DIM))
        np.save(folder / "offsets.npy", ragged.offsets)

    def open(self, folder: Path) -> Reader:
        zarr = self._zarr()
        return _Offsets(
            vectors=zarr.open_array(folder / "vectors.zarr", mode="r"),
            frames=zarr.open_array(folder / "frames.zarr", mode="r"),
            offsets=np.load(folder / "offsets.npy"),
        )

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        zarr = self._zarr()
        root = zarr.create_group(folder / "parts.zarr")
        for number, part in enumerate(parts):
            group = root.create_group(f"part-{number:06d}")
            group.create_array("utterance", shape=part.shape, dtype=part.dtype, chunks=part.shape)[...] = part
        with warnings.catch_warnings():  # that consolidated metadata is not in the specification of Zarr v3
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(folder / "parts.zarr")

    def open_parts(self, folder: Path) -> int:
        root = self._zarr().open_consolidated(folder / "parts.zarr")
        return sum(group["utterance"].shape[0] for _, group in root.groups())

    def _create(self, path: Path, values: NDArray[Any], *, chunks: Any, shards: Any) -> None:
        zarr = self._zarr()
        array = zarr.create_array(
            path,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            shards=shards,
            compressors=zarr.codecs.Crc32cCodec(),
        )
        array[...] = values

    def _zarr(self) -> Any:
        import zarr

        return zarr


class Zarrs(ZarrPython):
    """zarr-python with the `zarrs` codec pipeline, which is written in Rust."""

    def _zarr(self) -> Any:
        import zarr
        import zarrs  # noqa: F401 - registers its pipeline

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
        return zarr


class Numpy:
    """``np.save``, and ``np.load`` of everything into memory."""

    MMAP_MODE: Any = None

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        np.save(folder / "vectors.npy", vectors)

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        np.save(folder / "frames.npy", ragged.frames)
        np.save(folder / "offsets.npy", ragged.offsets)

    def open(self, folder: Path) -> Reader:
        return _NumpyReader(folder, self.MMAP_MODE)

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        for number, part in enumerate(parts):
            np.save(folder / f"part-{number:06d}.npy", part)

    def open_parts(self, folder: Path) -> int:
        return sum(len(np.load(path, mmap_mode=self.MMAP_MODE)) for path in sorted(folder.glob("part-*.npy")))


class Memmap(Numpy):
    """The same files, mapped."""

    MMAP_MODE = "r"


class Hdf5:
    """h5py, contiguous data sets, without checksums."""

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        import h5py

        with h5py.File(folder / "vectors.h5", "w") as file:
            file.create_dataset("vectors", data=vectors)

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        import h5py

        with h5py.File(folder / "frames.h5", "w") as file:
            file.create_dataset("frames", data=ragged.frames)
            file.create_dataset("offsets", data=ragged.offsets)

    def open(self, folder: Path) -> Reader:
        import h5py

        frames = h5py.File(folder / "frames.h5")
        return _Offsets(
            vectors=h5py.File(folder / "vectors.h5")["vectors"],
            frames=frames["frames"],
            offsets=frames["offsets"][...],
        )

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        import h5py

        with h5py.File(folder / "parts.h5", "w") as file:
            for number, part in enumerate(parts):
                file.create_dataset(f"part-{number:06d}/utterance", data=part)

    def open_parts(self, folder: Path) -> int:
        import h5py

        with h5py.File(folder / "parts.h5") as file:
            return sum(len(group["utterance"]) for group in file.values())


class TarOfNpy:
    """One .npy member for each vector or clip, as X-ARES keeps what it encodes.

    Such a tar is made to be read from its beginning to its end. A member is found here by an index that was made when
    the tar was opened, which X-ARES does not have.
    """

    def write_vectors(self, folder: Path, vectors: NDArray[np.float32]) -> None:
        self._write(folder / "vectors.tar", vectors)

    def write_frames(self, folder: Path, ragged: Ragged) -> None:
        self._write(folder / "frames.tar", [ragged.clip(i) for i in range(len(ragged))])

    def open(self, folder: Path) -> Reader:
        return _TarReader(folder)

    def write_parts(self, folder: Path, parts: Sequence[NDArray[np.float32]]) -> None:
        for number, part in enumerate(parts):
            self._write(folder / f"part-{number:06d}.tar", part)

    def open_parts(self, folder: Path) -> int:
        found = 0
        for path in sorted(folder.glob("part-*.tar")):
            with tarfile.open(path) as tar:
                found += len(tar.getnames())
        return found

    @staticmethod
    def _write(path: Path, arrays: Sequence[NDArray[Any]]) -> None:
        with tarfile.open(path, "w") as tar:
            for number, array in enumerate(arrays):
                data = io.BytesIO()
                np.save(data, array)
                info = tarfile.TarInfo(f"{number:06d}.npy")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)


class _Offsets:
    """Arrays with NumPy's way of slicing, and where each clip begins."""

    def __init__(self, *, vectors: Any, frames: Any, offsets: NDArray[np.int64]) -> None:
        self._vectors = vectors
        self._frames = frames
        self._offsets = offsets.tolist()

    def vectors(self) -> NDArray[np.float32]:
        return self._vectors[...]

    def vector(self, i: int) -> NDArray[np.float32]:
        return self._vectors[i]

    def clip(self, i: int) -> NDArray[np.float16]:
        return self._frames[self._offsets[i] : self._offsets[i + 1]]

    def batch(self, clips: Sequence[int]) -> NDArray[np.float16]:
        return padded([self.clip(i) for i in clips])


class _NumpyReader(_Offsets):
    """What is mapped is copied when all of it is asked for; what is loaded is loaded again."""

    def __init__(self, folder: Path, mmap_mode: Any) -> None:
        self._folder = folder
        self._mmap_mode = mmap_mode
        super().__init__(
            vectors=np.load(folder / "vectors.npy", mmap_mode=mmap_mode),
            frames=np.load(folder / "frames.npy", mmap_mode=mmap_mode),
            offsets=np.load(folder / "offsets.npy"),
        )

    def vectors(self) -> NDArray[np.float32]:
        return np.array(self._vectors) if self._mmap_mode else np.load(self._folder / "vectors.npy")


class _TarReader:
    def __init__(self, folder: Path) -> None:
        self._vectors_path = folder / "vectors.tar"
        self._vectors, self._vector_at = _indexed(self._vectors_path)
        self._frames, self._clip_at = _indexed(folder / "frames.tar")

    def vectors(self) -> NDArray[np.float32]:
        with tarfile.open(self._vectors_path) as tar:
            return np.stack([np.load(io.BytesIO(tar.extractfile(member).read())) for member in tar])  # type: ignore[union-attr]

    def vector(self, i: int) -> NDArray[np.float32]:
        return _member(self._vectors, self._vector_at[i])

    def clip(self, i: int) -> NDArray[np.float16]:
        return _member(self._frames, self._clip_at[i])

    def batch(self, clips: Sequence[int]) -> NDArray[np.float16]:
        return padded([self.clip(i) for i in clips])


def _indexed(path: Path) -> tuple[Any, list[tuple[int, int]]]:
    with tarfile.open(path) as tar:
        return path.open("rb"), [(member.offset_data, member.size) for member in tar]


def _member(file: Any, at: tuple[int, int]) -> NDArray[Any]:
    file.seek(at[0])
    return np.load(io.BytesIO(file.read(at[1])))


CONTESTANTS: dict[str, Contestant] = {
    "featstore": Featstore(),
    "zarr-python": ZarrPython(),
    "zarr + zarrs": Zarrs(),
    "np.load": Numpy(),
    "np.memmap": Memmap(),
    "HDF5 (h5py)": Hdf5(),
    "tar of .npy": TarOfNpy(),
}

"""Audio of the clips of a feature set, read from its shards.

The store is untrusted: a shard has to be a file below the folder of the dataset, of the size that was encoded, and a
clip is the member with its key, decoded and encoded again. The bytes of a file are never passed on unchanged.
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore.errors import DataError, ShardError, UnusableClip
from featstore.extract.audio import decode, encode_flac, encode_ogg
from featstore.extract.tar_reader import read_samples

if TYPE_CHECKING:
    from featstore.store import FeatureSet, ShardIdentity

__all__ = ["ClipAudio", "EmbeddedAudio", "embed"]

MAX_SECONDS = 3600.0
MAX_EMBEDDED_SECONDS = 10.0
MAX_EMBEDDED_BYTES = 6_000_000


class ClipAudio:
    """Waveforms of clips at the sample rate of the encoder.

    Parameters
    ----------
    data_dir : Path
        Folder with a folder of shards for each dataset.

    Raises
    ------
    ShardError
        `data_dir` has no folder of the dataset, or the feature set was imported.
    """

    def __init__(self, fs: FeatureSet, data_dir: Path) -> None:
        if fs.recipe.imported_from is not None:
            raise ShardError(f"{fs.path} was imported and has no shards of audio: leave --data out")
        dataset = fs.address.dataset
        self._folder = data_dir / dataset
        if not _is_below(dataset) or not self._folder.is_dir():
            raise ShardError(
                f"there is no folder {self._folder}: --data is a folder with a folder of shards for each dataset"
            )
        self._keys = [str(key) for key in fs.clip_key]
        self._shards = [segment.member.shard for segment in fs.segments]
        self._lasts = list(accumulate(segment.member.clips for segment in fs.segments))
        self._rate = fs.recipe.sample_rate_hz

    def __len__(self) -> int:
        return len(self._keys)

    def flac(self, number: int) -> bytes:
        """Clip `number` of the feature set as FLAC.

        Raises
        ------
        DataError
            Its shard is missing or has changed.
        """
        return encode_flac(self._waves([number])[number], self._rate)

    def excerpts(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """The first ten seconds of clips as Ogg Vorbis; clips that cannot be read are skipped."""
        found: dict[int, bytes] = {}
        by_shard: dict[int, list[int]] = {}
        for number in numbers:
            by_shard.setdefault(self._shard_of(number), []).append(number)
        for of_shard in by_shard.values():
            try:
                waves = self._waves(of_shard)
            except DataError:
                continue
            most = round(MAX_EMBEDDED_SECONDS * self._rate)
            found |= {number: encode_ogg(wave[:most], self._rate) for number, wave in waves.items()}
        return found

    def _shard_of(self, number: int) -> int:
        return bisect_right(self._lasts, number)

    def _waves(self, numbers: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        """Waveforms of the clips of one shard that can be read. Raises DataError if there is none."""
        shard = self._shards[self._shard_of(numbers[0])]
        wanted = {self._keys[number]: number for number in numbers}
        found: dict[int, NDArray[np.float32]] = {}
        for sample in read_samples(self._path(shard), only=wanted):
            if sample.key in wanted and not sample.problem:
                found[wanted[sample.key]] = decode(sample.audio, sample_rate_hz=self._rate, max_seconds=MAX_SECONDS)
            if len(found) == len(wanted):
                break
        if not found:
            raise UnusableClip(f"shard {shard.name} has no clip {next(iter(wanted))!r}")
        return found

    def _path(self, shard: ShardIdentity) -> Path:
        path = self._folder / shard.name
        if not _is_below(shard.name) or not path.is_file():
            raise ShardError(f"shard {shard.name} is not below {self._folder}")
        if path.stat().st_size != shard.size:
            raise ShardError(f"shard {path} has changed since it was encoded")
        return path


def _is_below(name: str) -> bool:
    """Whether a relative path stays below its parent folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set("\\\0:") & set(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedAudio:
    """Audio of a page: number of the point -> data URI, and the number of clips that were requested."""

    uris: Mapping[int, str]
    wanted: int


def embed(audio: ClipAudio, numbers: NDArray[np.int64], groups: Sequence[int], *, most: int) -> EmbeddedAudio:
    """Choose up to `most` clips, balanced over groups, and encode them as data URIs of at most six megabytes.

    Parameters
    ----------
    numbers : int64 (n,)
        Number of each point in the feature set.
    groups : sequence of int
        Class of each point.
    """
    order = np.random.default_rng(0).permutation(len(numbers))
    turn: dict[int, int] = {}
    rank = {}
    for at in order:
        rank[int(at)] = turn.get(groups[at], 0)
        turn[groups[at]] = rank[int(at)] + 1
    chosen = sorted(rank, key=lambda at: rank[at])[:most]
    excerpts = audio.excerpts([int(numbers[at]) for at in chosen])
    uris: dict[int, str] = {}
    bytes_left = MAX_EMBEDDED_BYTES
    for at in chosen:
        sound = excerpts.get(int(numbers[at]))
        if sound is None or len(sound) * 4 / 3 > bytes_left:
            continue
        uris[at] = "data:audio/ogg;base64," + base64.b64encode(sound).decode()
        bytes_left -= len(uris[at])
    return EmbeddedAudio(uris=uris, wanted=len(chosen))

"""Reads the samples of tar shards, and writes shards. The only module that imports webdataset."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from featstore.errors import ShardError
from featstore.files import replacing
from featstore.formatting import one_line

__all__ = [
    "AUDIO_EXTENSIONS",
    "MAX_HEADER_BYTES",
    "MAX_MEMBER_BYTES",
    "Sample",
    "TarBytes",
    "open_tar_bytes",
    "read_samples",
    "write_shard",
]


MAX_HEADER_BYTES = 32 << 10  # of one member: its long name and pax records
_MOST_EXPANSION = 20
_FREE_EXPANSION_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class TarBytes:
    """A seekable file that limits how much can be read.

    tarfile reads as much as a header claims, even a name of eight gigabytes. With an allowance for each step, such a
    claim is an error.

    Parameters
    ----------
    file : binary file
    most_bytes : int, optional
        Maximum size of the unpacked file.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile, *, most_bytes: int | None) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._allowed = 0

    def allow(self, n_bytes: int) -> None:
        """Allow the next `n_bytes` to be read."""
        self._allowed = n_bytes

    def read(self, n_bytes: int) -> bytes:
        """Read up to `n_bytes`. Raises tarfile.ReadError beyond the allowance."""
        if not 0 <= n_bytes <= self._allowed:
            raise tarfile.ReadError(f"a header that claims {n_bytes:,} bytes more, where {self._allowed:,} are allowed")
        self._allowed -= n_bytes
        data = self._file.read(n_bytes)
        self._check_expansion(self._file.tell())
        return data

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Move to `position`."""
        if whence == io.SEEK_SET:
            self._check_expansion(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        """Current position."""
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _check_expansion(self, position: int) -> None:
        if self._most_bytes is not None and position > self._most_bytes:
            raise tarfile.ReadError(f"it unpacks to more than {_MOST_EXPANSION} times its size, as no audio does")


def open_tar_bytes(path: Path) -> TarBytes:
    """Open a shard, decompressing gzip. Raises OSError."""
    with path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
    if magic != _GZIP_MAGIC:
        return TarBytes(path.open("rb"), most_bytes=None)
    most_bytes = _FREE_EXPANSION_BYTES + _MOST_EXPANSION * path.stat().st_size
    return TarBytes(gzip.open(path, "rb"), most_bytes=most_bytes)


# in order of preference if a sample has several (the order of X-ARES 0.1.3, then further formats of libsndfile)
AUDIO_EXTENSIONS = ("flac", "mp3", "sox", "wav", "m4a", "ogg", "wma", "opus", "aiff", "aif", "au", "w64", "caf")
MAX_MEMBER_BYTES = 1 << 30
MAX_META_BYTES = 4 << 20
_BROKEN_TAR = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample of a shard. ``problem`` is the reason why it is unusable, if the tar alone shows it."""

    key: str
    audio: bytes
    extension: str
    meta: bytes
    problem: str = ""


def read_samples(
    path: Path, *, where: str = "", only: Collection[str] | None = None, keys: set[str] | None = None
) -> Iterator[Sample]:
    """Read a shard's samples in order. ``where`` is its name in messages, by default its path.

    Parameters
    ----------
    only : collection of str, optional
        Keys of the requested samples: other samples are skipped, and the end of the tar is not checked.
    keys : set of str, optional
        Receives the key of every sample, skipped ones included.

    Raises
    ------
    ShardError
        The file is not a tar (plain or gzipped), or is truncated.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    unusual: list[Sample] = []
    where = where or str(path)
    with _open_tar(path, where) as (tar, source):
        members = _Members(tar, source, where, split_name=base_plus_ext, unusual=unusual, only=only)
        for group in group_by_keys(members, keys=base_plus_ext, handler=members.on_duplicate):
            if keys is not None:
                keys.add(group["__key__"])
            if only is not None:
                unusual.clear()
                if group["__key__"] not in only:
                    continue
            yield from _drain(unusual)
            yield _sample(group)
        if only is None:
            yield from _drain(unusual)
            _check_end(tar, source, where)


class _Members:
    """The members of a tar, as input of webdataset's grouping."""

    def __init__(
        self,
        tar: tarfile.TarFile,
        source: TarBytes,
        where: str,
        *,
        split_name: Callable[[str], tuple[str | None, str | None]],
        unusual: list[Sample],
        only: Collection[str] | None,
    ) -> None:
        self._tar = tar
        self._source = source
        self._where = where
        self._split_name = split_name
        self._unusual = unusual
        self._only = only
        self._current = ""
        self._at = -1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            with _as_shard_error(self._where):
                member = self._next()
                if member is None:
                    return
                data = self._read(member)
            if data is not None:
                self._current = member.name
                yield {"fname": member.name, "data": data, "__url__": ""}

    def _next(self) -> tarfile.TarInfo | None:
        self._source.allow(MAX_HEADER_BYTES)
        member = self._tar.next()
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header in memory
        self._tar.pax_headers = {}  # global headers do not apply to samples
        if member is not None and (member.size < 0 or self._tar.offset <= self._at):
            raise tarfile.ReadError(f"a member that claims {member.size:,} bytes")  # would be read again forever
        self._at = self._tar.offset
        return member

    def _read(self, member: tarfile.TarInfo) -> bytes | None:
        """Content of a member that a sample needs; b"" if only its name matters; None if it is ignored."""
        key, suffix = self._split_name(member.name)
        extension = member.name.rpartition(".")[2].lower()
        wanted = extension in AUDIO_EXTENSIONS or extension == "json"
        if suffix is None or suffix.startswith("__"):
            if wanted and member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                self._report(member.name, "its name has no key")
            return None
        if not member.isreg() or member.issparse():
            if wanted:
                self._report(member.name, "it is a link, a sparse file or a device: a member must be a plain file")
            return None
        if not wanted or (self._only is not None and key not in self._only):
            return b""
        most = MAX_META_BYTES if extension == "json" else MAX_MEMBER_BYTES
        if member.size > most:
            self._report(member.name, f"it has {member.size:,} bytes, more than {most:,}")
            return None
        self._source.allow(member.size)
        file = self._tar.extractfile(member)
        return None if file is None else file.read()

    def on_duplicate(self, error: Exception) -> bool:
        """Callback of webdataset's grouping, which keeps the first of two members of one name."""
        if isinstance(error, ShardError):
            raise error
        self._report(self._current, "a second member of this name was skipped")
        return True

    def _report(self, name: str, problem: str) -> None:
        self._unusual.append(Sample(key=name, audio=b"", extension="", meta=b"", problem=problem))


def _drain(samples: list[Sample]) -> Iterator[Sample]:
    while samples:
        yield samples.pop(0)


def _sample(group: Mapping[str, Any]) -> Sample:
    suffixes = [name for name in group if not name.startswith("__")]
    by_extension: dict[str, list[str]] = {}
    for suffix in suffixes:
        by_extension.setdefault(suffix.rpartition(".")[2], []).append(suffix)
    extension = next((extension for extension in AUDIO_EXTENSIONS if extension in by_extension), "")
    problem = ""
    if not extension:
        problem = f"it has no audio member (found: {_listed(suffixes)})"
    elif len(by_extension[extension]) > 1:
        problem = f"it has more than one {extension} member ({_listed(by_extension[extension])}): ambiguous"
    elif "json" not in group:
        problem = f"it has no .json member (found: {_listed(suffixes)}); a key ends at the first dot of the name"
    if problem:
        return Sample(key=group["__key__"], audio=b"", extension=extension, meta=b"", problem=problem)
    return Sample(
        key=group["__key__"], audio=group[by_extension[extension][0]], extension=extension, meta=group["json"]
    )


def _listed(suffixes: Iterable[str]) -> str:
    text = ", ".join(sorted(suffixes))
    return text.encode("utf-8", "backslashreplace").decode()[:200]


@contextmanager
def _open_tar(path: Path, where: str) -> Iterator[tuple[tarfile.TarFile, TarBytes]]:
    with _as_shard_error(where):
        source = open_tar_bytes(path)
    with source:
        with _as_shard_error(where):
            source.allow(MAX_HEADER_BYTES)
            # set the encoding, because the default depends on the locale of the machine
            tar = tarfile.TarFile(path.name, "r", fileobj=source, encoding="utf-8")  # type: ignore[arg-type]
        with tar:
            yield tar, source


@contextmanager
def _as_shard_error(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ShardError(f"there is no shard {where}") from error
    except _BROKEN_TAR as error:
        raise ShardError(
            f"{where} is not a complete tar: {one_line(error, most=200)}; make or download it again"
        ) from error


def _check_end(tar: tarfile.TarFile, source: TarBytes, where: str) -> None:
    """Check the end mark of a tar. tarfile stops silently at damage, truncation or a second archive."""
    step = 1 << 20
    with _as_shard_error(where):
        source.seek(tar.offset)
        source.allow(tarfile.BLOCKSIZE)
        rest = source.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE:
            raise ShardError(f"{where} breaks off at byte {tar.offset:,}, without a tar's end mark: download it again")
        while rest:
            if rest.count(0) != len(rest):
                raise ShardError(f"{where} is damaged at byte {tar.offset:,}: expected a member or the end mark")
            source.allow(step)
            rest = source.read(step)


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes | str]]) -> None:
    """Write a WebDataset shard whose bytes depend only on its samples.

    Parameters
    ----------
    path : Path
        Written under a temporary name beside it, then renamed when complete.
    samples : iterable of mapping
        ``__key__``, then one entry per member: extension -> bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        temporary.open("wb") as file,
        tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for sample in samples:
            for extension in sorted(sample.keys() - {"__key__"}):
                _add(tar, str(sample["__key__"]) + f".{extension}", sample[extension])


def _add(tar: tarfile.TarFile, name: str, content: bytes | str) -> None:
    """Add a member with the metadata of webdataset's own writer, whose import would import torch."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
    tar.addfile(info, io.BytesIO(data))

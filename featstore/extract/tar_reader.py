"""Reads the samples of a tar shard, and writes shards. The only module that imports webdataset."""

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


MAX_HEADER_BYTES = 32 << 10  # of one member: its long name and its pax records with it
_MOST_EXPANSION = 20
_FREE_EXPANSION_BYTES = 64 << 20
_GZIP_MAGIC = b"\x1f\x8b"


class TarBytes:
    """A file to read and to seek in, that gives out no more than it was told to allow.

    tarfile reads what a header claims, be it a name of eight gigabytes. With an allowance set before each step, a
    claim like that is an error.

    Parameters
    ----------
    file : binary file
    most_bytes : int, optional
        Where the file must have ended.
    """

    def __init__(self, file: BinaryIO | gzip.GzipFile, *, most_bytes: int | None) -> None:
        self._file = file
        self._most_bytes = most_bytes
        self._allowed = 0

    def allow(self, n_bytes: int) -> None:
        """From here on so many bytes may be read."""
        self._allowed = n_bytes

    def read(self, n_bytes: int) -> bytes:
        """Read up to `n_bytes`; tarfile.ReadError where that is not allowed."""
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
        """Where the next byte is."""
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _check_expansion(self, position: int) -> None:
        if self._most_bytes is not None and position > self._most_bytes:
            raise tarfile.ReadError(f"it unpacks to more than {_MOST_EXPANSION} times its size, as no audio does")


def open_tar_bytes(path: Path) -> TarBytes:
    """Open a shard, unpacking what is gzipped. Raises OSError."""
    with path.open("rb") as file:
        magic = file.read(len(_GZIP_MAGIC))
    if magic != _GZIP_MAGIC:
        return TarBytes(path.open("rb"), most_bytes=None)
    most_bytes = _FREE_EXPANSION_BYTES + _MOST_EXPANSION * path.stat().st_size
    return TarBytes(gzip.open(path, "rb"), most_bytes=most_bytes)


# in this order where a sample has several (the order of X-ARES 0.1.3, then more that libsndfile reads)
AUDIO_EXTENSIONS = ("flac", "mp3", "sox", "wav", "m4a", "ogg", "wma", "opus", "aiff", "aif", "au", "w64", "caf")
MAX_MEMBER_BYTES = 1 << 30
MAX_META_BYTES = 4 << 20
_BROKEN_TAR = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, zlib.error, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample of a shard. ``problem`` says why it cannot be used, where the tar alone shows it."""

    key: str
    audio: bytes
    extension: str
    meta: bytes
    problem: str = ""


def read_samples(path: Path, *, where: str = "", only: Collection[str] | None = None) -> Iterator[Sample]:
    """Read a shard's samples in order. ``where`` is what messages call it, if not by its path.

    Parameters
    ----------
    only : collection of str, optional
        Keys of the samples that are wanted: of the others no content is read, nor is the end of the tar.

    Raises
    ------
    ShardError
        The file is no tar, plain or gzipped, or breaks off: a shard that is half there is no shard.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    unusual: list[Sample] = []
    where = where or str(path)
    with _open_tar(path, where) as (tar, source):
        members = _Members(tar, source, where, split_name=base_plus_ext, unusual=unusual, only=only)
        for group in group_by_keys(members, keys=base_plus_ext, handler=members.on_duplicate):
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
    """The files of a tar that make up its samples, as webdataset's grouping takes them."""

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
        self._tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header of the shard
        self._tar.pax_headers = {}  # nor do a shard's global headers say anything of its samples
        if member is not None and (member.size < 0 or self._tar.offset <= self._at):
            raise tarfile.ReadError(f"a member that claims {member.size:,} bytes")  # it would be read again for ever
        self._at = self._tar.offset
        return member

    def _read(self, member: tarfile.TarInfo) -> bytes | None:
        """Content of a member that a sample needs; b"" of one that has only a name; None of one that is passed over."""
        key, suffix = self._split_name(member.name)
        extension = member.name.rpartition(".")[2].lower()
        wanted = extension in AUDIO_EXTENSIONS or extension == "json"
        if suffix is None or suffix.startswith("__"):
            if wanted and member.isfile() and not member.name.rpartition("/")[2].startswith("."):
                self._report(member.name, "no key can be made of its name")
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
        """Called by webdataset's grouping; it keeps the first of two members of one name."""
        if isinstance(error, ShardError):
            raise error
        self._report(self._current, "a second member of this name was left out")
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
        problem = f"it has more than one {extension} member ({_listed(by_extension[extension])}): which one is meant?"
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
            # the encoding of names is said here, for else the machine's locale would decide about keys
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
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise ShardError(f"{where} is no whole tar: {told}; make or download it again") from error


def _check_end(tar: tarfile.TarFile, source: TarBytes, where: str) -> None:
    """A tar ends in blocks of zeros. tarfile stops without a word at anything else: damage, a cut, a second archive."""
    step = 1 << 20
    with _as_shard_error(where):
        source.seek(tar.offset)
        source.allow(tarfile.BLOCKSIZE)
        rest = source.read(tarfile.BLOCKSIZE)
        if len(rest) < tarfile.BLOCKSIZE:
            raise ShardError(f"{where} breaks off at byte {tar.offset:,}, without a tar's end mark: download it again")
        while rest:
            if rest.count(0) != len(rest):
                raise ShardError(
                    f"{where} is damaged at byte {tar.offset:,}: neither a member nor the end mark stands there"
                )
            source.allow(step)
            rest = source.read(step)


def write_shard(path: Path, samples: Iterable[Mapping[str, bytes | str]]) -> None:
    """Write a WebDataset shard whose bytes depend on nothing but its samples.

    Parameters
    ----------
    path : Path
        Appears when it is whole: the tar is written under another name beside it, then renamed.
    samples : iterable of mapping
        ``__key__``, then one entry for each member: extension -> bytes.
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
    """Add a member as webdataset's own writer has it, owner and all; to import that would be to import torch."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
    tar.addfile(info, io.BytesIO(data))

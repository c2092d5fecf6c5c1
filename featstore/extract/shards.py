"""Finds the shards of a split in a folder or at a URL, and detects changed shards."""

from __future__ import annotations

import contextlib
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from featstore.errors import RemoteError, ShardError
from featstore.files import sha256_of_file
from featstore.records import SkippedClip
from featstore.remote import Remote, RemoteObject, is_url, joined_url, open_remote
from featstore.shard_patterns import PatternError, ShardPattern, is_glob, matches_glob
from featstore.store import Segment, ShardIdentity

__all__ = [
    "AnyShard",
    "RemoteShard",
    "Shard",
    "ShardFile",
    "dataset_folder",
    "existing_shards",
    "find_shards",
    "is_committed",
    "sha256_of_shard",
]  # fmt: skip

_RANGE_BYTES = 16 << 20
_RANGES_AT_A_TIME = 4
_CLAIMED_SECONDS = re.compile(r"its header claims ([0-9,]+) s, more than --max-clip-seconds ")


@dataclass(frozen=True, slots=True)
class ShardFile:
    """Local file of a shard's bytes; `close` it after reading."""

    path: Path
    close: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A tar on disk."""

    name: str
    path: Path

    @property
    def where(self) -> str:
        """Its path."""
        return str(self.path)

    def identity(self, *, sha256: str = "") -> ShardIdentity:
        """Current size and modification time, and the content hash if known. Raises ShardError if it is missing."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise ShardError(f"shard {self.path} cannot be read: {error.strerror}") from error
        return ShardIdentity(name=self.name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256)

    def fetch(self) -> ShardFile:
        """Return the file itself."""
        return ShardFile(self.path, lambda: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteShard:
    """A tar at a URL, as listed."""

    name: str
    remote: Remote
    size: int
    etag: str | None
    mtime_ns: int | None

    @property
    def where(self) -> str:
        """Its URL."""
        return joined_url(self.remote.url, self.name)

    def identity(self, *, sha256: str = "") -> ShardIdentity:
        """Size and etag as listed, which `fetch` enforces; the modification time is used if there is no etag."""
        mtime_ns = None if self.etag else self.mtime_ns
        return ShardIdentity(name=self.name, size=self.size, etag=self.etag, mtime_ns=mtime_ns, sha256=sha256)

    def fetch(self) -> ShardFile:
        """Download to a temporary file, in parallel ranges. The file is used after the download is complete.

        ``TMPDIR`` sets the folder. The client retries each range after a connection failure. Ranges are requested with
        the listed etag, so that a shard that changes meanwhile is an error.
        """
        folder = tempfile.TemporaryDirectory(prefix="featstore-")
        path = Path(folder.name) / "shard.tar"
        try:
            self._download(path)
        except RemoteError as error:
            folder.cleanup()
            raise ShardError(f"shard {self.where} cannot be read: {error}") from error
        except OSError as error:
            folder.cleanup()
            raise ShardError(
                f"shard {self.where} does not fit in {tempfile.gettempdir()}: {error.strerror}; "
                "set TMPDIR to another folder"
            ) from error
        except BaseException:
            folder.cleanup()
            raise
        return ShardFile(path, folder.cleanup)

    def _download(self, path: Path) -> None:
        with path.open("wb") as file, ThreadPoolExecutor(_RANGES_AT_A_TIME, thread_name_prefix="range") as pool:
            file.truncate(self.size)
            one_at_a_time = threading.Lock()

            def copy(start: int) -> None:
                stop = min(start + _RANGE_BYTES, self.size)
                data = self.remote.get_range(self.name, start, stop, etag=self.etag)
                with one_at_a_time:
                    file.seek(start)
                    file.write(data)

            list(pool.map(copy, range(0, self.size, _RANGE_BYTES)))


AnyShard: TypeAlias = Shard | RemoteShard


def find_shards(folder: Path | str, pattern: str) -> tuple[AnyShard, ...]:
    """Shards below `folder`, a path or URL, that match a glob or brace pattern, sorted by name.

    Raises
    ------
    ShardError
        The folder does not exist, or an alternative of the pattern matches no shard.
    """
    if isinstance(folder, str) and is_url(folder):
        return _find_remote(folder, pattern)
    return _find_local(Path(folder), pattern)


def dataset_folder(data: Path | str, dataset: str) -> Path | str:
    """Folder or URL of a dataset's shards below ``--data``.

    >>> str(dataset_folder("data", "words")), dataset_folder("s3://bucket/data/", "words")
    ('data/words', 's3://bucket/data/words')
    >>> dataset_folder("https://host/data/?sig=x", "words")
    'https://host/data/words?sig=x'
    """
    if isinstance(data, str) and is_url(data):
        return joined_url(data, dataset)
    return Path(data.removeprefix("file://") if isinstance(data, str) else data) / dataset


def _find_local(folder: Path, pattern: str) -> tuple[Shard, ...]:
    if not folder.is_dir():
        raise ShardError(f"there is no folder {folder}: --data must be a folder with one folder of shards per dataset")
    found = {each: _matches(folder, each) for each in _alternatives(pattern)}
    _require_all(found, pattern, folder)
    named = {path.relative_to(folder).as_posix(): path for paths in found.values() for path in paths}
    for name in named:
        if not _is_utf8(name):
            raise ShardError(f"the name of shard {name!r} in {folder} is not UTF-8: rename it")
    return tuple(Shard(name=name, path=named[name]) for name in sorted(named))


def _find_remote(url: str, pattern: str) -> tuple[RemoteShard, ...]:
    """Look up names without wildcards one by one, without a listing; list the folder for the others."""
    alternatives = _alternatives(pattern)
    try:
        remote = open_remote(url)
        globs = [each for each in alternatives if is_glob(each)]
        listed = tuple(remote.objects("")) if globs else ()
        named = [each for each in alternatives if each not in globs]
        with ThreadPoolExecutor(8, thread_name_prefix="head") as pool:
            heads = dict(zip(named, pool.map(remote.head, named), strict=True))
    except RemoteError as error:
        raise ShardError(f"shards cannot be listed: {error}") from error
    found: dict[str, tuple[RemoteObject, ...]] = {
        each: tuple(one for one in listed if matches_glob(one.key, each)) for each in globs
    }
    found |= {name: () if head is None else (head,) for name, head in heads.items()}
    _require_all({each: found[each] for each in alternatives}, pattern, remote.url)
    by_name = {one.key: one for ones in found.values() for one in ones}
    return tuple(_remote_shard(remote, by_name[name]) for name in sorted(by_name))


def _remote_shard(remote: Remote, found: RemoteObject) -> RemoteShard:
    if found.size is None:
        where = joined_url(remote.url, found.key)
        raise ShardError(f"the server does not report the size of {where}: copy it to a folder first")
    return RemoteShard(name=found.key, remote=remote, size=found.size, etag=found.etag, mtime_ns=found.modified_ns)


def _require_all(found: Mapping[str, Sequence[object]], pattern: str, where: object) -> None:
    missing = [each for each, ones in found.items() if not ones]
    if missing:
        what = repr(pattern) if len(missing) == len(found) else f"{missing[0]!r} of {pattern!r}"
        raise ShardError(f"no shard matches {what} in {where}: check the manifest's pattern or the download")


def _alternatives(pattern: str) -> tuple[str, ...]:
    """Unique globs that a brace pattern expands to."""
    try:
        return ShardPattern(pattern).alternatives
    except PatternError as error:
        raise ShardError(f"shard pattern {pattern!r} {error}") from error


def _matches(folder: Path, pattern: str) -> tuple[Path, ...]:
    try:
        return tuple(path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ShardError(f"{pattern!r} is not a valid shard pattern below {folder}: {error}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def existing_shards(folder: Path | str, names: Sequence[str]) -> frozenset[str]:
    """Those shard names whose files exist in `folder`, a path or URL, whether or not a pattern matches them.

    Raises
    ------
    ShardError
        The URL cannot be accessed.
    """
    if not names:
        return frozenset()
    if not (isinstance(folder, str) and is_url(folder)):
        return frozenset(name for name in names if _is_inside(name) and Path(folder, name).is_file())
    try:
        remote = open_remote(folder)
        with ThreadPoolExecutor(8, thread_name_prefix="head") as pool:
            heads = tuple(pool.map(remote.head, names))
    except RemoteError as error:
        raise ShardError(f"shards cannot be looked up: {error}") from error
    return frozenset(name for name, head in zip(names, heads, strict=True) if head is not None)


def _is_inside(name: str) -> bool:
    """Whether a name, which may come from an untrusted store, is a path inside its folder."""
    return not name.startswith("/") and ".." not in name.split("/")


def is_committed(
    shard: AnyShard,
    cached: Segment | None,
    *,
    wants_frames: bool,
    max_clip_seconds: float,
    check_content: bool = False,
    sha256_of: Callable[[AnyShard], str] | None = None,
) -> bool:
    """Whether a part is up to date with the current shard and the requested outputs.

    A shard with the same size and another time or etag is hashed, so that a copied data set is not encoded again. With
    `check_content` every shard is hashed, which detects a replacement of the same size and time. A shard is stale if it
    has a clip that was skipped for its duration and fits `max_clip_seconds` now; a lower limit does not make it stale.
    `sha256_of` may cache hashes.

    Raises
    ------
    ShardError
        The shard is missing or unreadable.
    """
    if cached is None or (wants_frames and not cached.commit.frames_stored):
        return False
    if any(_fits(clip, max_clip_seconds) for clip in cached.member.skipped):
        return False
    now = shard.identity()
    known = cached.member.shard
    if now.size != known.size:
        return False
    same_state = (now.mtime_ns, _bare(now.etag)) == (known.mtime_ns, _bare(known.etag)) != (None, None)
    if same_state and not check_content:
        return True
    return (sha256_of or sha256_of_shard)(shard) == known.sha256


def _fits(clip: SkippedClip, max_clip_seconds: float) -> bool:
    """Whether a clip was skipped for a duration that is within the limit now."""
    if clip.seconds is not None:
        return clip.seconds <= max_clip_seconds
    # older records have the duration only in their reason, rounded to seconds
    rounded = _CLAIMED_SECONDS.match(clip.reason)
    return rounded is not None and float(rounded[1].replace(",", "")) + 0.5 <= max_clip_seconds


def _bare(etag: str | None) -> str | None:
    """An etag without quotes, which some servers add in headers but not in listings."""
    return etag.strip('"') if etag else None


def sha256_of_shard(shard: AnyShard) -> str:
    """Content hash of a shard, downloaded if it is remote."""
    with contextlib.closing(shard.fetch()) as file:
        return sha256_of_file(file.path)

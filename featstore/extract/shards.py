"""Finds the shards of a split and tells one state of a shard from another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import ShardError
from featstore.store import Segment, ShardIdentity

__all__ = ["Shard", "find_shards", "is_committed", "sha256_of_file"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A tar on disk. ``name`` is its path below the dataset's folder."""

    name: str
    path: Path

    def identity(self, *, sha256: str = "") -> ShardIdentity:
        """Size and modification time now, with the content hash where it is known; ShardError where it has gone."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise ShardError(f"shard {self.path} cannot be read: {error.strerror}") from error
        return ShardIdentity(name=self.name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256)


def find_shards(folder: Path, pattern: str) -> tuple[Shard, ...]:
    """Shards below `folder` that match a glob or brace pattern, in order of name.

    Raises
    ------
    ShardError
        The folder is not there, or nothing in it matches: every alternative of a brace pattern must match a shard.
    """
    if not folder.is_dir():
        raise ShardError(
            f"there is no folder {folder}: --data is the folder that holds one folder of shards for each dataset"
        )
    found = {each: _matches(folder, each) for each in _alternatives(pattern)}
    missing = [each for each, paths in found.items() if not paths]
    if missing:
        what = repr(pattern) if len(missing) == len(found) else f"{missing[0]!r} of {pattern!r}"
        raise ShardError(f"no shard matches {what} in {folder}: check the manifest's pattern or the download")
    named = {path.relative_to(folder).as_posix(): path for paths in found.values() for path in paths}
    for name in named:
        if not _is_utf8(name):
            raise ShardError(f"the name of shard {name!r} in {folder} is not UTF-8: rename it")
    return tuple(Shard(name=name, path=named[name]) for name in sorted(named))


def _alternatives(pattern: str) -> tuple[str, ...]:
    """Globs that a brace pattern stands for, each once."""
    from braceexpand import braceexpand

    try:
        return tuple(dict.fromkeys(braceexpand(pattern)))
    except ValueError as error:
        raise ShardError(f"shard pattern {pattern!r} has unbalanced braces") from error


def _matches(folder: Path, pattern: str) -> tuple[Path, ...]:
    try:
        return tuple(path for path in folder.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ShardError(f"{pattern!r} is no pattern of shards below {folder}: {error}") from error


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_committed(
    shard: Shard, cached: Segment | None, *, wants_frames: bool, sha256_of: Callable[[Path], str] | None = None
) -> bool:
    """Whether a part says all that is wanted of this shard as it is now.

    A shard whose time has changed and whose size has not is read and hashed: a copied data set is not encoded again.
    `sha256_of` may remember what it has hashed.
    """
    if cached is None or (wants_frames and not cached.commit.frames_stored):
        return False
    now = shard.identity()
    known = cached.member.shard
    if now.size != known.size:
        return False
    return now.mtime_ns == known.mtime_ns or (sha256_of or sha256_of_file)(shard.path) == known.sha256


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes; releases the GIL."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

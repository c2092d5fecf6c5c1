"""Seals of saved indexes: checksums of their files, and a key of this user on this machine that signs them.

FAISS trusts what it reads: a flipped bit gives wrong neighbours or ends the process. So an index is opened only where
every byte is what was written, and where it was written here. The key is made on first use, in ``featstore/index-key``
of the user's state folder (``XDG_STATE_HOME``), and never leaves it: an index that comes with a store of a stranger
cannot be signed with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from featstore.records import canonical_json
from featstore.store.codecs import crc32c

__all__ = ["UnusableIndex", "check_file", "checksum", "has_key", "key_path", "read_regular", "signature"]

_KEY_BYTES = 32
_BLOCK_BYTES = 4 << 20
_PURPOSE = b"featstore saved index\n"

_verified: set[tuple[str, int, int, int, int, str]] = set()
"""Files that this process has read and found sound, as they were then."""


class UnusableIndex(Exception):
    """An index that is not to be opened; the message says why, and is empty where there is none."""


def signature(record: Mapping[str, Any]) -> str:
    """HMAC-SHA-256 of a record's canonical JSON, by the key of this machine."""
    return hmac.new(_key(key_path()), _PURPOSE + canonical_json(record).encode(), hashlib.sha256).hexdigest()


def checksum(path: Path, *, kind: str) -> str:
    """Checksum of a file, read block by block: ``sha256:...`` or ``crc32c:...``, which is six times as fast."""
    digest, crc = hashlib.sha256(), 0
    block = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while n_bytes := file.readinto(block):
            if kind == "sha256":
                digest.update(block[:n_bytes])
            else:
                crc = crc32c(block[:n_bytes], crc)
    return f"sha256:{digest.hexdigest()}" if kind == "sha256" else f"crc32c:{crc:08x}"


def check_file(path: Path, *, size: int, expected: str) -> None:
    """Check a file against its checksum, once per process as long as it stays as it is.

    Raises
    ------
    UnusableIndex
        It is missing, is not a regular file, or differs.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size != size:
            raise UnusableIndex(f"{path.name} is not as long as it was written")
        seen = (str(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, expected)
        if seen in _verified:
            return
        if checksum(path, kind=expected.partition(":")[0]) != expected:
            raise UnusableIndex(f"{path.name} differs from its checksum")
    except OSError as error:
        raise UnusableIndex(f"{path.name} cannot be read") from error
    _verified.add(seen)


def read_regular(path: Path, *, most_bytes: int) -> bytes:
    """Read a small regular file; what is a link, a FIFO or too large raises OSError, and nothing waits for a writer."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most_bytes:
            raise OSError(f"{path} is not a file of at most {most_bytes} bytes")
        return file.read(most_bytes)


# --- the key ----------------------------------------------------------------------------------------------------------


def key_path() -> Path:
    """Where this user's key is."""
    if named := os.environ.get("XDG_STATE_HOME"):
        return Path(named) / "featstore" / "index-key"
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - of a user without a home, Path raises
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "featstore" / "index-key"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "featstore" / "index-key"
    return home / ".local" / "state" / "featstore" / "index-key"


def has_key() -> bool:
    """Whether there is a key that outlasts this process."""
    return _stored_key(key_path()) is not None


@cache
def _key(path: Path) -> bytes:
    """The key, made where there is none; one of this process alone where it cannot be stored."""
    with contextlib.suppress(OSError):
        if (there := _stored_key(path)) is not None:
            return there
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(new, path)  # never over one that another process has just made
            except OSError:
                if _stored_key(path) is None:  # unusable, or the file system has no links
                    new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        if (made := _stored_key(path)) is not None:
            return made
    return secrets.token_bytes(_KEY_BYTES)


def _stored_key(path: Path) -> bytes | None:
    """The key in a file that is this user's own and that no one else may read."""
    try:
        key = read_regular(path, most_bytes=_KEY_BYTES)
        about = path.lstat()
    except OSError:
        return None
    if os.name == "posix" and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        return None
    return key if len(key) == _KEY_BYTES else None

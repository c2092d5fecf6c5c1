"""Folders of saved indexes: checksums of their files, and signatures by a key of this user on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import StoreError
from featstore.files import expanded, temporary_folder
from featstore.records import canonical_json
from featstore.retrieve.index_plan import IvfKind
from featstore.store.cache import cache_folder
from featstore.store.codecs import crc32c
from featstore.store.filesystem import LocalObjects, local_root

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = [
    "INDEX_FORMAT",
    "RECORD_FILE",
    "IndexRecord",
    "UnusableIndex",
    "atomic_folder",
    "check_file",
    "checksum",
    "first_writable",
    "has_key",
    "index_folders",
    "key_path",
    "read_regular",
    "signature",
    "sizes_and_checksums",
    "usable_record",
    "write_record",
]


_KEY_BYTES = 32
_BLOCK_BYTES = 4 << 20
_PURPOSE = b"featstore saved index\n"

_verified: set[tuple[str, int, int, int, int, str]] = set()
"""Files that this process has verified, with their state at that time."""


class UnusableIndex(Exception):
    """An index that must not be opened; the message is the reason, and empty if there is no index."""


def signature(record: Mapping[str, Any]) -> str:
    """HMAC-SHA-256 of a record's canonical JSON with the key of this machine."""
    return hmac.new(_key(key_path()), _PURPOSE + canonical_json(record).encode(), hashlib.sha256).hexdigest()


def checksum(path: Path, *, kind: str) -> str:
    """Checksum of a file, read in blocks: ``sha256:...``, or ``crc32c:...``, which is six times as fast."""
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
    """Verify a file against its checksum, once per process while the file does not change.

    Raises
    ------
    UnusableIndex
        The file is missing, is not a regular file, or does not match.
    """
    try:
        about = path.lstat()
        if not stat.S_ISREG(about.st_mode) or about.st_size != size:
            raise UnusableIndex(f"{path.name} does not have the size that was written")
        seen = (str(path), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, expected)
        if seen in _verified:
            return
        if checksum(path, kind=expected.partition(":")[0]) != expected:
            raise UnusableIndex(f"{path.name} does not match its checksum")
    except OSError as error:
        raise UnusableIndex(f"{path.name} cannot be read") from error
    _verified.add(seen)


def read_regular(path: Path, *, most_bytes: int) -> bytes:
    """Read a small regular file without blocking. Raises OSError for a link, a FIFO or a file that is too large."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_size > most_bytes:
            raise OSError(f"{path} is not a regular file of at most {most_bytes} bytes")
        return file.read(most_bytes)


# --- the key ----------------------------------------------------------------------------------------------------------


def key_path() -> Path:
    """Path of this user's key."""
    if named := os.environ.get("XDG_STATE_HOME"):
        return Path(named) / "featstore" / "index-key"
    home = expanded("~")
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "featstore" / "index-key"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "featstore" / "index-key"
    return home / ".local" / "state" / "featstore" / "index-key"


def has_key() -> bool:
    """Whether a key is stored, so that signatures outlast this process."""
    return _stored_key(key_path()) is not None


@cache
def _key(path: Path) -> bytes:
    """The key. It is created if missing, and valid for this process only if it cannot be stored."""
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
                os.link(new, path)  # does not replace a key that another process has just stored
            except OSError:
                if _stored_key(path) is None:  # unusable, or the file system has no hard links
                    new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        if (stored_key := _stored_key(path)) is not None:
            return stored_key
    return secrets.token_bytes(_KEY_BYTES)


def _stored_key(path: Path) -> bytes | None:
    """The key in a file that belongs to this user and is not readable by others."""
    try:
        key = read_regular(path, most_bytes=_KEY_BYTES)
        about = path.lstat()
    except OSError:
        return None
    if os.name == "posix" and (about.st_uid != os.geteuid() or about.st_mode & 0o077):
        return None
    return key if len(key) == _KEY_BYTES else None


INDEX_FORMAT = 2  # format 1 had no signatures
RECORD_FILE = "index.json"
_MOST_RECORD_BYTES = 1 << 20
_PARSED_BY_FAISS = (".faiss",)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """Metadata stored beside an index.

    Attributes
    ----------
    feature_set, fingerprint, content_hash : str
        The feature set that was indexed.
    plan : mapping
        Fields of the `IvfPlan`.
    n_probe : int
        Number of lists that a search visits.
    recall, recall_k : float, int
        Recall at ``recall_k``, measured on rows of the set as queries with the query's own row excluded.
    recall_by_probes : mapping
        Number of lists searched -> recall, for each number tried.
    seconds : mapping
        Build time by stage.
    files : mapping
        File name -> size in bytes.
    checksums : mapping
        File name -> ``sha256:...`` for files that FAISS parses, ``crc32c:...`` for lists, which may be large.
    """

    format: int
    feature_set: str
    fingerprint: str
    content_hash: str
    kind: IvfKind
    plan: Mapping[str, Any]
    n_probe: int
    recall: float
    recall_k: int
    recall_by_probes: Mapping[str, float]
    seconds: Mapping[str, float]
    files: Mapping[str, int]
    checksums: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Size on disk in bytes."""
        return sum(self.files.values())


def index_folders(feature_set: FeatureSet, kind: IvfKind) -> tuple[Path, ...]:
    """Possible folders of a feature set's index, in order of preference.

    No symbolic link beside a store is followed: a link in a downloaded store could lead to the user's own folders.
    """
    root = local_root(feature_set.store_url)
    cached = cache_folder() / "indexes" / feature_set.store_identity[:16] / feature_set.path / kind
    if root is None:
        return (cached,)
    root = root.resolve()
    beside = root.with_name(f"{root.name}.index") / feature_set.path / kind
    is_linked = any(path.is_symlink() for path in (beside, *beside.parents) if path.is_relative_to(root.parent))
    return (cached,) if is_linked else (beside, cached)


def first_writable(folders: Sequence[Path]) -> Path:
    """The first folder that can be created or written, else the last."""
    return next((each for each in folders if _is_writable(each)), folders[-1])


def usable_record(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> IndexRecord:
    """The record of an index that was built here from the current content and is intact.

    Raises
    ------
    UnusableIndex
        The index is missing, outdated, damaged, or not from this user and machine; the message is the reason.
    """
    try:
        raw = json.loads(read_regular(folder / RECORD_FILE, most_bytes=_MOST_RECORD_BYTES))
        if not isinstance(raw, dict) or raw.get("format") != INDEX_FORMAT:
            raise UnusableIndex("it was written by another version of featstore")
        signed = raw.pop("seal", None)
        if not isinstance(signed, str) or not hmac.compare_digest(signed.encode(), signature(raw).encode()):
            no_key = "" if has_key() else f"; no key can be stored in {key_path()}"
            raise UnusableIndex(f"it was not built by this user on this machine, or was changed{no_key}")
        record = IndexRecord(**raw)
    except FileNotFoundError:
        raise UnusableIndex("") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnusableIndex("its record is damaged") from error
    if (record.kind, record.feature_set, record.fingerprint, record.content_hash) != (
        kind,
        feature_set.path,
        feature_set.fingerprint,
        feature_set.content_hash,
    ):
        raise UnusableIndex("the content of the feature set has changed")
    for name, size in record.files.items():
        check_file(folder / name, size=size, expected=record.checksums[name])
    return record


def sizes_and_checksums(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes and checksums of the files of a new index, by name."""
    paths = sorted(folder.iterdir())
    kinds = {path.name: "sha256" if path.suffix in _PARSED_BY_FAISS else "crc32c" for path in paths}
    return (
        {path.name: path.stat().st_size for path in paths},
        {path.name: checksum(path, kind=kinds[path.name]) for path in paths},
    )


def write_record(record: IndexRecord, folder: Path) -> None:
    """Sign and write the metadata of an index."""
    fields = json.loads(json.dumps(asdict(record)))  # as it will be read back
    (folder / RECORD_FILE).write_text(json.dumps({**fields, "seal": signature(fields)}, indent=1), encoding="utf-8")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` if the block succeeds."""
    with temporary_folder(folder) as temporary:
        yield temporary
        LocalObjects(temporary.parent).sync(temporary.name)
        _replace(temporary, folder)


def _replace(temporary: Path, folder: Path) -> None:
    """Rename a folder, replacing an existing index. Processes that have the old one mapped keep it."""
    for _ in range(3):  # another process may replace it at the same time
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            with temporary_folder(folder) as aside, contextlib.suppress(FileNotFoundError):
                folder.rename(aside / "old")
        else:
            return
    raise StoreError(f"{folder} is being replaced by other processes: try again")


def _is_writable(folder: Path) -> bool:
    there = next(path for path in folder.parents if path.exists())
    return os.access(there, os.W_OK)

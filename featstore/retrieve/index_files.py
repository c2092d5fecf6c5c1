"""Folders of saved indexes and their seals: checksums, and a key of this user on this machine."""

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
from featstore.files import temporary_folder
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
    "check_file",
    "checksum",
    "has_key",
    "index_folders",
    "key_path",
    "read_regular",
    "seals_of",
    "signature",
    "usable_record",
    "whole_folder",
    "writable_one",
    "write_record",
]


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


INDEX_FORMAT = 2  # 1 had no seals
RECORD_FILE = "index.json"
_MOST_RECORD_BYTES = 1 << 20
_PARSED_BY_FAISS = (".faiss",)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord:
    """What stands beside an index.

    Attributes
    ----------
    feature_set, fingerprint, content_hash : str
        What it was made of.
    plan : mapping
        `IvfPlan`.
    n_probe : int
        Lists that a search looks through.
    recall, recall_k : float, int
        Share of the ``recall_k`` nearest that a search finds, of rows of the set itself with that row left out.
    recall_by_probes : mapping
        Number of lists searched -> recall, for each that was tried.
    seconds : mapping
        What making it took, by stage.
    files : mapping
        Name -> size in bytes.
    checksums : mapping
        Name -> ``sha256:...`` of a file whose structure FAISS reads, ``crc32c:...`` of lists, which may be large.
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
        """Bytes on disk."""
        return sum(self.files.values())


def index_folders(feature_set: FeatureSet, kind: IvfKind) -> tuple[Path, ...]:
    """Where a feature set's index may be, the best place first.

    Beside a store no symbolic link is followed: one that came with a store would lead to the user's own folders.
    """
    root = local_root(feature_set.store_url)
    cached = cache_folder() / "indexes" / feature_set.store_identity[:16] / feature_set.path / kind
    if root is None:
        return (cached,)
    root = root.resolve()
    beside = root.with_name(f"{root.name}.index") / feature_set.path / kind
    is_linked = any(path.is_symlink() for path in (beside, *beside.parents) if path.is_relative_to(root.parent))
    return (cached,) if is_linked else (beside, cached)


def writable_one(folders: Sequence[Path]) -> Path:
    """The first that can be made, or the last."""
    return next((each for each in folders if _is_writable(each)), folders[-1])


def usable_record(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> IndexRecord:
    """The record of an index that was made here, of what the feature set holds now, and whose every byte is sound.

    Raises
    ------
    UnusableIndex
        There is none; the message says why not, and is empty where the folder holds no index.
    """
    try:
        raw = json.loads(read_regular(folder / RECORD_FILE, most_bytes=_MOST_RECORD_BYTES))
        if not isinstance(raw, dict) or raw.get("format") != INDEX_FORMAT:
            raise UnusableIndex("it is of another version of featstore")
        signed = raw.pop("seal", None)
        if not isinstance(signed, str) or not hmac.compare_digest(signed.encode(), signature(raw).encode()):
            no_key = "" if has_key() else f"; no key can be kept in {key_path()}"
            raise UnusableIndex(f"it was not made by this user on this machine, or was changed{no_key}")
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
        raise UnusableIndex("it is of other content")
    for name, size in record.files.items():
        check_file(folder / name, size=size, expected=record.checksums[name])
    return record


def seals_of(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes and checksums of the files of a new index, by name."""
    paths = sorted(folder.iterdir())
    kinds = {path.name: "sha256" if path.suffix in _PARSED_BY_FAISS else "crc32c" for path in paths}
    return (
        {path.name: path.stat().st_size for path in paths},
        {path.name: checksum(path, kind=kinds[path.name]) for path in paths},
    )


def write_record(record: IndexRecord, folder: Path) -> None:
    """Write what stands beside an index, signed."""
    said = json.loads(json.dumps(asdict(record)))  # as it will be read
    (folder / RECORD_FILE).write_text(json.dumps({**said, "seal": signature(said)}, indent=1), encoding="utf-8")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, which gets the name `folder` at the end of a block that raises nothing."""
    with temporary_folder(folder) as temporary:
        yield temporary
        LocalObjects(temporary.parent).settle(temporary.name)
        _put(temporary, folder)


def _put(temporary: Path, folder: Path) -> None:
    """Give an index its name; one that has it goes. Whoever has that mapped keeps it."""
    for _ in range(3):  # another process may be putting its own there
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            with temporary_folder(folder) as aside, contextlib.suppress(FileNotFoundError):
                folder.rename(aside / "old")
        else:
            return
    raise StoreError(f"{folder} is being replaced by other processes all the time: try again")


def _is_writable(folder: Path) -> bool:
    there = next(path for path in folder.parents if path.exists())
    return os.access(there, os.W_OK)

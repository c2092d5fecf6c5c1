"""Folders that indexes are kept in: which index belongs to what, and how one is put there whole."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import StoreError
from featstore.files import temporary_folder
from featstore.retrieve.plan import IvfKind, IvfPlan
from featstore.retrieve.sealing import UnusableIndex, check_file, checksum, has_key, key_path, read_regular, signature
from featstore.store.cache import cache_folder
from featstore.store.objects import LocalObjects, local_root

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = [
    "INDEX_FORMAT",
    "RECORD_FILE",
    "IndexRecord",
    "index_folders",
    "seals_of",
    "usable_record",
    "whole_folder",
    "writable_one",
    "write_record",
]

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
    def ivf_plan(self) -> IvfPlan:
        """The plan as it was made."""
        return IvfPlan(**{**self.plan, "n_probes": tuple(self.plan["n_probes"])})

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
        record.ivf_plan  # noqa: B018 - one that this featstore can read
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

"""Folders that indexes are kept in: which index belongs to what, and how one is put there whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featstore.errors import StoreError
from featstore.retrieve.plan import IvfKind, IvfPlan
from featstore.store.cache import cache_folder
from featstore.store.objects import LocalObjects, local_root

if TYPE_CHECKING:
    from featstore.store import FeatureSet

__all__ = [
    "INDEX_FORMAT",
    "RECORD_FILE",
    "IndexRecord",
    "index_folders",
    "sweep_beside",
    "usable_record",
    "whole_folder",
    "writable_one",
]

INDEX_FORMAT = 1
RECORD_FILE = "index.json"


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

    @property
    def ivf_plan(self) -> IvfPlan:
        """The plan as it was made."""
        return IvfPlan(**{**self.plan, "n_probes": tuple(self.plan["n_probes"])})

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.files.values())


def index_folders(feature_set: FeatureSet, kind: IvfKind) -> tuple[Path, ...]:
    """Where a feature set's index may be, the best place first."""
    root = local_root(feature_set.store_url)
    url = feature_set.store_url if root is None else str(root.resolve())
    cached = cache_folder() / "indexes" / hashlib.sha256(url.encode()).hexdigest()[:16] / feature_set.path / kind
    if root is None:
        return (cached,)
    root = root.resolve()
    return (root.with_name(f"{root.name}.index") / feature_set.path / kind, cached)


def writable_one(folders: Sequence[Path]) -> Path:
    """The first that can be made, or the last."""
    return next((each for each in folders if _is_writable(each)), folders[-1])


def usable_record(folder: Path, feature_set: FeatureSet, kind: IvfKind) -> IndexRecord | None:
    """The record of an index that belongs to what the feature set holds now, and whose files are all there."""
    try:
        record = IndexRecord(**json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
        record.ivf_plan  # noqa: B018 - one that this featstore can read
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    belongs = (record.format, record.kind, record.feature_set, record.fingerprint, record.content_hash) == (
        INDEX_FORMAT,
        kind,
        feature_set.path,
        feature_set.fingerprint,
        feature_set.content_hash,
    )
    return record if belongs and sizes == record.files else None


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder, which gets the name `folder` at the end of a block that raises nothing."""
    temporary = _temporary(folder)
    temporary.mkdir()
    try:
        yield temporary
        LocalObjects(temporary.parent).settle(temporary.name)
        _put(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, folder: Path) -> None:
    """Give an index its name; one that has it goes. Whoever has that mapped keeps it."""
    for _ in range(3):  # another process may be putting its own there
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            aside = _temporary(folder)
            with contextlib.suppress(FileNotFoundError):
                folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            return
    raise StoreError(f"{folder} is being replaced by other processes all the time: try again")


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}")


def sweep_beside(folder: Path) -> None:
    """Delete what processes of this machine that are gone left half made."""
    for path in folder.parent.glob(f".{folder.name}~{socket.gethostname()}~*~*"):
        pid = path.name.split("~")[-2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError):
            continue


def _is_writable(folder: Path) -> bool:
    there = next(path for path in folder.parents if path.exists())
    return os.access(there, os.W_OK)

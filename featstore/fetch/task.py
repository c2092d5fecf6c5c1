"""The shards of a task from a public archive: what is there already, and the rest, several files at a time."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from featstore.errors import FetchError, UsageError
from featstore.fetch.download import RemoteFile, download, is_right, parse_record
from featstore.files import replacing, write_whole
from featstore.formatting import spoken_bytes

if TYPE_CHECKING:
    from featstore.fetch.download import Connection
    from featstore.tasks import Manifest

__all__ = ["ZENODO", "FetchRecord", "Watcher", "fetch_task", "unpack_tars"]


def unpack_tars(archive: Path, folder: Path) -> dict[str, int]:
    """Write each .tar of a zip into a folder under its own last name; return their sizes by name.

    A tar appears when it is whole: zipfile checks its CRC at the end. No path of the zip is followed.

    Raises
    ------
    FetchError
        It is no zip, holds no tar, two of one name, or one that is encrypted or damaged.
    """
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if _is_tar(each)]
            names = [_last_name(each) for each in members]
            if not members:
                raise FetchError(f"{archive.name} holds no .tar: its shards are to be made by hand")
            if len(set(names)) < len(names):
                raise FetchError(f"{archive.name} holds two tars of one name: unpack it by hand")
            for member, name in zip(members, names, strict=True):
                _unpack(opened, member, folder / name)
                sizes[name] = member.file_size
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be unpacked: {error}") from error
    return sizes


def _is_tar(member: zipfile.ZipInfo) -> bool:
    name = _last_name(member)
    return not member.is_dir() and name.lower().endswith(".tar") and not name.startswith(".")


def _last_name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename.replace("\\", "/")).name


def _unpack(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    with opened.open(member) as source, replacing(path) as temporary, temporary.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


ZENODO = "https://zenodo.org"
TIMEOUT_SECONDS = 60.0
RECEIPTS = ".fetched.json"


class Watcher(Protocol):
    """Who is told how far a download is."""

    def begin(self, *, label: str, bytes_total: int) -> None:
        """A task begins."""

    def advance(self, n_bytes: int) -> None:
        """Bytes are there; below zero where some are thrown away. Called from several threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRecord:
    """What one task's download did. ``files`` are the record's, ``reused`` those that were there already."""

    task: str
    dataset: str
    record: str
    folder: str
    files: tuple[str, ...]
    reused: tuple[str, ...]
    shards: tuple[str, ...]
    bytes_downloaded: int

    def as_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return asdict(self)


def fetch_task(
    manifest: Manifest,
    data_dir: Path,
    *,
    watcher: Watcher,
    base_url: str = ZENODO,
    jobs: int = 4,
    backoff_seconds: float = 1.0,
) -> FetchRecord:
    """Download the shards of a task into ``data_dir / dataset``.

    What is there and right is left alone; what broke off is gone on from. A zip is taken apart: its tars stay, and a
    receipt beside them says that they came.

    Raises
    ------
    UsageError
        The task's shards are not published.
    FetchError
        The record cannot be read, there is no room, or a file does not come as the record says; what has come is kept.
    """
    if manifest.data.zenodo is None:
        why = "is private" if manifest.private else "names no Zenodo record"
        raise UsageError(
            f"task {manifest.name} {why}: its shards cannot be fetched; put them in {data_dir / manifest.data.dataset}"
        )
    try:
        from featstore.fetch.download import Connection
    except ModuleNotFoundError as error:
        raise UsageError("`featstore fetch` needs urllib3: pip install 'featstore[fetch]'") from error

    connection = Connection(n_connections=jobs, backoff_seconds=backoff_seconds, timeout_seconds=TIMEOUT_SECONDS)
    url = f"{base_url.rstrip('/')}/api/records/{manifest.data.zenodo}"
    files = parse_record(connection.get(url), where=url)
    folder = data_dir / manifest.data.dataset
    folder.mkdir(parents=True, exist_ok=True)
    watcher.begin(label=manifest.name, bytes_total=sum(file.size for file in files))
    return _Fetch(connection, folder, watcher, backoff_seconds).run(manifest, files, jobs=jobs)


class _Fetch:
    """One task's files, some of them at a time."""

    def __init__(self, connection: Connection, folder: Path, watcher: Watcher, backoff_seconds: float) -> None:
        self._connection, self._folder, self._watcher = connection, folder, watcher
        self._backoff_seconds = backoff_seconds
        self._receipts = _Receipts(folder)
        self._stop = threading.Event()

    def run(self, manifest: Manifest, files: Sequence[RemoteFile], *, jobs: int) -> FetchRecord:
        with ThreadPoolExecutor(jobs, thread_name_prefix="fetch") as pool:
            try:
                there = list(pool.map(self._is_there, files))
                missing = [file for file, is_there in zip(files, there, strict=True) if not is_there]
                self._check_room(missing)
                came = sum(pool.map(self._bring, missing))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        shards = {file.name for file in files if not file.is_archive}
        shards.update(name for file in files if file.is_archive for name in self._receipts.shards_of(file))
        return FetchRecord(
            task=manifest.name,
            dataset=manifest.data.dataset,
            record=str(manifest.data.zenodo),
            folder=str(self._folder),
            files=tuple(file.name for file in files),
            reused=tuple(file.name for file, is_there in zip(files, there, strict=True) if is_there),
            shards=tuple(sorted(shards)),
            bytes_downloaded=came,
        )

    def _is_there(self, file: RemoteFile) -> bool:
        there = self._receipts.holds(file) if file.is_archive else is_right(self._folder / file.name, file)
        if there:
            self._watcher.advance(file.size)
        return there

    def _check_room(self, missing: Sequence[RemoteFile]) -> None:
        """A zip and what is in it stand side by side for a while."""
        needed = sum(file.size * (2 if file.is_archive else 1) for file in missing)
        needed -= sum(_size(self._folder / f".{file.name}.part") for file in missing)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise FetchError(f"{self._folder} has {spoken_bytes(free)} left, and {spoken_bytes(needed)} are to come")

    def _bring(self, file: RemoteFile) -> int:
        if self._stop.is_set():
            return 0
        try:
            # A zip keeps a hidden name: it is no shard.
            path = self._folder / (f".{file.name}" if file.is_archive else file.name)
            came = download(
                self._connection,
                file,
                path,
                on_bytes=self._watcher.advance,
                backoff_seconds=self._backoff_seconds,
                stopped=self._stop.is_set,
            )
            if file.is_archive and not self._stop.is_set():
                self._receipts.add(file, unpack_tars(path, self._folder))
                path.unlink()
        except BaseException:
            self._stop.set()  # the others break off, and are gone on from by the same command
            raise
        return came


class _Receipts:
    """Which zips were taken apart, and the sizes of the tars that came out of each."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECEIPTS
        self._lock = threading.Lock()
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._known: dict[str, Mapping[str, int]] = {str(md5): dict(tars) for md5, tars in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._known = {}  # without a receipt a zip is fetched again, no more

    def holds(self, file: RemoteFile) -> bool:
        tars = self._known.get(file.md5)
        return bool(tars) and all(_size(self._path.with_name(name)) == size for name, size in (tars or {}).items())

    def shards_of(self, file: RemoteFile) -> tuple[str, ...]:
        return tuple(self._known.get(file.md5, {}))

    def add(self, file: RemoteFile, tars: Mapping[str, int]) -> None:
        with self._lock:
            self._known[file.md5] = dict(tars)
            write_whole(self._path, json.dumps(self._known, indent=1, sort_keys=True) + "\n")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0

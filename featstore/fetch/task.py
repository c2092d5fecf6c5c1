"""Downloads the shards of a task from Zenodo, several files at a time; files that are complete are not downloaded."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from featstore.errors import FetchError, UsageError
from featstore.fetch.download import Connection, RemoteFile, download, file_bytes, matches_record, parse_record
from featstore.files import replacing, write_whole
from featstore.formatting import spoken_bytes
from featstore.records import JsonRecord

if TYPE_CHECKING:
    from featstore.tasks import Manifest

__all__ = ["ZENODO", "FetchRecord", "Unwatched", "Watcher", "fetch_task", "unpack_tars"]


def unpack_tars(archive: Path, folder: Path) -> dict[str, int]:
    """Extract the .tar files of a zip into a folder; return their sizes by file name.

    Folders inside the zip are ignored, so no path leads out of `folder`. Each tar is created atomically, after zipfile
    has checked its CRC.

    Raises
    ------
    FetchError
        The file is not a zip, has no tar, has two tars with the same name, or has an encrypted or damaged tar.
    """
    sizes: dict[str, int] = {}
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if _is_tar(each)]
            names = [_last_name(each) for each in members]
            if not members:
                raise FetchError(f"{archive.name} has no .tar: create its shards manually")
            if repeated := [name for name in names if names.count(name) > 1]:
                raise FetchError(f"{archive.name} has {len(repeated)} tars called {repeated[0]}: extract it manually")
            for member, name in zip(members, names, strict=True):
                _unpack(opened, member, folder / name)
                sizes[name] = member.file_size
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise FetchError(f"{archive.name} cannot be extracted: {error}") from error
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
    """Receives the progress of a download."""

    def begin(self, *, label: str, bytes_total: int) -> None:
        """Called when a task starts."""

    def advance(self, n_bytes: int) -> None:
        """Called from several threads with a number of new bytes, negative if bytes are discarded."""


class Unwatched:
    """No-op progress."""

    def begin(self, *, label: str, bytes_total: int) -> None:
        """Ignore."""

    def advance(self, n_bytes: int) -> None:
        """Ignore."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRecord(JsonRecord):
    """Result of downloading a task. ``files`` are those of the record; ``reused`` were complete before."""

    task: str
    dataset: str
    record: str
    folder: str
    files: tuple[str, ...]
    reused: tuple[str, ...]
    shards: tuple[str, ...]
    bytes_downloaded: int


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

    Complete files are kept, and incomplete downloads are resumed. A zip is deleted after its tars are extracted; a
    receipt next to the tars records that it was downloaded.

    Raises
    ------
    UsageError
        The task's shards are not published, or urllib3 is not installed.
    FetchError
        The record cannot be read, the disk is too small, or a file does not match the record. Downloaded bytes are
        kept.
    """
    if manifest.data.zenodo is None:
        why = "is private" if manifest.private else "names no Zenodo record"
        raise UsageError(
            f"task {manifest.name} {why}: its shards cannot be fetched; put them in {data_dir / manifest.data.dataset}"
        )
    connection = Connection(n_connections=jobs, backoff_seconds=backoff_seconds, timeout_seconds=TIMEOUT_SECONDS)
    url = f"{base_url.rstrip('/')}/api/records/{manifest.data.zenodo}"
    files = parse_record(connection.get(url), where=url)
    folder = data_dir / manifest.data.dataset
    folder.mkdir(parents=True, exist_ok=True)
    watcher.begin(label=manifest.name, bytes_total=sum(file.size for file in files))
    return _Fetch(connection, folder, watcher, backoff_seconds).run(manifest, files, jobs=jobs)


class _Fetch:
    """The download of one task's files, `jobs` files at a time."""

    def __init__(self, connection: Connection, folder: Path, watcher: Watcher, backoff_seconds: float) -> None:
        self._connection, self._folder, self._watcher = connection, folder, watcher
        self._backoff_seconds = backoff_seconds
        self._receipts = _Receipts(folder)
        self._stopped = threading.Event()

    def run(self, manifest: Manifest, files: Sequence[RemoteFile], *, jobs: int) -> FetchRecord:
        with ThreadPoolExecutor(jobs, thread_name_prefix="fetch") as pool:
            try:
                is_present = list(pool.map(self._is_present, files))
                missing = [file for file, present in zip(files, is_present, strict=True) if not present]
                self._check_free_space(missing)
                received = sum(pool.map(self._fetch_file, missing))
            except BaseException:
                self._stopped.set()
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
            reused=tuple(file.name for file, present in zip(files, is_present, strict=True) if present),
            shards=tuple(sorted(shards)),
            bytes_downloaded=received,
        )

    def _is_present(self, file: RemoteFile) -> bool:
        is_present = self._receipts.has(file) if file.is_archive else matches_record(self._folder / file.name, file)
        if is_present:
            self._watcher.advance(file.size)
        return is_present

    def _check_free_space(self, missing: Sequence[RemoteFile]) -> None:
        """Raise FetchError if the disk is too small. A zip needs its size twice, until its tars are extracted."""
        needed = sum(file.size * (2 if file.is_archive else 1) for file in missing)
        needed -= sum(file_bytes(self._folder / f".{file.name}.part") for file in missing)
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise FetchError(
                f"{self._folder} has {spoken_bytes(free)} free, and the download needs {spoken_bytes(needed)}"
            )

    def _fetch_file(self, file: RemoteFile) -> int:
        if self._stopped.is_set():
            return 0
        try:
            # A zip gets a hidden name, because it is not a shard.
            path = self._folder / (f".{file.name}" if file.is_archive else file.name)
            received = download(
                self._connection,
                file,
                path,
                on_bytes=self._watcher.advance,
                backoff_seconds=self._backoff_seconds,
                stopped=self._stopped.is_set,
            )
            if file.is_archive and not self._stopped.is_set():
                self._receipts.add(file, unpack_tars(path, self._folder))
                path.unlink()
        except BaseException:
            self._stopped.set()  # the other downloads stop, and the next run resumes them
            raise
        return received


class _Receipts:
    """The zips that were extracted, by MD5, and the sizes of their tars."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECEIPTS
        self._lock = threading.Lock()
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            self._tars_by_md5: dict[str, Mapping[str, int]] = {str(md5): dict(tars) for md5, tars in raw.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            self._tars_by_md5 = {}  # without a receipt the zip is downloaded again

    def has(self, file: RemoteFile) -> bool:
        tars = self._tars_by_md5.get(file.md5)
        return bool(tars) and all(file_bytes(self._path.with_name(name)) == size for name, size in (tars or {}).items())

    def shards_of(self, file: RemoteFile) -> tuple[str, ...]:
        return tuple(self._tars_by_md5.get(file.md5, {}))

    def add(self, file: RemoteFile, tars: Mapping[str, int]) -> None:
        with self._lock:
            self._tars_by_md5[file.md5] = dict(tars)
            write_whole(self._path, json.dumps(self._tars_by_md5, indent=1, sort_keys=True) + "\n")

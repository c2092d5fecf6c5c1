"""Reads everything a store holds against what was committed, and mends what can be mended.

A commit record names every object of its part with its size and CRC-32C, and is itself sealed by a hash; so are the
documents above it. Whatever is missing, cut, changed by a bit or not ours is found, and named with its part.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from featstore.errors import DamagedPart, FeatstoreError, StoreNotFound
from featstore.records import canonical_json
from featstore.store import codecs
from featstore.store.ahead import in_order
from featstore.store.catalogue import check_root, group_names, read_commit, split_paths
from featstore.store.documents import SplitAddress, read_document, write_document
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    counted_segments,
    recipe_from_json,
)
from featstore.store.layout import ArrayLayout, parse_layout
from featstore.store.objects import Objects, open_objects
from featstore.store.rows import RangedRows, Ranges, Rows, open_rows
from featstore.store.writer import SplitWriter

__all__ = ["Finding", "VerifyReport", "require_sound", "verify_store"]

_PARTS_AT_A_TIME = 16
_SMALL_BYTES = 1 << 20
_LARGE_AT_A_TIME = 4  # of all parts together: objects of up to 64 MiB
_KEPT_BYTES = 8 << 20  # of a part
_LOOKED_INTO = ("start_seconds", "seconds", "utterance", "frame_offsets", "frames")

Remedy = Literal["drop the part", "write the document again", "delete the object", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. ``where`` is the path of the part, group or object; `remedy` is what a repair does."""

    where: str
    problem: str
    remedy: Remedy
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a verification read, and found."""

    url: str
    parts: int
    objects: int
    bytes_read: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that was not repaired."""
        return all(finding.repaired for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def verify_store(url: str, *, repair: bool, on_part: Callable[[str], None] = lambda _: None) -> VerifyReport:
    """Read every object of a store through its checksums.

    Parameters
    ----------
    url : str
    repair : bool
        Drop damaged parts, so that the next extraction makes them again; write damaged group documents again from what
        the others say; delete objects that belong to nothing.
    on_part : callable
        Told the path of each part when it has been read.

    Raises
    ------
    StoreNotFound
        There is nothing there.
    StoreError
        There is something, and nothing of it is a store's: a repair would take somebody's files for strays.
    """
    objects = open_objects(url)
    if not objects.children(""):
        raise StoreNotFound(f"there is no store at {url}: check the path")
    check = _Verification(objects, on_part)
    findings = list(check.run())
    if not check.parts and any(finding.where == GROUP_DOCUMENT for finding in findings) and not _addresses(objects):
        check_root(objects)
    if repair:
        findings = list(_repair(objects, findings))
    return VerifyReport(
        url=url, parts=check.parts, objects=check.objects_read, bytes_read=check.bytes_read, findings=tuple(findings)
    )


def require_sound(url: str) -> None:
    """Verify a store for a reader that wants to be sure before it maps a file.

    Raises
    ------
    DamagedPart
        Names the first thing that is wrong, and how many there are.
    """
    findings = verify_store(url, repair=False).findings
    if findings:
        raise DamagedPart(
            f"{url} is damaged: {findings[0].where}: {findings[0].problem} ({len(findings)} findings); "
            f"`featstore verify --store {url} --repair` drops what is damaged"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """What came of one group of a split: its commit record where it is a part, its keys, and what it took."""

    findings: tuple[Finding, ...]
    commit: Commit | None = None
    keys: bytes | None = None
    objects: int = 0
    bytes: int = 0

    @property
    def is_sound(self) -> bool:
        return self.commit is not None and all(finding.remedy != "drop the part" for finding in self.findings)


class _Verification:
    """Reads a store. Of a remote one parts are read side by side, and what is found is told in their order."""

    def __init__(self, objects: Objects, on_part: Callable[[str], None]) -> None:
        self._objects = objects
        self._on_part = on_part
        self._parts_at_a_time = 1 if objects.root is not None else _PARTS_AT_A_TIME
        self._large = threading.Semaphore(_LARGE_AT_A_TIME)
        self.parts = 0
        self.objects_read = 0
        self.bytes_read = 0

    def run(self) -> Iterator[Finding]:
        """Findings in order of path."""
        yield from self._root()
        for encoder in group_names(self._objects, ""):
            yield from self._document(encoder, self._is_encoder)
            for dataset in group_names(self._objects, encoder):
                yield from self._document(f"{encoder}/{dataset}", self._is_dataset)
        for path in split_paths(self._objects):
            yield from self._split(path)

    # --- documents ----------------------------------------------------------------------------------------------------

    def _root(self) -> Iterator[Finding]:
        try:
            content = read_document(self._objects, "")
        except DamagedPart as error:
            content, problem = None, str(error.__cause__)
        else:
            problem = "it does not say that this is a store"
        if content is None or content.get("format") != FORMAT_VERSION:
            yield Finding(where=GROUP_DOCUMENT, problem=problem, remedy="write the document again")

    def _document(self, path: str, agrees: Callable[[str, dict[str, Any]], str]) -> Iterator[Finding]:
        """A group's own document: there, whole, and of this group."""
        if self._objects.read(path) is not None:
            yield Finding(where=path, problem="this object belongs to nothing: delete it by hand", remedy="none")
            return
        try:
            content = read_document(self._objects, path)
            problem = "its document is missing" if content is None else agrees(path, content)
        except (DamagedPart, DamagedDocument) as error:
            problem = str(error.__cause__ or error)
        if problem:
            yield Finding(where=path, problem=problem, remedy="write the document again")

    @staticmethod
    def _is_encoder(path: str, content: dict[str, Any]) -> str:
        name = recipe_from_json(content.get("recipe", {})).group_name
        return "" if name == path else f"its recipe is that of {name}"

    @staticmethod
    def _is_dataset(path: str, content: dict[str, Any]) -> str:
        return "" if "dataset" in content else f"it does not say which dataset {path} is"

    def _is_split(self, path: str, content: dict[str, Any], *, checked: Mapping[str, _Checked]) -> str:
        if (stated := SplitAddress.from_document(content).path) != path:
            return f"it is the document of {stated}"
        for raw in content["catalogue"]:
            listed = Commit.from_json(raw)
            if listed.part not in checked:
                if listed.part not in group_names(self._objects, path):  # it may have come since
                    return f"its catalogue lists {listed.part}, which is gone"
                continue
            held = checked[listed.part].commit
            if held is not None and canonical_json(held.as_catalogue_json()) != canonical_json(raw):
                return f"its catalogue does not agree with the commit record of {listed.part}"
        return ""

    # --- parts --------------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> Iterator[Finding]:
        names = group_names(self._objects, path)
        checked: dict[str, _Checked] = {}
        with ThreadPoolExecutor(self._parts_at_a_time, thread_name_prefix="verify") as pool:
            found = in_order(pool, lambda name: self._group(path, name), names, ahead=self._parts_at_a_time)
            for name, each in zip(names, found, strict=True):
                checked[name] = each
                if each.commit is not None:
                    self.parts += 1
                    self._on_part(f"{path}/{name}")
                self.objects_read += each.objects
                self.bytes_read += each.bytes
        yield from self._document(path, partial(self._is_split, checked=checked))
        for each in checked.values():
            yield from each.findings
        yield from self._keys(path, checked)

    def _group(self, path: str, part: str) -> _Checked:
        where = f"{path}/{part}"
        try:
            commit = read_commit(self._objects, path, part)
        except DamagedPart as error:
            problem = str(error.__cause__ or error)
            return _Checked(findings=(Finding(where=where, problem=problem, remedy="drop the part"),))
        if commit is None:
            return _Checked(findings=tuple(self._stray(where)))
        reading = _PartReading(self._objects, where, commit, large=self._large)
        findings = [*reading.sealed_objects()]
        if all(finding.remedy != "drop the part" for finding in findings):
            findings += reading.contents()
        return _Checked(
            findings=tuple(findings),
            commit=commit,
            keys=reading.keys,
            objects=reading.objects_read,
            bytes=reading.bytes_read,
        )

    def _stray(self, where: str) -> Iterator[Finding]:
        """A file where groups should be, or arrays that nothing vouches for.

        A group whose document says who is writing it is that writer's business, or the next sweep's.
        """
        if self._objects.read(where) is not None:
            yield Finding(where=where, problem="this object belongs to nothing", remedy="delete the object")
        elif read_document(self._objects, where) is None and group_names(self._objects, where):
            says = "it has arrays and no commit record: the record was lost, or a deletion was cut short"
            yield Finding(where=where, problem=says, remedy="drop the part")

    def _keys(self, path: str, checked: Mapping[str, _Checked]) -> Iterator[Finding]:
        """Keys are unique among the windows that count."""
        counts: Counter[str] = Counter()
        for segment in counted_segments(each.commit for each in checked.values() if each.commit and each.is_sound):
            chunk = checked[segment.commit.part].keys
            if chunk is not None:
                keys = codecs.decode_strings(chunk)
                counts.update(keys[segment.start : segment.start + segment.member.windows].tolist())
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            says = (
                f"{len(twice)} keys stand there more than once, {json.dumps(twice[0])} among them: shards hold the "
                "same clips; take those away that are too many, and `featstore extract --prune`"
            )
            yield Finding(where=path, problem=says, remedy="none")


class _PartReading:
    """One part, read through its seals; `sealed_objects` comes first.

    Attributes
    ----------
    keys : bytes or None
        The chunk of its keys.
    """

    def __init__(self, objects: Objects, where: str, commit: Commit, *, large: threading.Semaphore) -> None:
        self._objects = objects
        self._where = where
        self._commit = commit
        self._large = large
        self._kept: dict[str, bytes] = {}
        self._kept_bytes = 0
        self.keys: bytes | None = None
        self.objects_read = 0
        self.bytes_read = 0

    def sealed_objects(self) -> Iterator[Finding]:
        """Every object that the commit record names is there as it was written, and no other."""
        where, seals = self._where, self._commit.objects
        sizes = self._objects.sizes(where)
        sizes.pop(GROUP_DOCUMENT, None)
        whole = [name for name, entry in seals.items() if sizes.get(name) == entry.size]
        differ = {name for name, data in self._read(whole) if codecs.seal_crc32c([data]) != seals[name].crc32c}
        for name, entry in seals.items():
            size = sizes.pop(name, None)
            if size is None:
                yield Finding(where=where, problem=f"{name} is missing", remedy="drop the part")
            elif size != entry.size:
                says = f"{name} has {size:,} bytes, and {entry.size:,} were written"
                yield Finding(where=where, problem=says, remedy="drop the part")
            elif name in differ:
                says = f"{name} is not what was written: its checksum differs"
                yield Finding(where=where, problem=says, remedy="drop the part")
        for name in sizes:
            yield Finding(where=f"{where}/{name}", problem="this object belongs to nothing", remedy="delete the object")

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Small objects many at a time, large ones one by one, and few of them of all parts together."""
        small = [name for name in names if self._commit.objects[name].size <= _SMALL_BYTES]
        for name, data in zip(small, self._objects.read_many(f"{self._where}/{name}" for name in small), strict=True):
            yield name, self._noted(name, data or b"")
        for name in names:
            if self._commit.objects[name].size > _SMALL_BYTES:
                with self._large:
                    yield name, self._noted(name, self._objects.read(f"{self._where}/{name}") or b"")

    def _noted(self, name: str, data: bytes) -> bytes:
        """Count an object; and keep it where it is looked into, for it would travel once more."""
        self.objects_read += 1
        self.bytes_read += len(data)
        if name == "key/c/0":
            self.keys = data
        is_looked_into = name.split("/", maxsplit=1)[0] in _LOOKED_INTO and not name.startswith("frames/c/")
        if is_looked_into and self._objects.root is None and self._kept_bytes + len(data) <= _KEPT_BYTES:
            self._kept[f"{self._where}/{name}"] = data
            self._kept_bytes += len(data)
        return data

    def contents(self) -> Iterator[Finding]:
        """What the arrays say of one another; only a defect of the writer could break it."""
        try:
            problem = self._wrong_contents()
        except FeatstoreError as error:
            problem = str(error)
        if problem:
            yield Finding(where=self._where, problem=problem, remedy="drop the part")

    def _wrong_contents(self) -> str:
        commit = self._commit
        if commit.recipe_fingerprint != self._where.split("/", maxsplit=1)[0].rpartition("@")[2]:
            return f"it was made under another recipe, {commit.recipe_fingerprint}"
        lengths = {name: self._rows(name).shape[0] for name in ("start_seconds", "seconds", "utterance")}
        wrong = {name: length for name, length in lengths.items() if length != commit.windows}
        if wrong:
            return f"arrays have other lengths than its {commit.windows} windows: {wrong}"
        with contextlib.ExitStack() as held:
            if commit.windows and f"{self._where}/utterance/c/0/0" not in self._kept and self._objects.root is None:
                held.enter_context(self._large)  # it travels again
            utterance = self._rows("utterance")
            for start in range(0, commit.windows, 4096):
                rows = utterance.slice(start, min(start + 4096, commit.windows))
                if not np.isfinite(rows).all():
                    return f"utterance vectors from window {start} on are not all finite"
        if commit.frames_stored:
            offset_rows = self._rows("frame_offsets")
            offsets = offset_rows.slice(0, offset_rows.shape[0])
            frames = self._rows("frames").shape[0]
            if len(offsets) != commit.windows + 1 or offsets[0] != 0 or not offsets[-1] == frames == commit.frames:
                return "frame_offsets do not lead from 0 to the number of frames"
            if (np.diff(offsets) < 1).any():
                return "frame_offsets do not rise: a window has no frames"
        return ""

    def _rows(self, name: str) -> Rows:
        path = f"{self._where}/{name}"
        remote: Ranges | None = getattr(self._objects, "remote", None)
        document = self._kept.get(f"{path}/{GROUP_DOCUMENT}")
        layout = None if document is None else self._layout(document)
        if remote is None or layout is None:
            return open_rows(self._objects, path)
        sizes = {key: entry.size for key, entry in self._commit.objects.items()}
        return RangedRows(_Recalled(remote, self._kept), path, layout, lambda key: sizes.get(f"{name}/{key}", 0))

    @staticmethod
    def _layout(document: bytes) -> ArrayLayout | None:
        try:
            return parse_layout(document)
        except ValueError:
            return None  # `open_rows` says what is wrong


@dataclass(frozen=True, slots=True)
class _Recalled:
    """Ranges of a remote's objects, of those that were kept without asking."""

    remote: Ranges
    kept: Mapping[str, bytes]

    @property
    def url(self) -> str:
        return self.remote.url

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        data = self.kept.get(key)
        return self.remote.get_range(key, start, stop) if data is None else data[start:stop]


def _repair(objects: Objects, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Act on findings: documents first, from the store's own down, since deleting a part rewrites its split's."""
    addresses = _addresses(objects)
    order = ("write the document again", "delete the object", "drop the part", "none")
    for finding in sorted(findings, key=lambda finding: (order.index(finding.remedy), finding.where)):
        done = False
        if finding.remedy == "write the document again":
            done = _write_again(objects, finding.where, addresses)
        elif finding.remedy == "delete the object":
            objects.remove(finding.where)
            done = True
        elif finding.remedy == "drop the part" and not _already_repaired(objects, finding.where):
            path, _, part = finding.where.rpartition("/")
            if path in addresses:
                SplitWriter(objects, addresses[path]).delete([part])
                done = True
        elif finding.remedy == "drop the part":
            done = True
        yield Finding(where=finding.where, problem=finding.problem, remedy=finding.remedy, repaired=done)


def _already_repaired(objects: Objects, part: str) -> bool:
    return not objects.children(part)


def _addresses(objects: Objects) -> dict[str, SplitAddress]:
    """Address of every split, from its own document, or from those above it where its own is damaged."""
    found: dict[str, SplitAddress] = {}
    for path in split_paths(objects):
        encoder, dataset, split = path.split("/")
        for sources in ((path,), (encoder, f"{encoder}/{dataset}")):
            try:
                content: dict[str, Any] = {"split": split}
                for source in sources:
                    content |= read_document(objects, source) or {}
                address = SplitAddress.from_document(content)
            except (DamagedPart, DamagedDocument):
                continue
            if address.path == path:
                found[path] = address
                break
    return found


def _write_again(objects: Objects, where: str, addresses: dict[str, SplitAddress]) -> bool:
    """Write a group's document again from the address of any split below it."""
    path = "" if where == GROUP_DOCUMENT else where
    for split_path, address in addresses.items():
        content = address.documents().get(path)
        if content is not None:
            write_document(objects, path, content)
            if split_path == path:
                SplitWriter(objects, address).write_catalogue()
            return True
    return False

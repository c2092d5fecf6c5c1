"""Reads everything a store holds against what was committed, and mends what can be mended.

A commit record names every object of its part with its size and CRC-32C, and is itself sealed by a hash; so are the
documents above it. Whatever is missing, cut, changed by a bit or not ours is found, and named with its part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from featstore.errors import DamagedPart, FeatstoreError, StoreNotFound
from featstore.records import canonical_json
from featstore.store import codecs
from featstore.store.catalogue import group_names, read_commit, split_paths
from featstore.store.documents import SplitAddress, read_document, write_document
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    counted_segments,
    recipe_from_json,
)
from featstore.store.objects import Objects, open_objects
from featstore.store.rows import open_rows
from featstore.store.writer import SplitWriter

__all__ = ["Finding", "VerifyReport", "require_sound", "verify_store"]

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
        Told the path of each part before it is read.
    """
    objects = open_objects(url)
    if not objects.children(""):
        raise StoreNotFound(f"there is no store at {url}: check the path")
    check = _Verification(objects, on_part)
    findings = list(check.run())
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


class _Verification:
    def __init__(self, objects: Objects, on_part: Callable[[str], None]) -> None:
        self._objects = objects
        self._on_part = on_part
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
            yield from self._document(path, self._is_split)
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

    def _is_split(self, path: str, content: dict[str, Any]) -> str:
        if (stated := SplitAddress.from_document(content).path) != path:
            return f"it is the document of {stated}"
        present = set(group_names(self._objects, path))
        for raw in content["catalogue"]:
            listed = Commit.from_json(raw)
            if listed.part not in present:
                return f"its catalogue lists {listed.part}, which is gone"
            try:
                held = read_commit(self._objects, path, listed.part)
            except DamagedPart:
                continue  # the part's own finding tells it
            if held is not None and canonical_json(held.as_catalogue_json()) != canonical_json(raw):
                return f"its catalogue does not agree with the commit record of {listed.part}"
        return ""

    # --- parts --------------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> Iterator[Finding]:
        sound: list[Commit] = []
        for part in group_names(self._objects, path):
            where = f"{path}/{part}"
            try:
                commit = read_commit(self._objects, path, part)
            except DamagedPart as error:
                yield Finding(where=where, problem=str(error.__cause__ or error), remedy="drop the part")
                continue
            if commit is None:
                yield from self._stray(where)
                continue
            self._on_part(where)
            self.parts += 1
            findings = [*self._sealed_objects(where, commit)]
            if all(finding.remedy != "drop the part" for finding in findings):
                findings += self._contents(where, commit)
            if all(finding.remedy != "drop the part" for finding in findings):
                sound.append(commit)
            yield from findings
        yield from self._keys(path, sound)

    def _stray(self, where: str) -> Iterator[Finding]:
        """A file where groups should be, or arrays that nothing vouches for.

        A group whose document says who is writing it is that writer's business, or the next sweep's.
        """
        if self._objects.read(where) is not None:
            yield Finding(where=where, problem="this object belongs to nothing", remedy="delete the object")
        elif read_document(self._objects, where) is None and group_names(self._objects, where):
            says = "it has arrays and no commit record: the record was lost, or a deletion was cut short"
            yield Finding(where=where, problem=says, remedy="drop the part")

    def _sealed_objects(self, where: str, commit: Commit) -> Iterator[Finding]:
        """Every object that the commit record names is there as it was written, and no other."""
        sizes = self._objects.sizes(where)
        sizes.pop(GROUP_DOCUMENT, None)
        for name, entry in commit.objects.items():
            size = sizes.pop(name, None)
            if size is None:
                yield Finding(where=where, problem=f"{name} is missing", remedy="drop the part")
            elif size != entry.size:
                says = f"{name} has {size:,} bytes, and {entry.size:,} were written"
                yield Finding(where=where, problem=says, remedy="drop the part")
            else:
                data = self._objects.read(f"{where}/{name}") or b""
                self.objects_read += 1
                self.bytes_read += len(data)
                if codecs.seal_crc32c([data]) != entry.crc32c:
                    says = f"{name} is not what was written: its checksum differs"
                    yield Finding(where=where, problem=says, remedy="drop the part")
        for name in sizes:
            yield Finding(where=f"{where}/{name}", problem="this object belongs to nothing", remedy="delete the object")

    def _contents(self, where: str, commit: Commit) -> Iterator[Finding]:
        """What the arrays say of one another; only a defect of the writer could break it."""
        try:
            problem = self._wrong_contents(where, commit)
        except FeatstoreError as error:
            problem = str(error)
        if problem:
            yield Finding(where=where, problem=problem, remedy="drop the part")

    def _wrong_contents(self, where: str, commit: Commit) -> str:
        if commit.recipe_fingerprint != where.split("/", maxsplit=1)[0].rpartition("@")[2]:
            return f"it was made under another recipe, {commit.recipe_fingerprint}"
        lengths = {
            name: open_rows(self._objects, f"{where}/{name}").shape[0]
            for name in ("start_seconds", "seconds", "utterance")
        }
        wrong = {name: length for name, length in lengths.items() if length != commit.windows}
        if wrong:
            return f"arrays have other lengths than its {commit.windows} windows: {wrong}"
        utterance = open_rows(self._objects, f"{where}/utterance")
        for start in range(0, commit.windows, 4096):
            rows = utterance.slice(start, min(start + 4096, commit.windows))
            if not np.isfinite(rows).all():
                return f"utterance vectors from window {start} on are not all finite"
        if commit.frames_stored:
            offset_rows = open_rows(self._objects, f"{where}/frame_offsets")
            offsets = offset_rows.slice(0, offset_rows.shape[0])
            frames = open_rows(self._objects, f"{where}/frames").shape[0]
            if len(offsets) != commit.windows + 1 or offsets[0] != 0 or not offsets[-1] == frames == commit.frames:
                return "frame_offsets do not lead from 0 to the number of frames"
            if (np.diff(offsets) < 1).any():
                return "frame_offsets do not rise: a window has no frames"
        return ""

    def _keys(self, path: str, commits: Sequence[Commit]) -> Iterator[Finding]:
        """Keys are unique among the windows that count."""
        counts: Counter[str] = Counter()
        for segment in counted_segments(commits):
            chunk = self._objects.read(f"{path}/{segment.commit.part}/key/c/0")
            if chunk is not None:
                keys = codecs.decode_strings(chunk)
                counts.update(keys[segment.start : segment.start + segment.member.windows].tolist())
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            says = f"{len(twice)} keys stand there more than once, {json.dumps(twice[0])} among them"
            yield Finding(where=path, problem=says, remedy="none")


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

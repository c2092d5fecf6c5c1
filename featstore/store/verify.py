"""Reads everything a store holds against what was committed; `featstore.store.repair` repairs what can be repaired.

A commit record names every object of its part with its size and CRC-32C, and is itself sealed by a hash; so are the
documents above it. Whatever is missing, cut, changed by a bit or not ours is found, and named with its part.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from featstore.errors import DamagedPart, RemoteError, StoreError, StoreNotFound, StoreVersionError
from featstore.store import codecs
from featstore.store.catalogue import (
    check_root,
    foreign_names,
    group_names,
    is_foreign_group,
    is_without_document,
    known_address,
    read_commit,
    split_paths,
)
from featstore.store.documents import SplitAddress, read_document
from featstore.store.filesystem import ForeignFile, Objects, open_objects
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    Commit,
    DamagedDocument,
    counted_segments,
    is_part_name,
    recipe_from_json,
)
from featstore.store.part_check import Finding, PartReading, Remedy, VerifyReport
from featstore.store.prefetch import in_order

__all__ = ["Finding", "VerifyReport", "require_sound", "verify_store"]

_FOREIGN = "featstore did not write it: it is left alone; move it out of the store by hand"
_PARTS_AT_A_TIME = 16
_LARGE_AT_A_TIME = 4  # of all parts together: objects of up to 64 MiB


def verify_store(url: str, *, on_part: Callable[[str], None] = lambda _: None) -> VerifyReport:
    """Read every object of a store through its checksums, and change nothing.

    Parameters
    ----------
    url : str
    on_part : callable
        Told the path of each part when it has been read.

    Raises
    ------
    StoreNotFound
        There is nothing at the URL.
    StoreVersionError
        A newer featstore wrote it.
    StoreError
        What is there is no store; or something cannot be read, which says nothing of what it holds: a server does not
        answer, a file is forbidden.
    """
    objects = open_objects(url)
    _check_ours(objects)
    check = _Verification(objects, on_part)
    findings = tuple(check.run())
    return VerifyReport(
        url=objects.url, parts=check.parts, objects=check.objects_read, bytes_read=check.bytes_read, findings=findings
    )


def _check_ours(objects: Objects) -> None:
    """Make sure that featstore made what is there, even where the store's own document is damaged or gone.

    Of a folder that is no store everything would be "damaged", and a repair would delete files of somebody's.
    """
    try:
        check_root(objects)
    except (StoreNotFound, StoreVersionError, RemoteError):
        raise
    except StoreError:
        if not any(known_address(objects, path) for path in split_paths(objects)):
            raise


def require_sound(url: str) -> None:
    """Verify a store for a reader that wants to be sure before it maps a file.

    Raises
    ------
    DamagedPart
        Names the first thing that is wrong, and how many there are.
    """
    report = verify_store(url)
    if report.findings:
        first, url = report.findings[0], report.url
        command = f"`featstore verify --store {url}{' --repair' if report.repairable else ''}`"
        raise DamagedPart(
            f"{url} is damaged: {first.where}: {first.problem} ({len(report.findings)} findings); "
            f"{command} {'drops or repairs what is damaged' if report.repairable else 'names each of them'}"
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
        yield from self._foreign("")
        for encoder in group_names(self._objects, ""):
            yield from self._document(encoder, self._is_encoder)
            yield from self._foreign(encoder)
            for dataset in group_names(self._objects, encoder):
                yield from self._document(f"{encoder}/{dataset}", self._is_dataset)
                yield from self._foreign(f"{encoder}/{dataset}")
        for path in split_paths(self._objects):
            yield from self._foreign(path)
            yield from self._split(path)

    def _foreign(self, path: str) -> Iterator[Finding]:
        """What bears a name that featstore gives to nothing: it is listed, and left alone."""
        for name in foreign_names(self._objects, path):
            where = f"{path}/{name}" if path else name
            yield Finding(where=where, problem="featstore did not write this: delete it by hand", remedy="none")

    def _is_object(self, key: str) -> bool:
        """Whether a file, or something that is no folder either, lies where a group should be."""
        try:
            return self._objects.read(key) is not None
        except ForeignFile:
            return True

    # --- documents ----------------------------------------------------------------------------------------------------

    def _root(self) -> Iterator[Finding]:
        try:
            content = read_document(self._objects, "")
        except DamagedPart as error:
            content, problem = None, str(error.__cause__)
        else:
            problem = "it does not say that this is a store"
        if content is None or content.get("format") != FORMAT_VERSION:
            yield self._of_document("", problem)

    def _document(self, path: str, agrees: Callable[[str, dict[str, Any]], str]) -> Iterator[Finding]:
        """A group's own document: there, whole, and of this group."""
        if self._is_object(path):
            yield Finding(where=path, problem="this object belongs to nothing: delete it by hand", remedy="none")
            return
        try:
            content = read_document(self._objects, path)
            if content is None:
                problem = "its document is missing" if path in self._known_documents else _FOREIGN
            else:
                problem = agrees(path, content)
        except (DamagedPart, DamagedDocument) as error:
            problem = str(error.__cause__ or error)
        if problem:
            yield self._of_document(path, problem)

    def _of_document(self, path: str, problem: str) -> Finding:
        """What is wrong with a group's document, which can be written again where that of a split says what it held."""
        remedy: Remedy = "write the document again" if path in self._known_documents else "none"
        return Finding(where=path or GROUP_DOCUMENT, problem=problem, remedy=remedy)

    @cached_property
    def _known_documents(self) -> frozenset[str]:
        """Paths of the documents that those of splits, or those above them, say the content of."""
        addresses = (known_address(self._objects, path) for path in split_paths(self._objects))
        return frozenset(path for address in addresses if address is not None for path in address.documents())

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
        gone: list[Commit] = []
        catalogue = content.get("catalogue", [])
        for listed in map(Commit.from_json, catalogue if isinstance(catalogue, list) else [catalogue]):
            if listed.part not in checked:
                if listed.part not in group_names(self._objects, path):  # it may have come since
                    gone.append(listed)
                continue
            held = checked[listed.part].commit
            if held is not None and replace(held, objects={}) != listed:
                return f"its catalogue does not agree with the commit record of {listed.part}"
        # One that would not count was deleted on a full disk: the catalogue is behind, and hides nothing.
        held_ones = [each.commit for each in checked.values() if each.commit is not None]
        counted = {segment.commit.part for segment in counted_segments([*held_ones, *gone])}
        missed = [commit.part for commit in gone if commit.part in counted]
        return f"its catalogue lists {missed[0]}, which is gone" if missed else ""

    # --- parts --------------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> Iterator[Finding]:
        names = group_names(self._objects, path)
        if not any(map(is_part_name, names)) and is_without_document(self._objects, path):
            yield Finding(where=path, problem=_FOREIGN, remedy="none")
            return
        checked: dict[str, _Checked] = {}
        with ThreadPoolExecutor(self._parts_at_a_time, thread_name_prefix="verify") as pool:
            groups = in_order(pool, lambda name: self._group(path, name), names, ahead=self._parts_at_a_time)
            for name, each in zip(names, groups, strict=True):
                checked[name] = each
                if each.commit is not None:
                    self.parts += 1
                    self._on_part(f"{path}/{name}")
                self.objects_read += each.objects
                self.bytes_read += each.bytes
        yield from self._document(path, partial(self._is_split, checked=checked))
        found = [finding for each in checked.values() for finding in each.findings]
        if found and known_address(self._objects, path) is None:
            found = [replace(finding, remedy="none") for finding in found]  # whose it is, nothing says
        yield from found
        yield from self._keys(path, checked)

    def _group(self, path: str, part: str) -> _Checked:
        where = f"{path}/{part}"
        if not is_part_name(part):
            return _Checked(findings=(Finding(where=where, problem=_FOREIGN, remedy="none"),))
        try:
            commit = read_commit(self._objects, path, part)
        except DamagedPart as error:
            problem = str(error.__cause__ or error)
            return _Checked(findings=(Finding(where=where, problem=problem, remedy="drop the part"),))
        if commit is None:
            return _Checked(findings=tuple(self._stray(path, part)))
        reading = PartReading(self._objects, where, commit, large=self._large)
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

    def _stray(self, path: str, part: str) -> Iterator[Finding]:
        """What is called as a part and has no commit record.

        A group whose document says who is writing it is that writer's business, or the next sweep's.
        """
        where = f"{path}/{part}"
        if is_foreign_group(self._objects, path, part):
            yield Finding(where=where, problem=_FOREIGN, remedy="none")
        elif group_names(self._objects, where) and read_document(self._objects, where) is None:
            # Listed first: a writer's document comes before its arrays, so arrays that are there had one.
            says = "it has arrays and no commit record: the record was lost, or a deletion was cut short"
            yield Finding(where=where, problem=says, remedy="drop the part")

    def _keys(self, path: str, checked: Mapping[str, _Checked]) -> Iterator[Finding]:
        """Keys are unique among the windows that count."""
        counts: Counter[str] = Counter()
        for segment in counted_segments(each.commit for each in checked.values() if each.commit and each.is_sound):
            chunk = checked[segment.commit.part].keys
            if chunk is not None:
                try:
                    keys = codecs.decode_strings(chunk, n=segment.commit.windows)
                except ValueError as error:
                    where = f"{path}/{segment.commit.part}"
                    yield Finding(where=where, problem=f"its keys cannot be read: {error}", remedy="drop the part")
                    continue
                counts.update(keys[segment.start : segment.start + segment.member.windows].tolist())
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            says = (
                f"{len(twice)} keys stand there more than once, {json.dumps(twice[0])} among them: shards hold the "
                "same clips; take those away that are too many, and `featstore extract --prune`"
            )
            yield Finding(where=path, problem=says, remedy="none")

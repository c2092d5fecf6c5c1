"""Verifies all content of a store against its commit records; `featstore.store.repair` repairs the findings.

A commit record contains the size and CRC-32C of every object of its part. Commit records and the documents above them
contain a hash of their own content. So missing, truncated, changed and foreign objects are all found.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
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
    TEXT_GROUP,
    Commit,
    DamagedDocument,
    counted_segments,
    is_part_name,
    recipe_of_group,
)
from featstore.store.part_check import Finding, PartReading, Remedy, VerifyReport
from featstore.store.prefetch import in_order

__all__ = ["Finding", "VerifyReport", "require_sound", "verify_store"]

_FOREIGN = "featstore did not write it and does not change it: move it out of the store"
_PARALLEL_PARTS = 16
_PARALLEL_LARGE_OBJECTS = 4  # large objects (up to 64 MiB) in memory, over all parts


def verify_store(
    url: str, *, on_part: Callable[[str], None] = lambda _: None, only: Collection[str] | None = None
) -> VerifyReport:
    """Read every object of a store and check it. Nothing is changed.

    Parameters
    ----------
    url : str
    on_part : callable
        Called with the path of each part after it is read.
    only : collection of str, optional
        Paths of feature sets (``logmel@3f9c2a71/words/train``): check these, and the documents above them, alone.

    Raises
    ------
    StoreNotFound
        There is no store at the URL.
    StoreVersionError
        A newer featstore wrote the store.
    StoreError
        It is not a featstore store, or an object cannot be read although it may be intact: the server is unreachable,
        or access is denied.
    """
    objects = open_objects(url)
    _check_is_store(objects)
    check = _Verification(objects, on_part, only)
    findings = tuple(check.run())
    return VerifyReport(
        url=objects.url, parts=check.parts, objects=check.objects_read, bytes_read=check.bytes_read, findings=findings
    )


def _check_is_store(objects: Objects) -> None:
    """Check that featstore wrote the store, even if the store's own document is damaged or missing.

    In any other folder everything would be a finding, and a repair would delete the user's files.
    """
    try:
        check_root(objects)
    except (StoreNotFound, StoreVersionError, RemoteError):
        raise
    except StoreError:
        if not any(known_address(objects, path) for path in split_paths(objects)):
            raise


def require_sound(url: str) -> None:
    """Verify a store before reading it: memory-mapped reads are not checked.

    Raises
    ------
    DamagedPart
        There are findings; the message has the first one and their number.
    """
    report = verify_store(url)
    if report.findings:
        first, url = report.findings[0], report.url
        command = f"`featstore verify --store {url}{' --repair' if report.repairable else ''}`"
        raise DamagedPart(
            f"{url} is damaged: {first.where}: {first.problem} ({len(report.findings)} findings); "
            f"{command} {'drops or repairs what is damaged' if report.repairable else 'lists them'}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checked:
    """Result of checking one group of a split: findings, commit record (None if it is not a part), keys, bytes read."""

    findings: tuple[Finding, ...]
    commit: Commit | None = None
    keys: bytes | None = None
    objects: int = 0
    bytes: int = 0

    @property
    def is_sound(self) -> bool:
        return self.commit is not None and all(finding.remedy != "drop the part" for finding in self.findings)


class _Verification:
    """Verification of one store. Parts of a remote store are read in parallel; findings are in order."""

    def __init__(self, objects: Objects, on_part: Callable[[str], None], only: Collection[str] | None) -> None:
        self._only = only
        self._objects = objects
        self._on_part = on_part
        self._parallel_parts = 1 if objects.root is not None else _PARALLEL_PARTS
        self._large = threading.Semaphore(_PARALLEL_LARGE_OBJECTS)
        self.parts = 0
        self.objects_read = 0
        self.bytes_read = 0

    def run(self) -> Iterator[Finding]:
        """Yield the findings in order of path."""
        yield from self._root()
        if self._only is not None:
            for path in sorted(self._only):
                encoder, dataset, _ = path.split("/")
                yield from self._document(encoder, self._is_encoder)
                yield from self._document(f"{encoder}/{dataset}", self._is_dataset)
                yield from self._split(path)
            return
        yield from self._foreign("")
        for encoder in group_names(self._objects, ""):
            yield from self._document(encoder, self._is_encoder)
            yield from self._foreign(encoder)
            for dataset in self._datasets(encoder):
                yield from self._document(f"{encoder}/{dataset}", self._is_dataset)
                yield from self._foreign(f"{encoder}/{dataset}")
        for path in split_paths(self._objects, texts=True):
            yield from self._foreign(path)
            yield from self._split(path)

    def _datasets(self, encoder: str) -> Iterator[str]:
        yield from group_names(self._objects, encoder)
        if TEXT_GROUP in self._objects.children(encoder):
            yield TEXT_GROUP

    def _foreign(self, path: str) -> Iterator[Finding]:
        """List items with names that featstore does not use; a repair does not change them."""
        for name in foreign_names(self._objects, path):
            where = f"{path}/{name}" if path else name
            yield Finding(where=where, problem="featstore did not write this: delete it manually", remedy="none")

    def _is_object(self, key: str) -> bool:
        """Whether a file or special file is at the path of a group."""
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
            problem = "it is not the document of a store"
        if content is None or content.get("format") != FORMAT_VERSION:
            yield self._of_document("", problem)

    def _document(self, path: str, agrees: Callable[[str, dict[str, Any]], str]) -> Iterator[Finding]:
        """Check that a group's document exists, is intact and belongs to the group."""
        if self._is_object(path):
            yield Finding(
                where=path, problem="this object does not belong to a part: delete it manually", remedy="none"
            )
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
        """Return the finding for a group's document. A repair can rewrite it if a split's document has its content."""
        remedy: Remedy = "write the document again" if path in self._known_documents else "none"
        return Finding(where=path or GROUP_DOCUMENT, problem=problem, remedy=remedy)

    @cached_property
    def _known_documents(self) -> frozenset[str]:
        """Paths of the documents whose content is known from the documents of splits, or from those above them."""
        addresses = (known_address(self._objects, path) for path in split_paths(self._objects, texts=True))
        return frozenset(path for address in addresses if address is not None for path in address.documents())

    @staticmethod
    def _is_encoder(path: str, content: dict[str, Any]) -> str:
        recipe_of_group(content.get("recipe", {}), path)
        return ""

    @staticmethod
    def _is_dataset(path: str, content: dict[str, Any]) -> str:
        return "" if "dataset" in content else f"it does not name the dataset of {path}"

    def _is_split(self, path: str, content: dict[str, Any], *, checked: Mapping[str, _Checked]) -> str:
        SplitAddress.from_document(content, path=path)
        gone: list[Commit] = []
        catalogue = content.get("catalogue", [])
        for listed in map(Commit.from_json, catalogue if isinstance(catalogue, list) else [catalogue]):
            if listed.part not in checked:
                if listed.part not in group_names(self._objects, path):  # it may be newer than the first listing
                    gone.append(listed)
                continue
            commit = checked[listed.part].commit
            if commit is not None and replace(commit, objects={}) != listed:
                return f"its catalogue does not agree with the commit record of {listed.part}"
        # A superseded part may have been deleted on a full disk: an outdated catalogue then hides nothing.
        commits = [each.commit for each in checked.values() if each.commit is not None]
        counted = {segment.commit.part for segment in counted_segments([*commits, *gone])}
        missed = [commit.part for commit in gone if commit.part in counted]
        return f"its catalogue lists {missed[0]}, which is missing" if missed else ""

    # --- parts --------------------------------------------------------------------------------------------------------

    def _split(self, path: str) -> Iterator[Finding]:
        names = group_names(self._objects, path)
        if not any(map(is_part_name, names)) and is_without_document(self._objects, path):
            yield Finding(where=path, problem=_FOREIGN, remedy="none")
            return
        checked: dict[str, _Checked] = {}
        with ThreadPoolExecutor(self._parallel_parts, thread_name_prefix="verify") as pool:
            groups = in_order(pool, lambda name: self._group(path, name), names, ahead=self._parallel_parts)
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
            found = [replace(finding, remedy="none") for finding in found]  # featstore may not have written it
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
            return _Checked(findings=tuple(self._uncommitted_group(path, part)))
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

    def _uncommitted_group(self, path: str, part: str) -> Iterator[Finding]:
        """Findings for a group with the name of a part and without a commit record.

        A group whose document names a writer is not a finding: the writer, or the next sweep, handles it.
        """
        where = f"{path}/{part}"
        if is_foreign_group(self._objects, path, part):
            yield Finding(where=where, problem=_FOREIGN, remedy="none")
        elif group_names(self._objects, where) and read_document(self._objects, where) is None:
            # The listing comes first: a writer creates the document before the arrays, so these arrays had one.
            problem = "it has arrays and no commit record: the record was lost, or a deletion was interrupted"
            yield Finding(where=where, problem=problem, remedy="drop the part")

    def _keys(self, path: str, checked: Mapping[str, _Checked]) -> Iterator[Finding]:
        """Check that the keys of all current windows are unique."""
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
            problem = (
                f"{len(twice)} keys are repeated, for example {json.dumps(twice[0])}: several shards have the same "
                "clips; remove the duplicate shards, and run `featstore extract --prune`"
            )
            yield Finding(where=path, problem=problem, remedy="none")

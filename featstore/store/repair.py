"""Repairs the problems of a store that `featstore.store.verify` finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from featstore.store.catalogue import known_address, split_paths
from featstore.store.documents import SplitAddress, write_document
from featstore.store.filesystem import Objects, open_objects
from featstore.store.format import GROUP_DOCUMENT
from featstore.store.part_check import Finding, VerifyReport
from featstore.store.part_writer import write_errors_explained
from featstore.store.verify import verify_store
from featstore.store.writer import SplitWriter

__all__ = ["repair_store"]


def repair_store(url: str, *, on_part: Callable[[str], None] = lambda _: None) -> VerifyReport:
    """Verify a store, and repair it.

    Damaged parts are deleted, so that the next extraction encodes them again. Damaged group documents are rewritten
    from the other documents. Objects that do not belong to a part are deleted. Parameters and errors are those of
    `verify_store`.

    Returns
    -------
    VerifyReport
        The findings, each with whether it was repaired.
    """
    report = verify_store(url, on_part=on_part)
    objects = open_objects(url)
    with write_errors_explained(objects):
        return replace(report, findings=tuple(_repaired(objects, report.findings)))


def _repaired(objects: Objects, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Repair findings. Documents come first, from the store's down: dropping a part rewrites its split's document."""
    known = ((path, known_address(objects, path)) for path in split_paths(objects, texts=True))
    addresses = {path: address for path, address in known if address is not None}
    damaged = _parts_to_drop(findings)
    order = ("write the document again", "delete the object", "drop the part", "none")
    for finding in sorted(findings, key=lambda finding: (order.index(finding.remedy), finding.where)):
        done = False
        if finding.remedy == "write the document again":
            done = _rewrite_document(objects, finding.where, addresses, damaged)
        elif finding.remedy == "delete the object":
            objects.remove(finding.where)
            done = True
        elif finding.remedy == "drop the part":
            path, _, _ = finding.where.rpartition("/")
            if path in addresses:
                # All parts of a split at once: the catalogue is rewritten from the other parts, which must be intact.
                SplitWriter(objects, addresses[path]).delete(damaged.pop(path, ()))
                done = True
        yield replace(finding, repaired=done)


def _parts_to_drop(findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    """Names of damaged parts by the path of their split."""
    found: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.remedy == "drop the part":
            path, _, part = finding.where.rpartition("/")
            found.setdefault(path, {})[part] = None
    return {path: tuple(parts) for path, parts in found.items()}


def _rewrite_document(
    objects: Objects, where: str, addresses: Mapping[str, SplitAddress], damaged: Mapping[str, Sequence[str]]
) -> bool:
    """Rewrite a group's document from the address of any split below it; returns whether there is one."""
    path = "" if where == GROUP_DOCUMENT else where
    for split_path, address in addresses.items():
        content = address.documents().get(path)
        if content is not None:
            write_document(objects, path, content)
            if split_path == path:
                SplitWriter(objects, address).write_catalogue(without=damaged.get(path, ()))
            return True
    return False

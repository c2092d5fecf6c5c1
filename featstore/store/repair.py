"""Mends a store: what `featstore.store.verify` found wrong, as far as something can be done about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from featstore.store.catalogue import known_address, split_paths
from featstore.store.documents import SplitAddress, write_document
from featstore.store.filesystem import Objects, open_objects
from featstore.store.format import GROUP_DOCUMENT
from featstore.store.part_check import Finding, VerifyReport
from featstore.store.part_writer import telling_what_to_do
from featstore.store.verify import verify_store
from featstore.store.writer import SplitWriter

__all__ = ["repair_store"]


def repair_store(url: str, *, on_part: Callable[[str], None] = lambda _: None) -> VerifyReport:
    """Verify a store, and repair what is wrong.

    Damaged parts are dropped, so that the next extraction makes them again; damaged group documents are written again
    from what the others say; objects that belong to nothing are deleted. Parameters and errors as of `verify_store`.

    Returns
    -------
    VerifyReport
        What was wrong, and of each finding whether it was repaired.
    """
    report = verify_store(url, on_part=on_part)
    objects = open_objects(url)
    with telling_what_to_do(objects):
        return replace(report, findings=tuple(_repaired(objects, report.findings)))


def _repaired(objects: Objects, findings: Sequence[Finding]) -> Iterator[Finding]:
    """Act on findings: documents first, from the store's own down, since dropping parts rewrites their split's."""
    known = ((path, known_address(objects, path)) for path in split_paths(objects))
    addresses = {path: address for path, address in known if address is not None}
    damaged = _parts_to_drop(findings)
    order = ("write the document again", "delete the object", "drop the part", "none")
    for finding in sorted(findings, key=lambda finding: (order.index(finding.remedy), finding.where)):
        done = False
        if finding.remedy == "write the document again":
            done = _write_again(objects, finding.where, addresses, damaged)
        elif finding.remedy == "delete the object":
            objects.remove(finding.where)
            done = True
        elif finding.remedy == "drop the part":
            path, _, _ = finding.where.rpartition("/")
            if path in addresses:
                # All of a split together: its catalogue is made of the records of the others, which must be sound.
                SplitWriter(objects, addresses[path]).delete(damaged.pop(path, ()))
                done = True
        yield replace(finding, repaired=done)


def _parts_to_drop(findings: Sequence[Finding]) -> dict[str, tuple[str, ...]]:
    """Names of damaged parts, by the path of their split."""
    found: dict[str, dict[str, None]] = {}
    for finding in findings:
        if finding.remedy == "drop the part":
            path, _, part = finding.where.rpartition("/")
            found.setdefault(path, {})[part] = None
    return {path: tuple(parts) for path, parts in found.items()}


def _write_again(
    objects: Objects, where: str, addresses: Mapping[str, SplitAddress], damaged: Mapping[str, Sequence[str]]
) -> bool:
    """Write a group's document again from the address of any split below it."""
    path = "" if where == GROUP_DOCUMENT else where
    for split_path, address in addresses.items():
        content = address.documents().get(path)
        if content is not None:
            write_document(objects, path, content)
            if split_path == path:
                SplitWriter(objects, address).write_catalogue(without=damaged.get(path, ()))
            return True
    return False

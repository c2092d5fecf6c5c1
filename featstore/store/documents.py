"""Group documents of the store, its encoders, datasets and splits, and the errors for damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featstore.errors import DamagedPart
from featstore.records import Recipe, dataset_group
from featstore.store.filesystem import Objects
from featstore.store.format import (
    FORMAT_VERSION,
    GROUP_DOCUMENT,
    TEXT_GROUP,
    Commit,
    DamagedDocument,
    check_fields,
    is_amount,
    is_group_name,
    is_text,
    recipe_of_group,
    seal,
    unseal,
)

__all__ = [
    "SplitAddress",
    "damaged",
    "is_foreign",
    "missing_object",
    "read_document",
    "read_documents",
    "write_document",
]


def damaged(url: str, where: str, problem: str) -> DamagedPart:
    """Return the error for a damaged object or group at `where` in the store at `url`.

    >>> str(damaged("e.zarr", "zarr.json", "is missing"))
    'e.zarr/zarr.json is missing; `featstore verify --store e.zarr --repair` drops or repairs what is damaged'
    """
    return DamagedPart(
        f"{url}/{where} {problem}; `featstore verify --store {url} --repair` drops or repairs what is damaged"
    )


def missing_object(where: Path | str) -> DamagedPart:
    """Return the error for an object that is missing since the store was opened; usually a writer replaced its part."""
    return DamagedPart(
        f"{where} is missing: the store changed while it was open, or is damaged; open it again, and run "
        "`featstore verify` if it is still missing"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitAddress:
    """Address of a feature set, with the content of the documents above its parts.

    ``path`` is the path of the split's group: ``logmel@3f9c2a71/words/train``.
    """

    recipe: Recipe
    spec: str
    dataset: str
    crop_seconds: float | None
    split: str
    path: str = field(init=False)

    def __post_init__(self) -> None:
        path = f"{self.recipe.group_name}/{dataset_group(self.dataset, self.crop_seconds)}/{self.split}"
        object.__setattr__(self, "path", path)

    def documents(self) -> dict[str, dict[str, Any]]:
        """Contents of the documents from the store's to the split's, by path."""
        encoder, group, _ = self.path.split("/")
        return {
            "": self._about_store(),
            encoder: self._about_encoder(),
            f"{encoder}/{group}": self._about_dataset(),
            self.path: self.split_document(()),
        }

    def split_document(self, commits: Iterable[Commit]) -> dict[str, Any]:
        """Content of the split's document with a catalogue of `commits`."""
        catalogue = [commit.as_catalogue_json() for commit in commits]
        about = {**self._about_store(), **self._about_encoder(), **self._about_dataset()}
        return {**about, "split": self.split, "catalogue": catalogue}

    @staticmethod
    def _about_store() -> dict[str, Any]:
        return {"format": FORMAT_VERSION}

    def _about_encoder(self) -> dict[str, Any]:
        return {"recipe": self.recipe.as_json(), "fingerprint": self.recipe.fingerprint, "spec": self.spec}

    def _about_dataset(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "crop_seconds": self.crop_seconds}

    @classmethod
    def from_document(cls, content: Mapping[str, Any], *, path: str) -> SplitAddress:
        """Read the document of the split at `path`, whose first component names the encoder.

        Raises
        ------
        DamagedDocument
            It is invalid, or belongs to another path.
        """
        checked = check_fields(content, _SPLIT_RULES, of="document")
        known = {name: checked[name] for name in ("spec", "dataset", "crop_seconds", "split")}
        address = cls(recipe=recipe_of_group(checked["recipe"], path.partition("/")[0]), **known)
        if address.path != path:
            raise DamagedDocument(f"it is the document of {address.path}")
        return address


_SPLIT_RULES: Mapping[str, Callable[[object], bool]] = {
    "recipe": lambda value: isinstance(value, dict),
    "spec": is_text,
    "dataset": lambda value: value == TEXT_GROUP or is_group_name(value),
    "crop_seconds": lambda value: value is None or (is_amount(value) and value != 0),
    "split": is_group_name,
}


def read_document(objects: Objects, group: str) -> dict[str, Any] | None:
    """Read a group's document; None if it is missing, or has no featstore attributes.

    Raises
    ------
    DamagedPart
        The document is damaged.
    """
    [content] = read_documents(objects, [group])
    return content


def read_documents(objects: Objects, groups: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the contents of groups' documents, in order, as `read_document` returns them."""
    keys = [f"{group}/{GROUP_DOCUMENT}" if group else GROUP_DOCUMENT for group in groups]
    for group, raw in zip(groups, objects.read_many(keys), strict=True):
        try:
            yield None if raw is None else unseal(raw)
        except DamagedDocument as error:
            raise damaged(objects.url, group, f"is damaged: {error}") from error


def is_foreign(objects: Objects, group: str) -> bool:
    """Whether other software wrote a path's document. The bare groups that zarr-python creates do not count."""
    raw = objects.read(f"{group}/{GROUP_DOCUMENT}" if group else GROUP_DOCUMENT)
    if raw is None or unseal(raw) is not None:
        return False
    document = json.loads(raw)
    return document.get("node_type") != "group" or bool(document.get("attributes"))


def write_document(objects: Objects, group: str, content: Mapping[str, Any]) -> None:
    """Write a group's document atomically, unless it is unchanged."""
    key = f"{group}/{GROUP_DOCUMENT}" if group else GROUP_DOCUMENT
    document = seal(content)
    if objects.read(key) != document:
        objects.write(key, document)

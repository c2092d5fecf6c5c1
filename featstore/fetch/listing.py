"""What a record of the archive says it holds: parsed once, trusted with no path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from featstore.errors import FetchError

__all__ = ["RemoteFile", "parse_record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a record. ``name`` is a plain file name; ``md5`` 32 hexadecimal digits."""

    name: str
    size: int
    md5: str
    url: str

    @property
    def is_archive(self) -> bool:
        """Whether the shards are inside it."""
        return self.name.lower().endswith(".zip")


def parse_record(text: bytes, *, where: str) -> tuple[RemoteFile, ...]:
    """Read the JSON of a Zenodo record: its tars and zips, sorted by name; other files are no shards.

    Raises
    ------
    FetchError
        It is no such JSON, holds no shard, or names a file that is none.
    """
    try:
        raw = json.loads(text)
        listed = [each for each in raw["files"] if str(each["key"]).lower().endswith((".tar", ".zip"))]
        files = sorted((_parse_file(each) for each in listed), key=lambda file: file.name)
    except (ValueError, TypeError, KeyError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FetchError(f"{where} is not the listing of a record: {told}") from error
    if not files:
        raise FetchError(f"{where} lists no .tar and no .zip: its shards are to be downloaded by hand")
    names = [file.name.lower() for file in files]
    if len(set(names)) < len(names):
        raise FetchError(f"{where} lists a file twice")
    return tuple(files)


def _parse_file(raw: Mapping[str, object]) -> RemoteFile:
    name, size, links = raw["key"], raw["size"], raw["links"]
    if not isinstance(name, str) or PurePosixPath(name).name != name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{name!r} is no plain file name")
    if "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is no plain file name")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"{name} has no size")
    found = re.fullmatch(r"md5:([0-9a-f]{32})", str(raw["checksum"]))
    if not found:
        raise ValueError(f"{name} has no MD5 checksum, but {raw['checksum']!r}")
    if not isinstance(links, Mapping):
        raise TypeError(f"{name} has no links")
    url = str(links["self"])
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{name} is not at a web address, but at {url!r}")
    return RemoteFile(name=name, size=size, md5=found[1], url=url)

"""The tars in a zip, and nothing else of it, as files of a folder."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path, PurePosixPath

from featstore.errors import FetchError
from featstore.files import replacing

__all__ = ["unpack_tars"]


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

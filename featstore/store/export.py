"""Exports a feature set to a file or folder for other programs: npz, Parquet, Zarr, Hugging Face `datasets`.

Frames are read piece by piece, so that memory use does not grow with their number. The output has a temporary name
until it is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from featstore.errors import LabelError, UsageError, missing_extra
from featstore.files import replacing, temporary_folder
from featstore.records import JsonRecord
from featstore.store.clip_fields import field_values, is_label_sets, multi_hot, plain_labels
from featstore.store.export_contents import Contents
from featstore.store.feature_set import FeatureSet
from featstore.store.filesystem import LocalObjects

__all__ = ["ExportFormat", "ExportRecord", "export_feature_set"]

ExportFormat = Literal["npz", "parquet", "zarr", "hf"]
PIECE_BYTES: dict[ExportFormat, int] = {
    "npz": 64 << 20,
    "zarr": 64 << 20,
    "parquet": 16 << 20,  # one row group, of which the Parquet writer keeps several copies in memory
    "hf": 16 << 20,
}
MARKER = "featstore_export.json"  # provenance of a `datasets` folder, which has no field for it


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord(JsonRecord):
    """Result of an export."""

    path: str
    format: str
    out: str
    columns: tuple[str, ...]
    clips: int
    windows: int
    frames: int | None
    bytes: int


def export_feature_set(
    fs: FeatureSet,
    out: str | os.PathLike[str],
    *,
    file_format: ExportFormat,
    frames: bool,
    label: str | None,
    force: bool,
) -> ExportRecord:
    """Write a feature set for another program.

    Parameters
    ----------
    fs : FeatureSet
    out : str or os.PathLike
        File (npz, Parquet) or folder (Zarr, Hugging Face).
    file_format : "npz", "parquet", "zarr" or "hf"
    frames : bool
        Export the frames too.
    label : str or None
        Field of the clips' JSON to export as the column ``label``. Lists of text become a multi-hot column, and the
        provenance has its ``label_classes``.
    force : bool
        Replace an earlier export at `out`.

    Raises
    ------
    UsageError
        `out` exists, or `force` is given and it is not an export; or a library is not installed.
    UnknownFeatureSet
        `frames` is true, and frames are not stored.
    LabelError
        A clip has no such label.
    """
    out = Path(out)
    write = _writer(file_format)
    _check_free(out, file_format=file_format, force=force)
    labels, classes = (None, None) if label is None else _labels(fs, label)
    provenance = {
        "path": fs.path,
        "recipe": fs.recipe.as_json(),
        "fingerprint": fs.fingerprint,
        "content_hash": fs.content_hash,
        "label": label,
        **({} if classes is None else {"label_classes": list(classes)}),
    }
    contents = Contents(
        fs=fs, with_frames=frames, label=labels, provenance=provenance, piece_bytes=PIECE_BYTES[file_format]
    )
    n_frames = int(fs.frames.lengths.sum()) if frames else None
    with replacing(out) if file_format in ("npz", "parquet") else _replacing_folder(out) as temporary:
        write(contents, temporary)
        if file_format == "hf":
            (temporary / MARKER).write_text(json.dumps(provenance, indent=1))
    return ExportRecord(
        path=fs.path,
        format=file_format,
        out=str(out),
        columns=contents.columns,
        clips=fs.n_clips,
        windows=len(fs),
        frames=n_frames,
        bytes=_size(out),
    )


def _labels(fs: FeatureSet, field: str) -> tuple[NDArray[Any], tuple[Any, ...] | None]:
    """Return the label column, and the classes of its columns if it is multi-hot."""
    keys = fs.key.tolist()
    values = field_values(keys, fs.meta_json.tolist(), field)
    if not is_label_sets(values):
        return plain_labels(keys, values, field), None
    labels = multi_hot(keys, values, field)
    if not labels.classes:
        raise LabelError(f"{field!r} of {fs.path} is an empty list for every clip: there is no label to export")
    return labels.values, labels.classes


def _writer(file_format: ExportFormat) -> Callable[[Contents, Path], None]:
    if file_format == "npz":
        from featstore.store.export_formats import write_npz

        return write_npz
    if file_format == "zarr":
        from featstore.store.export_formats import write_zarr

        return write_zarr
    try:
        from featstore.store import export_arrow as arrow
    except ImportError as error:
        raise missing_extra("this format", error, "export") from error
    if file_format == "parquet":
        return arrow.write_parquet
    try:
        import datasets  # noqa: F401 - fails before writing starts
    except ImportError as error:
        raise missing_extra("this format", error, "export") from error
    return arrow.write_datasets_folder


# --- files and folders ------------------------------------------------------------------------------------------------


def _check_free(out: Path, *, file_format: ExportFormat, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        if not out.absolute().parent.is_dir():
            raise UsageError(f"{out.parent} is not a folder: create it, or give another name")
        return
    if not force:
        raise UsageError(f"{out} exists: give another name, or --force to replace it")
    # A mistyped name with --force must not delete an unrelated folder.
    replaceable = _is_export_folder(out) if file_format in ("zarr", "hf") else out.is_file() and not out.is_symlink()
    if not replaceable:
        raise UsageError(f"{out} is not an export to {file_format}, so --force does not replace it: delete it first")


def _is_export_folder(out: Path) -> bool:
    try:
        document = json.loads((out / "zarr.json").read_bytes())
        return "featstore_export" in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return (out / MARKER).is_file()


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary path for a folder, which is renamed to `out` at the end of the block, unless it raises."""
    with temporary_folder(out) as parent:
        temporary = parent / "new"
        yield temporary
        LocalObjects(parent).sync("new")
        if out.is_dir():  # a folder cannot be replaced atomically
            out.rename(parent / "old")
        temporary.rename(out)


def _size(out: Path) -> int:
    paths: Sequence[Path] = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)

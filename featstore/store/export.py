"""A feature set as one file or folder that other programs read: npz, Parquet, Zarr, Hugging Face `datasets`.

What is written is read piece by piece, so that memory does not grow with the frames; it stands under a temporary name
until it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from featstore.errors import LabelError, UsageError
from featstore.files import replacing, temporary_folder
from featstore.store.clip_fields import field_values, is_label_sets, multi_hot, plain_labels
from featstore.store.export_contents import Contents
from featstore.store.feature_set import FeatureSet
from featstore.store.filesystem import LocalObjects

__all__ = ["ExportFormat", "ExportRecord", "export_feature_set"]

ExportFormat = Literal["npz", "parquet", "zarr", "hf"]
PIECE_BYTES: dict[ExportFormat, int] = {
    "npz": 64 << 20,
    "zarr": 64 << 20,
    "parquet": 16 << 20,  # a group of rows, which Parquet holds several times over while it is written
    "hf": 16 << 20,
}
MARKER = "featstore_export.json"  # in a folder of `datasets`, which has no place for words of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """What was written."""

    path: str
    format: str
    out: str
    columns: tuple[str, ...]
    clips: int
    windows: int
    frames: int | None
    bytes: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


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
        Write the frames too.
    label : str or None
        Field of the clips' JSON to be a column of its own, ``label``; of lists of text it is multi-hot, and the
        provenance has their ``label_classes``.
    force : bool
        Replace what an earlier export left at `out`.

    Raises
    ------
    UsageError
        `out` is there already, or is nothing that an export wrote; or a library is missing.
    UnknownFeatureSet
        Frames are asked for and not stored.
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
    """A column of labels; of lists of text a multi-hot array, and the classes that its columns stand for."""
    keys = fs.key.tolist()
    values = field_values(keys, fs.meta_json.tolist(), field)
    if not is_label_sets(values):
        return plain_labels(keys, values, field), None
    labels = multi_hot(keys, values, field)
    if not labels.classes:
        raise LabelError(f"{field!r} of {fs.path} is an empty list for every clip: it has no label to export")
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
        raise _missing(error) from error
    if file_format == "parquet":
        return arrow.write_parquet
    try:
        import datasets  # noqa: F401 - only to know, before an hour of writing
    except ImportError as error:
        raise _missing(error) from error
    return arrow.write_datasets_folder


def _missing(error: ImportError) -> UsageError:
    return UsageError(
        f"this format needs {error.name or error}, which is not installed: `pip install 'featstore[export]'`"
    )


# --- files and folders ------------------------------------------------------------------------------------------------


def _check_free(out: Path, *, file_format: ExportFormat, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        if not out.absolute().parent.is_dir():
            raise UsageError(f"{out.parent} is no folder: make it first, or give another name")
        return
    if not force:
        raise UsageError(f"{out} is there already: give another name, or --force to replace it")
    # A name mistyped beside --force must not cost a folder of something else.
    replaceable = _is_export_folder(out) if file_format in ("zarr", "hf") else out.is_file() and not out.is_symlink()
    if not replaceable:
        raise UsageError(
            f"{out} is nothing that an export to {file_format} wrote, so --force leaves it: delete it first"
        )


def _is_export_folder(out: Path) -> bool:
    try:
        document = json.loads((out / "zarr.json").read_bytes())
        return "featstore_export" in document["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return (out / MARKER).is_file()


@contextmanager
def _replacing_folder(out: Path) -> Iterator[Path]:
    """A temporary name for a folder, which gets the name `out` at the end of a block that raises nothing."""
    with temporary_folder(out) as around:
        temporary = around / "new"
        yield temporary
        LocalObjects(around).settle("new")
        if out.is_dir():  # a folder cannot be replaced in one step
            out.rename(around / "old")
        temporary.rename(out)


def _size(out: Path) -> int:
    paths: Sequence[Path] = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)

"""Public functions on stores: `open`, `verify`, `gc`, `compact`, `copy`, `export`, `rename`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featstore.api.arguments import StrPath, opened, url_of
from featstore.errors import UsageError

if TYPE_CHECKING:
    from featstore.store import Store
    from featstore.store.copy import CopyRecord
    from featstore.store.export import ExportFormat, ExportRecord
    from featstore.store.maintenance import CompactRecord, GcRecord
    from featstore.store.rename import RenameRecord
    from featstore.store.verify import VerifyReport

__all__ = ["compact", "copy", "export", "gc", "open", "rename", "verify"]


def open(url: StrPath, *, verify: bool = False) -> Store:
    """Open a store for reading.

    Parameters
    ----------
    url : str or os.PathLike
        A folder, or ``s3://``, ``gs://``, ``az://``, ``hf://`` or ``https://``.
    verify : bool
        Read everything through its checksums first. Without it, numbers are read through a memory map, unchecked.

    Returns
    -------
    Store
        ``len``, iteration and ``in`` are over its feature sets; ``store["logmel/words/train"]`` is one of them.

    Raises
    ------
    featstore.errors.StoreNotFound
        There is no store at `url`.
    featstore.errors.StoreVersionError
        A newer featstore wrote it.
    featstore.errors.DamagedPart
        `verify` found damage.
    """
    url = os.fspath(url)
    if verify:
        from featstore.store.verify import require_sound

        require_sound(url)
    from featstore.store import open_store

    return open_store(url)


def verify(
    store: Store | StrPath, *, repair: bool = False, on_part: Callable[[str], None] | None = None
) -> VerifyReport:
    """Check every checksum of a store.

    Parameters
    ----------
    store : Store, str or os.PathLike
    repair : bool
        Drop damaged parts, which the next `featstore.extract` encodes again, and repair documents.
    on_part : callable, optional
        Takes the path of each part after it is read.

    Returns
    -------
    VerifyReport
        ``findings``, each with ``where``, ``problem``, ``remedy`` and ``repaired``; ``sound`` is True if no damage
        remains.

    Raises
    ------
    featstore.errors.StoreNotFound
        There is no store.
    featstore.errors.StoreError
        It is not a store of this featstore, or cannot be read or written.
    """
    from featstore.store.repair import repair_store
    from featstore.store.verify import verify_store

    read = repair_store if repair else verify_store
    return read(url_of(store), on_part=on_part or _ignore)


def gc(store: Store | StrPath) -> tuple[GcRecord, ...]:
    """Delete superseded parts and the leftovers of killed runs.

    Parameters
    ----------
    store : Store, str or os.PathLike

    Returns
    -------
    tuple of GcRecord
        One for each feature set with deleted or foreign items: ``path``, ``deleted``, ``left``.
    """
    from featstore.store.maintenance import gc_store

    return gc_store(url_of(store))


def compact(store: Store | StrPath, *, part_bytes: int = 256_000_000) -> tuple[CompactRecord, ...]:
    """Merge small neighbouring parts into larger ones. Nothing is encoded again.

    Parameters
    ----------
    store : Store, str or os.PathLike
    part_bytes : int
        Target size of a part.

    Returns
    -------
    tuple of CompactRecord
        One for each feature set that changed: ``path``, ``parts_before``, ``parts_after``.

    Raises
    ------
    featstore.errors.DamagedPart
        A part is damaged; parts that were merged before it remain.
    """
    from featstore.store.maintenance import compact_store

    if part_bytes < 1:
        raise UsageError(f"part_bytes must be at least 1, got {part_bytes}")
    return compact_store(url_of(store), part_bytes=part_bytes)


def copy(
    source: Store | StrPath,
    target: StrPath,
    *,
    only: Literal["everything", "utterance"] = "everything",
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    on_part: Callable[[str], None] | None = None,
) -> tuple[CopyRecord, ...]:
    """Copy feature sets from one store to another; an interrupted copy resumes.

    Parameters
    ----------
    source : Store, str or os.PathLike
    target : str or os.PathLike
        Folder or URL; it is created if it does not exist.
    only : "everything" or "utterance"
        ``"utterance"`` copies no frames.
    encoder, dataset, split : str, optional
        Copy only these feature sets.
    on_part : callable, optional
        Takes the path of each part when it is in the target.

    Returns
    -------
    tuple of CopyRecord
        One for each feature set: ``path``, ``parts``, ``copied``, ``there``, ``replaced``, ``bytes``.

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        No feature set matches.
    featstore.errors.DamagedPart
        An object of the source is damaged. Parts before it are in the target.
    featstore.errors.StoreError
        A store cannot be read or written, or both are the same.
    """
    from featstore.store.copy import copy_store

    return copy_store(
        url_of(source),
        os.fspath(target),
        only=only,
        encoder=encoder,
        dataset=dataset,
        split=split,
        on_part=on_part or _ignore,
    )


_FORMAT_OF_SUFFIX: dict[str, ExportFormat] = {".npz": "npz", ".parquet": "parquet", ".zarr": "zarr"}


def export(
    store: Store | StrPath,
    out: StrPath,
    *,
    encoder: str | None = None,
    dataset: str | None = None,
    split: str | None = None,
    format: ExportFormat | None = None,
    frames: bool = False,
    label: str | None = None,
    force: bool = False,
) -> ExportRecord:
    """Write one feature set for other programs.

    Parameters
    ----------
    store : Store, str or os.PathLike
    out : str or os.PathLike
        A file, or a folder for the formats ``zarr`` and ``hf``.
    encoder, dataset, split : str, optional
        Select the feature set; what the store has only one of need not be named.
    format : "npz", "parquet", "zarr" or "hf", optional
        By default the suffix of `out` names it; ``hf`` is a folder of `datasets`.
    frames : bool
        Also write the frames.
    label : str, optional
        Field of the clips' JSON for the column ``label``, with dots.
    force : bool
        Replace an earlier export at `out`.

    Returns
    -------
    ExportRecord
        ``out``, ``columns``, ``clips``, ``windows``, ``frames`` and ``bytes``.

    Raises
    ------
    featstore.errors.UnknownFeatureSet, featstore.errors.AmbiguousSelection
        No feature set matches, or several do.
    featstore.errors.UsageError
        The format is not known, `out` exists and is no earlier export, or a library is not installed.
    featstore.errors.LabelError
        A clip lacks the label.
    """
    from featstore.store.export import export_feature_set

    path = Path(out)
    chosen = format or _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if chosen is None:
        raise UsageError(
            f"the suffix of {path.name!r} names no format: it is {', '.join(_FORMAT_OF_SUFFIX)}, or give --format"
        )
    fs = opened(store).select(encoder=encoder, dataset=dataset, split=split)
    return export_feature_set(fs, path, file_format=chosen, frames=frames, label=label, force=force)


def _ignore(_: str) -> None:
    """Do nothing."""


def rename(store: Store | StrPath, old: str, new: str) -> tuple[RenameRecord, ...]:
    """Change the name that a store has for an encoder. Its fingerprints and embeddings stay, and nothing is encoded.

    All its layers and pools are renamed. A killed call leaves a complete store, and the same call renames the rest.
    An open `Store` has the old names: open it again. Scores keep the name under which they were computed.

    Parameters
    ----------
    store : Store, str or os.PathLike
        A local store.
    old : str
        ``"logmel"``: every recipe of that name. ``"logmel@3f9c2a71"``: the outputs of this recipe only.
    new : str
        Letters, digits and ``. _ + = -``. The store may have other encoders of this name.

    Returns
    -------
    tuple of RenameRecord
        ``before`` and ``after``: the names of each group, such as ``"logmel.layer3@3f9c2a71"``.

    Raises
    ------
    featstore.errors.UnknownFeatureSet
        The store has no such encoder.
    featstore.errors.UsageError
        `new` cannot be a name, or is the old name.
    featstore.errors.StoreError
        The store is not a local folder, an extraction is writing embeddings of the encoder, or the store has the same
        encoder and recipe under the new name.
    """
    from featstore.store.rename import rename_encoder

    return rename_encoder(url_of(store), old, new)

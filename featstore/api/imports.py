"""Public function that imports embeddings of other software: `import_embeddings`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from featstore.api.arguments import StrPath, manifests_of, one_of, url_of
from featstore.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from featstore.api.arguments import Task
    from featstore.extract.import_embeddings import Imported
    from featstore.store import Store

__all__ = ["import_embeddings"]

_log = logging.getLogger("featstore")


def import_embeddings(
    embeddings: StrPath | Sequence[StrPath] | ArrayLike,
    *,
    encoder: str,
    store: Store | StrPath,
    dataset: str | None = None,
    split: str | None = None,
    task: Task | None = None,
    source: str = "",
    table: StrPath | Sequence[StrPath] | None = None,
    vector: str | None = None,
    frames: str | None = None,
    hop: float | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    key: str | None = None,
    split_column: str | None = None,
    columns: Sequence[str] | None = None,
    keys: Sequence[Any] | None = None,
    labels: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    replace: bool = False,
    progress: Callable[[], object] | None = None,
) -> Imported:
    """Import embeddings that other software made, from files or from an array.

    An import that is repeated changes nothing. Rows without a key, and rows whose numbers are not finite, are skipped
    and listed; a file with any other error is refused, and nothing of it is written. Nothing is unpickled.

    Parameters
    ----------
    embeddings : str, os.PathLike, a sequence of these, or array-like (n, dim)
        ``.npz``, ``.npy``, ``.parquet``, ``.safetensors``, a folder of `datasets.Dataset.save_to_disk`, or OWNER/NAME
        of a data set on the Hugging Face hub. All files of a split belong in one call.
    encoder : str
        Name of the encoder in the store. Two imports are of the same encoder if the name, `source`, the dim, the hop
        and `dtype` are equal.
    store : Store, str or os.PathLike
        Folder or URL; it is created if it does not exist.
    dataset : str, optional
        Name of the dataset; by default that of `task`.
    split : str, optional
        Split of all rows, ``all`` by default.
    task : str, os.PathLike or Manifest, optional
        Task whose splits these are: shards get names that its patterns match.
    source : str
        One line about the origin of the embeddings, such as ``"BEATs iter3, layer 9, 16 kHz"``.
    table : str, os.PathLike, or a sequence of these, optional
        For each file a CSV or JSON lines with further columns, a line for each row.
    vector, frames : str, optional
        Column, array or tensor of utterance vectors, and of frames; found by type and name if it is the only one. The
        utterance vector of a clip that has frames only is their mean.
    hop : float, optional
        Seconds from one frame to the next. With it, all files need frames; without it, frames are not stored.
    dtype : "float32" or "float16"
        Type of the stored frames. Utterance vectors are float32.
    key, split_column : str, optional
        Column of keys (by default the name of the file and the number of the row), and of splits.
    columns : sequence of str, optional
        Columns of the clips' JSON; by default all others, except other lists of floats and binary data.
    keys, labels : sequence (n,), optional
        Of an array: keys, and labels for the field ``label``, or a mapping of fields to values.
    replace : bool
        Replace what the feature sets have from another import.
    progress : callable, optional
        Is called for each file that was checked.

    Returns
    -------
    Imported
        A sequence of ImportRecord, one for each feature set, with ``failures``: files that were refused, of several.

    Raises
    ------
    featstore.errors.UsageError
        A name or a column is invalid, or a feature set has content of another import and `replace` is not set.
    featstore.errors.DataError
        The only file cannot be read, a key occurs twice, or shapes or lengths do not agree.
    featstore.errors.StoreError
        The store cannot be written.

    Examples
    --------
    >>> import tempfile, numpy as np, featstore as fs
    >>> X = np.random.default_rng(0).standard_normal((4, 8))
    >>> url = tempfile.mkdtemp() + "/emb.zarr"
    >>> words = {"encoder": "mine", "dataset": "words", "split": "train", "store": url}
    >>> [record] = fs.import_embeddings(X, keys=["a", "b", "c", "d"], labels=[0, 1, 0, 1], **words)
    >>> record.clips, record.parts_written, fs.open(url)["mine/words/train"].xy("label")[1].tolist()
    (4, 1, [0, 1, 0, 1])
    >>> fs.import_embeddings(X, keys=["a", "b", "c", "d"], labels=[0, 1, 0, 1], **words)[0].parts_written
    0
    """
    from featstore.extract.embedding_files import Columns, open_embeddings
    from featstore.extract.import_embeddings import ImportSettings, Source, import_sources

    paths = _paths(embeddings)
    tables = [None] * len(paths) if table is None else _paths(table)
    if not paths and table is not None:
        raise UsageError("a table belongs to a file: give keys and labels with an array")
    if len(tables) != len(paths):
        raise UsageError(f"each file has its table: got {len(paths)} files and {len(tables)} tables")
    if paths and (keys is not None or labels is not None):
        raise UsageError("keys and labels are those of an array: name columns of files with key and columns")
    if not paths and (vector or frames or key or split_column or columns or hop is not None):
        raise UsageError("vector, frames, hop, key, split_column and columns are those of files")
    one_of("dtype", dtype, ("float32", "float16"))
    chosen = Columns(
        vector=vector,
        frames=frames,
        key="key" if keys is not None else key,
        split=split_column,
        kept=None if columns is None else tuple(columns),
        frames_wanted=hop is not None,
    )
    if frames is not None and hop is None:
        raise UsageError("frames need hop, the seconds from one frame to the next")
    common: dict[str, Any] = {
        "encoder": encoder,
        "source": source,
        "split": split,
        "columns": chosen,
        "hop_seconds": None if hop is None else float(hop),
        "frame_dtype": dtype,
    }
    if task is not None:
        [manifest] = manifests_of(task).values()
        if dataset not in (None, manifest.data.dataset):
            raise UsageError(f"task {manifest.name} is on dataset {manifest.data.dataset!r}: got {dataset!r}")
        settings = ImportSettings.of_task(manifest, **common)
    elif dataset is None:
        raise UsageError("give the name of the dataset, or a task")
    else:
        settings = ImportSettings(dataset=dataset, **common)
    if paths:
        sources = [
            Source(name=os.fspath(path), open=partial(open_embeddings, path, chosen, table=beside))
            for path, beside in zip(paths, tables, strict=True)
        ]
    else:
        array = cast("ArrayLike", embeddings)
        sources = [Source(name="the array", open=partial(_array_embeddings, array, keys, labels))]
    imported = import_sources(
        sources, settings, store_url=url_of(store), replace=replace, on_file=progress or (lambda: None)
    )
    for failure in imported.failures:
        _log.warning("not imported: %s", failure.message)
    return imported


def _paths(files: StrPath | Sequence[StrPath] | ArrayLike) -> list[Path]:
    """Paths of files; empty for an array."""
    if isinstance(files, str | os.PathLike):
        return [Path(files)]
    is_paths = isinstance(files, list | tuple) and all(isinstance(each, str | os.PathLike) for each in files)
    if is_paths and not files:
        raise UsageError("there is no file to import")
    return [Path(each) for each in cast("Sequence[StrPath]", files)] if is_paths else []


def _array_embeddings(
    embeddings: ArrayLike, keys: Sequence[Any] | None, labels: Sequence[Any] | Mapping[str, Sequence[Any]] | None
) -> Any:
    import numpy as np

    from featstore.extract.embedding_files import ArrayEmbeddings

    fields: Mapping[str, Any] = labels if isinstance(labels, Mapping) else {} if labels is None else {"label": labels}
    given: dict[str, Any] = {**({} if keys is None else {"key": keys}), **fields}
    values = {name: each.tolist() if isinstance(each, np.ndarray) else list(each) for name, each in given.items()}
    return ArrayEmbeddings(vectors=np.asarray(embeddings), values=values, columns=tuple(values))

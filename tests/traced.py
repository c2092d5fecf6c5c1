"""The memory that an import takes, for a process of its own: other tests and their threads allocate in theirs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

import featstore as fs
from featstore.extract import import_rows
from featstore.extract.embedding_files import arrow_files, rows


def traced_import(form: str, folder: Path) -> tuple[int, int, int]:
    """Clips, parts and peak of traced bytes of the import of 16 MB."""
    place = {"encoder": "mine", "dataset": "words"}
    fs.import_embeddings(_written(form, folder / "small", 2, 2), **place, store=folder / f"{form}-0.zarr")  # imports
    path = _written(form, folder / "large", 500, 8_000)
    rows.MAX_BLOCK_ROWS = arrow_files.BATCH_ROWS = 50
    import_rows.MAX_PART_ROWS, import_rows.PART_BYTES = 10_000, 1 << 20
    tracemalloc.start()
    [record] = fs.import_embeddings(path, **place, store=folder / f"{form}.zarr")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return record.clips, record.parts_written, peak


def _written(form: str, place: Path, n: int, dim: int) -> Path:
    large = (np.arange(n * dim) % 7).astype(np.float32).reshape(n, dim)
    path = place.with_suffix(f".{form}")
    if form == "npy":
        np.save(path, large)
    elif form == "npz":
        np.savez_compressed(path, X=large)
    elif form == "safetensors":
        save_file({"X": large}, path)
    else:
        pq.write_table(pa.table({"X": list(large)}), path, row_group_size=50)
    return path

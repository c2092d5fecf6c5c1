"""An audit of 1 % beside the extraction that it audits, in CPU time: checksums, reading shards, encoding, comparing.

Start-up (importing, loading the encoder, its output for the reference signals) does not depend on the size of the store,
and has a row of its own. Scores are not computed again here: `tracks` measures that.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.encode import DataSet, make_shards
from benchmarks.harness import clip_manifest, in_child
from benchmarks.peer.transformer import write_transformer
from benchmarks.run import Options, main
from benchmarks.table import Row, Table, at_most_times

CLIP_SECONDS = 1.0
TARGET = at_most_times(0.012)


def tables(options: Options) -> Iterator[Table]:
    with tempfile.TemporaryDirectory(prefix="featstore-bench-") as name:
        folder = Path(name)
        cases = [
            *(
                (f"a transformer of {size} size", str(write_transformer(folder, size=size)), 600, (TARGET,))
                for size in ("base", "small")
            ),
            ("logmel", "logmel", 3000, ()),
        ]
        for what, encoder, n_clips, targets in cases:
            n = n_clips // 10 if options.quick else n_clips
            data = DataSet(name=f"clips{n}", n_clips=n, seconds=(CLIP_SECONDS, CLIP_SECONDS), clips_per_shard=n // 2)
            in_child(make_shards, folder=str(folder), data=dict(_fields(data)))
            measured = in_child(measure, folder=str(folder), dataset=data.name, encoder=encoder)
            n_sampled, n_read = measured.pop("sampled"), measured.pop("shards")
            yield Table(
                title=f"Audit of {what}",
                measures=f"{n} clips of {CLIP_SECONDS:g} s in two shards; {n_sampled:g} clips of {n_read:g} shards "
                "are encoded again. CPU time with one thread of PyTorch, the least of three runs (of the extraction: one run).",
                unit="CPU s",
                baseline="extract_task",
                rows=tuple(
                    Row(row, seconds, targets if row == "audit of 1 %" else ()) for row, seconds in measured.items()
                ),
            )


def _fields(data: DataSet) -> Iterator[tuple[str, Any]]:
    yield from ((name, getattr(data, name)) for name in ("name", "n_clips", "seconds", "clips_per_shard"))


# --- what runs in a child


def measure(*, folder: str, dataset: str, encoder: str) -> dict[str, float]:
    """CPU seconds of the extraction, and of each part of audits of its store."""
    import torch

    from featstore.diagnostics.audit import audit_vectors, sets_of_encoder
    from featstore.encoders import load_encoder
    from featstore.encoders.canary import read_canary
    from featstore.extract import ExtractOptions, extract_task
    from featstore.extract.job import software_versions
    from featstore.extract.windows import plan_of
    from featstore.store import note_in_encoder_group, open_store
    from featstore.store.verify import verify_store

    torch.set_num_threads(1)  # a thread that waits for another spends CPU time
    loaded = load_encoder(encoder)
    manifest = clip_manifest(dataset, splits=dict.fromkeys(("train", "valid", "test"), "*.tar"))
    url = str(Path(folder) / f"{dataset}.zarr")

    def extract() -> None:
        extract_task(
            manifest,
            loaded,
            data_dir=Path(folder) / "data",
            store_url=url,
            options=ExtractOptions(device="cpu"),
            splits=("train",),
        )

    extraction = _cpu_seconds(extract, repeats=1)
    [fs] = sets_of_encoder(open_store(url), loaded)
    plan = plan_of(loaded, fs.recipe, crop_seconds=None)
    canary = _cpu_seconds(lambda: read_canary(loaded, fs.recipe, device="cpu", plan=plan, versions=software_versions()))
    note_in_encoder_group(url, fs.recipe.group_name, canary={})  # measured by itself: it is start-up

    def vectors(sample: str) -> Any:
        sets = sets_of_encoder(open_store(url), loaded)
        return audit_vectors(url, loaded, sets, data_dir=Path(folder) / "data", sample=sample, seed=0, device="cpu")

    found = vectors("1%")
    if found.findings:
        raise RuntimeError(f"the audit finds {found.findings[0]}")
    checksums = _cpu_seconds(lambda: verify_store(url, only=[fs.path]))
    return {
        "extract_task": extraction,
        "audit of 1 %": checksums + _cpu_seconds(lambda: vectors("1%")),
        "checksums alone": checksums,
        "audit of 10 %": checksums + _cpu_seconds(lambda: vectors("10%")),
        "start-up: reference signals": canary,
        "sampled": found.recipes[0].sampled,
        "shards": sum(each.shards_read for each in found.feature_sets),
    }


def _cpu_seconds(work: Any, *, repeats: int = 3) -> float:
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


if __name__ == "__main__":
    main(only="audit")

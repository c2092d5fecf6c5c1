"""The tasks of `recordings`, extracted by a trained encoder and two without weights."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import recordings
from ge2e import weights_file

from featstore.store import Store, open_store
from featstore.tasks import Manifest, load_manifest
from handmade import run_cli

ENCODER_FILE = Path(__file__).with_name("ge2e.py")
ENCODERS = {"logmel": "logmel", "mfcc": "mfcc", "Ge2eEncoder": f"{ENCODER_FILE}:Ge2eEncoder"}
"""Name in the store -> what `featstore extract` takes."""

Table = dict[tuple[str, str], dict[str, float]]
"""Task and encoder -> scores by what computes them."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Tasks by name, and the store that has the embeddings of all of them by every encoder."""

    folder: Path
    store: Store
    manifests: dict[str, Manifest]

    @property
    def store_path(self) -> Path:
        """Folder of the store."""
        return self.folder / "store.zarr"


def make_corpus() -> Corpus:
    """Pack and extract what is not there yet; skips the test where what is needed is not installed."""
    missing = [name for folder, name in recordings.PACKAGES.items() if not folder.is_dir()]
    missing += ["the wheel of resemblyzer"] if weights_file() is None else []
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; see `make test-real`")
    sources = [Path(file).read_bytes() for file in (recordings.__file__, ENCODER_FILE)]
    made_by = hashlib.sha256(b"".join(sources)).hexdigest()[:8]
    folder = Path(tempfile.gettempdir()) / f"featstore-real-{made_by}"
    tasks = pack_tasks(folder)
    for spec in ENCODERS.values():
        extracted = run_cli(
            "extract", *tasks.values(), "--encoder", spec, "--data", folder / "data",
            "--store", folder / "store.zarr", "--json", "--fail-on-skip", timeout=3600,
        )  # fmt: skip
        assert extracted.returncode == 0, extracted.stderr
    return Corpus(
        folder=folder,
        store=open_store(str(folder / "store.zarr")),
        manifests={name: load_manifest(toml) for name, toml in tasks.items()},
    )


def pack_tasks(folder: Path) -> dict[str, Path]:
    """Pack each task that is not there yet into `folder`; the manifests by name."""
    manifests = {}
    for task in recordings.TASKS:
        toml = manifests[task.name] = folder / f"{task.name}.toml"
        if toml.exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "data" / task.name, ignore_errors=True)
        table = folder / f"{task.name}.{'jsonl' if task.kind == 'multilabel' else 'csv'}"
        _write(table, task)
        made = folder / "made.toml"
        made.unlink(missing_ok=True)
        packed = run_cli(
            "pack", folder / "data" / task.name, "--audio", task.folder, f"--{table.suffix[1:]}", table,
            "--split-column", "split", "--manifest", made, "--fail-on-skip", timeout=900,
        )  # fmt: skip
        assert packed.returncode == 0, packed.stdout + packed.stderr
        text = made.read_text(encoding="utf-8")
        if task.crop_seconds is not None:
            text = text.replace("# crop_seconds = 10.0", f"crop_seconds = {task.crop_seconds}")
        toml.write_text(text.replace("enabled = false", "enabled = true"), encoding="utf-8")
    return manifests


def _write(path: Path, task: recordings.RealTask) -> None:
    rows = [
        {"path": row.path.as_posix(), "label": row.label, "speaker": row.speaker, "split": row.split}
        for row in task.rows()
    ]
    if task.kind == "multilabel":
        path.write_text("".join(json.dumps({**row, "label": row["label"].split()}) + "\n" for row in rows))
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

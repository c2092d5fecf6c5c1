"""The commands and the code that the page shows for embeddings made elsewhere are run, in order."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featstore.cli import main
from featstore.store import open_store
from fenced import ROOT, blocks, featstore_commands

PAGE = ROOT / "docs/how-to/i-have.md"
COUNTS = {"train": 24, "valid": 9, "test": 12}


@pytest.fixture
def section(tmp_path: Path) -> Path:
    """The section alone, as a page."""
    text = PAGE.read_text(encoding="utf-8")
    [found] = re.findall(r"^## \.\.\. embeddings already\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    path = tmp_path / "section.md"
    path.write_text(found, encoding="utf-8")
    return path


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The files that the page names: three classes, apart in every file."""
    rng = np.random.default_rng(0)
    keys = [f"{split}-{at}" for split, n in COUNTS.items() for at in range(n)]
    classes = np.arange(len(keys)) % 3
    table = {
        "id": keys,
        "label": [("wren", "robin", "owl")[each] for each in classes],
        "split": [split for split, n in COUNTS.items() for _ in range(n)],
    }
    X = (np.eye(6)[classes] + 0.2 * rng.standard_normal((len(keys), 6))).astype(np.float32)
    monkeypatch.chdir(tmp_path)
    np.save("beats.npy", X)
    with Path("clips.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(table)
        rows.writerows(zip(*table.values(), strict=True))
    pq.write_table(pa.table({**table, "embedding": list(X)}), "clap.parquet")
    counts = rng.integers(2, 6, len(keys))
    np.savez("frames.npz", frames=np.repeat(X, counts, axis=0), n_frames=counts, **table)
    np.savez("fold1.npz", X=X, **table)
    return {**table, "X": X}


def test_the_commands_for_embeddings_do_what_the_page_says(
    section: Path, clips: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    commands = list(featstore_commands(section))
    assert {words[0] for words in commands} == {"import", "probe", "query"}
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code, capsys.readouterr().err
    store = open_store("embeddings.zarr")
    assert sorted({(fs.encoder, fs.dataset) for fs in store}) == [
        ("beats", "birds"), ("clap", "birds"), ("clap", "esc50"), ("sed", "birds"),
    ]  # fmt: skip
    assert np.array_equal(store["beats/birds/train"].utterance, clips["X"][: COUNTS["train"]])
    assert store["sed/birds/test"].hop_seconds == 0.04


def test_the_code_for_arrays_runs(section: Path, clips: dict[str, Any]) -> None:
    [block] = [each for each in blocks(section) if each.language == "python"]
    X, labels = clips["X"], clips["label"]
    names = {"X": X[:24], "y": labels[:24], "keys": clips["id"][:24], "X_test": X[33:], "y_test": labels[33:]}
    exec(block.text, names)
    assert len(open_store("embeddings.zarr")["mine/birds/train"]) == 24

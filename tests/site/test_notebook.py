"""The notebook runs from its first cell to its last, on a store as the tutorial makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featstore.tasks import load_manifest
from fenced import ROOT
from handmade import clip, extract, noise, task_toml, write_split

NOTEBOOK = ROOT / "docs/notebooks/inspect.ipynb"


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells are plain Python; they run in this process, one after the other."""
    plt = pytest.importorskip("matplotlib.pyplot")
    for split, n_clips in (("train", 12), ("test", 6)):
        clips = [
            clip(f"{split}-{number}", noise(0.5, seed=3 + 6 * (number % 2)), label=["low", "high"][number % 2])
            for number in range(n_clips)
        ]
        write_split(tmp_path / "data/sounds", split, clips)
    manifest = load_manifest(task_toml(tmp_path, data={"dataset": "sounds"}))
    extract(manifest, tmp_path / "data", tmp_path / "embeddings.zarr", splits=("train", "test"), frames="always")
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    plt.close("all")
    names: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
    assert "logmel" in names["store"]._repr_html_()
    assert "logmel" in names["train"]._repr_html_()
    assert "accuracy" in capsys.readouterr().out
    assert len(plt.get_fignums()) == 2
    plt.close("all")


def test_the_notebook_is_kept_without_outputs() -> None:
    assert cells()
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells())

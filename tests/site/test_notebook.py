"""The notebook runs from its first cell to its last, on a store as the tutorial makes it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.tasks import load_manifest
from fenced import ROOT
from handmade import clip, environment, extract, noise, task_toml, write_split

NOTEBOOK = ROOT / "docs/notebooks/inspect.ipynb"


def test_the_notebook_runs(tmp_path: Path) -> None:
    missing = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed: `pip install 'featstore[test]'`")
    for split, n_clips in (("train", 12), ("test", 6)):
        clips = [
            clip(f"{split}-{number}", noise(0.5, seed=3 + 6 * (number % 2)), label=["low", "high"][number % 2])
            for number in range(n_clips)
        ]
        write_split(tmp_path / "data/sounds", split, clips)
    manifest = load_manifest(task_toml(tmp_path, data={"dataset": "sounds"}))
    extract(manifest, tmp_path / "data", tmp_path / "embeddings.zarr", splits=("train", "test"), frames="always")
    code = (
        "import nbformat, nbclient\n"
        f"notebook = nbformat.read({str(NOTEBOOK)!r}, as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=60, kernel_name='python3').execute()\n"
        "nbformat.validate(notebook)\n"
        "nbformat.write(notebook, 'run.ipynb')\n"
    )
    own = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython")}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(**own), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    cells = [cell for cell in json.loads((tmp_path / "run.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert "logmel" in json.dumps(cells[0]["outputs"])
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("accuracy" in "".join(output.get("text", "")) for output in outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)

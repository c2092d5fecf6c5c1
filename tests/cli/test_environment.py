"""``FEATSTORE_STORE`` and ``FEATSTORE_DATA`` in place of options, and ``~`` in a path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from handmade import Run


def test_store_and_data_are_taken_from_the_environment_and_home_is_expanded(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("FEATSTORE_DATA", "~/data")
    monkeypatch.setenv("FEATSTORE_STORE", "~/embeddings.zarr")
    assert run("extract", "tiny.toml", "--encoder", "logmel", "--json").code == 0
    [record, *_] = json.loads(run("inspect", "--json").out)
    assert record["encoder"] == "logmel"
    assert (folder / "embeddings.zarr" / "zarr.json").is_file()
    assert run("gc", "--store=~/elsewhere.zarr").code == 2  # an option comes before the environment
    assert run("verify", "--store=~/embeddings.zarr").code == 0
    assert run("retrieve", "~/tiny.toml", "--results=~/results").code == 0
    assert run("report", "~/results", "--results", "~/results", "--out=~/board.csv").code == 0
    assert run("export", "~/x.npz", "--split", "test").code == 0
    assert sorted(path.name for path in folder.glob("*.*")) == ["board.csv", "embeddings.zarr", "tiny.toml", "x.npz"]

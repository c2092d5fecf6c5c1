from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featstore.extract import open_engine
from handmade import environment
from trippable import N_SHARDS, extract, make_folder, tripping


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a module's tests run, and their workers, which import featstore from this checkout."""
    folder = make_folder(tmp_path_factory.mktemp("workers"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FEATSTORE_TEST_FAULTS", str(folder / "faults"))
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            patch.setenv(name, environment()[name])
        yield folder


@pytest.fixture
def no_faults(folder: Path) -> None:
    for path in (folder / "faults").iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """What one process makes."""
    with open_engine(tripping(), device="cpu") as engine:
        record = extract(engine, folder, folder / "alone")
    assert (record.shards_done, record.workers, record.deaths) == (N_SHARDS, 1, ())
    return folder / "alone"

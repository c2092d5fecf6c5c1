"""`featstore extract` on a GPU, in this process and in one for each: the store is the CPU's, to the last bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from featstore.extract import EncoderRequest
from featstore.extract.process_workers import Processes
from featstore.extract.workers import WorkersEngine
from handmade import (
    XARES_ENCODER,
    clip,
    environment,
    extract,
    noise,
    read_with_plain_zarr,
    run_cli,
    task_toml,
    write_split,
)
from tiny import task

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is shown")

N_SHARDS, N_CLIPS = 6, 60
ASSERTS = '''
import torch


class AssertsEncoder(torch.nn.Module):
    """On a GPU it looks past the end of a table, which only the device can detect."""

    sampling_rate, output_dim, hop_size_in_ms = 16_000, 2, 10.0

    def forward(self, audio):
        at = torch.full((len(audio),), 99 if audio.is_cuda else 0, device=audio.device)
        table = torch.ones((2, 2), device=audio.device)
        return audio[:, ::160, None].expand(-1, -1, 2) * table[at][:, None]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("on-cuda")
    clips = [clip(f"c{n:02d}", noise(0.3 + 0.2 * (n % 7), seed=n)) for n in range(N_CLIPS)]
    write_split(root / "data/tiny", "train", clips, shards=N_SHARDS)
    task_toml(root)
    (root / "my_encoder.py").write_text(XARES_ENCODER)
    (root / "asserts_encoder.py").write_text(ASSERTS)
    return root


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    extract(
        task(),
        folder / "data",
        folder / "on-the-cpu",
        encoder=str(folder / "my_encoder.py"),
        device="cpu",
        precision="float32",
        frames="always",
    )
    return folder / "on-the-cpu"


def assert_close(one: Path, other: Path) -> None:
    first, second = read_with_plain_zarr(one), read_with_plain_zarr(other)
    assert first.keys() == second.keys()
    for name, array in first.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(
                array.astype(np.float32), second[name].astype(np.float32), rtol=2e-3, atol=2e-3, err_msg=name
            )
        else:
            np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("device", ["auto", "cuda", "all"])
def test_the_command_makes_the_store_of_the_cpu(device: str, folder: Path, alone: Path, tmp_path: Path) -> None:
    done = run_cli(
        "extract", folder / "tiny.toml", "--encoder", folder / "my_encoder.py", "--data", folder / "data",
        "--store", tmp_path / "store", "--split", "train", "--device", device, "--precision", "float32",
        "--frames", "always", "--json", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [record] = json.loads(done.stdout)
    assert (record["shards_done"], record["clips"]) == (N_SHARDS, N_CLIPS)
    assert record["settings"]["device"].startswith("cuda")
    assert record["seconds"]["busy"] <= record["seconds"]["total"] * record["workers"]
    assert_close(alone, tmp_path / "store")


def test_two_processes_on_one_gpu_end_and_make_the_store_of_the_cpu(folder: Path, alone: Path, tmp_path: Path) -> None:
    """As `--device all` does on a machine with two."""
    processes = Processes(EncoderRequest(spec=str(folder / "my_encoder.py")), devices=("cuda:0", "cuda:0"))
    with WorkersEngine(processes, attempts=2) as engine:
        [record] = extract(
            task(),
            folder / "data",
            tmp_path / "store",
            encoder=engine,  # type: ignore[arg-type]
            precision="float32",
            frames="always",
            batch_seconds=4.0,
        )
    assert (record.shards_done, record.clips, record.deaths) == (N_SHARDS, N_CLIPS, ())
    assert_close(alone, tmp_path / "store")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU is shown")
def test_every_gpu_takes_part(folder: Path, alone: Path, tmp_path: Path) -> None:
    done = run_cli(
        "extract", folder / "tiny.toml", "--encoder", folder / "my_encoder.py", "--data", folder / "data",
        "--store", tmp_path / "store", "--split", "train", "--device", "cuda:0,cuda:1", "--precision", "float32",
        "--frames", "always", "--batch-seconds", "4", "--json", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_close(alone, tmp_path / "store")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_what_fails_on_the_device_is_reported_in_a_line(device: str, folder: Path, tmp_path: Path) -> None:
    done = run_cli(
        "extract", folder / "tiny.toml", "--encoder", folder / "asserts_encoder.py", "--data", folder / "data",
        "--store", tmp_path / "store", "--split", "train", "--device", device, "--batch-seconds", "4", timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "featstore: AssertsEncoder.forward failed on float32" in done.stderr


def test_the_coordinator_of_several_workers_leaves_the_gpus_to_them(folder: Path, tmp_path: Path) -> None:
    """A context of its own would take some hundred megabytes of the first."""
    script = tmp_path / "coordinator.py"
    script.write_text(
        f"""
import sys
from pathlib import Path

import torch

from featstore.extract import EncoderRequest
from featstore.extract.process_workers import Processes
from featstore.extract.workers import WorkersEngine
from handmade import extract
from tiny import task

if __name__ == "__main__":
    processes = Processes(EncoderRequest(spec={str(folder / "my_encoder.py")!r}), devices=("cuda:0", "cuda:0"))
    with WorkersEngine(processes, attempts=2) as engine:
        extract(task(), Path({str(folder / "data")!r}), Path({str(tmp_path / "store")!r}), encoder=engine)
    sys.exit(torch.cuda.is_initialized())
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr

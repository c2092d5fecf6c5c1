"""Encoders on two Ray nodes: the store is what one process makes, whatever becomes of them on the way."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from featstore.extract.engine_choice import RAY_SETTINGS

os.environ |= RAY_SETTINGS
ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402
from stores import assert_same_contents  # noqa: E402

from featstore.errors import EncoderContractError, RemoteError, UsageError  # noqa: E402
from featstore.extract import EncoderRequest, Engine, open_engine  # noqa: E402
from handmade import clip, noise, write_split  # noqa: E402
from servers import s3_server  # noqa: E402
from trippable import CLIPS_PER_SHARD, N_SHARDS, Counting, extract, tripping  # noqa: E402
from watched import n_committed  # noqa: E402

pytestmark = pytest.mark.usefixtures("no_faults")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Any]:
    """Two nodes of one core each: what the tests' environment says is known to every worker of theirs."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(folder: Path, cluster: Any) -> Iterator[Engine]:
    with open_engine(tripping(), engine="ray", ray_address=cluster.address, cpus_per_worker=1) as engine:
        yield engine


def test_two_nodes_make_the_store_of_one_process_bit_for_bit_and_count_together(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for fault in ("slow", "both"):
        (folder / "faults" / fault).touch()
    counting = Counting()
    record = extract(engine, folder, tmp_path / "store", progress=counting)
    assert (record.shards_done, record.workers, record.deaths, record.bottleneck) == (N_SHARDS, 2, (), "encode")
    assert (counting.clips, counting.shards) == (N_SHARDS * CLIPS_PER_SHARD, N_SHARDS)
    assert_same_contents(alone, tmp_path / "store", ignoring=())
    assert capfd.readouterr() == ("", "")  # the encoder prints, and Ray would tell of it


@pytest.mark.slow
def test_what_a_node_held_that_is_removed_is_encoded_by_others_and_the_store_is_the_same(
    engine: Engine, cluster: Any, folder: Path, alone: Path, tmp_path: Path
) -> None:
    for fault in ("slow", "both"):
        (folder / "faults" / fault).touch()

    def remove() -> None:
        limit = time.monotonic() + 60
        while n_committed(tmp_path / "store") < 2 and time.monotonic() < limit:
            time.sleep(0.02)
        cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0])

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        record = extract(engine, folder, tmp_path / "store")
    finally:
        removing.join()
    [death] = record.deaths
    assert re.search(r"^a node of .* train-", death)
    assert_same_contents(alone, tmp_path / "store", ignoring=())


@pytest.mark.slow  # what the coordinator does about a death is seen in `test_processes` and `test_coordinator`
def test_what_a_killed_actor_held_is_encoded_by_others_and_the_store_is_the_same(
    engine: Engine, folder: Path, alone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "faults/killed-once").touch()
    record = extract(engine, folder, tmp_path / "store")
    [death] = record.deaths
    assert re.search(r"^a Ray worker on .* train-", death)
    assert_same_contents(alone, tmp_path / "store", ignoring=())
    assert capfd.readouterr() == ("", "")  # Ray has a paragraph on it


def test_credentials_that_only_the_command_has_are_missed_on_a_node_that_is_named(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        bucket = urllib.request.Request(f"http://127.0.0.1:{s3.port}/bucket", method="PUT")
        urllib.request.urlopen(bucket).close()
        with pytest.raises(RemoteError, match=r"s3://bucket/x\.zarr.*AWS_"):
            extract(engine, folder, "s3://bucket/x.zarr")


@pytest.mark.slow  # that errors come over from a node is seen above, that of an encoder in `test_processes`
def test_an_encoder_that_fails_on_a_node_fails_as_it_would_here(engine: Engine, folder: Path, tmp_path: Path) -> None:
    write_split(tmp_path / "data/tiny", "train", [clip("loud", noise(0.5) / abs(noise(0.5)).max())])
    with pytest.raises(EncoderContractError, match=r"'loud'.*train-000\.tar.*NaN"):
        extract(engine, folder, tmp_path / "store", data=tmp_path / "data")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"device": "cuda"}, "--device cuda"),
        ({"device": "cpu,cpu"}, "--engine ray.*auto, cpu, cuda or all.*'cpu,cpu'"),
        ({"cpus_per_worker": 64}, r"\b64\b.*--cpus-per-worker.* 1$"),
    ],
)
def test_what_the_cluster_cannot_give_is_a_usage_error(
    engine: Engine, cluster: Any, asked: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named), open_engine(EncoderRequest(spec="logmel"), engine="ray", **asked):
        pass


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("nowhere", "--ray-address.*'nowhere'"),
        ("127.0.0.1:1", "--ray-address 127.0.0.1:1 "),
    ],
)
def test_an_address_without_a_cluster_is_a_usage_error(address: str, named: str) -> None:
    from featstore.extract.ray_workers import _check_address

    with pytest.raises(UsageError, match=named):
        _check_address(address)

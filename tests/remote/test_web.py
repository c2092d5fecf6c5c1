"""A store that a plain web server gives out: read-only, kept in a cache, frames by range where the server can."""

from __future__ import annotations

import numpy as np
import pytest
from stores import make_store, split_writer

import featstore
from featstore.errors import RemoteError, StoreError, StoreNotFound
from featstore.extract.shards import dataset_folder, find_shards
from featstore.store.copy import copy_store
from featstore.store.verify import verify_store
from hostile import hostile_server
from servers import web_server


def test_a_plain_web_server_gives_out_a_store(s3, tmp_path):
    make_store(tmp_path / "x.zarr")
    local = featstore.open(str(tmp_path / "x.zarr")).select()
    with web_server(tmp_path, ranges=True) as (url, requests):
        store = featstore.open(f"{url}/x.zarr")
        fs = store.select(encoder="tiny", dataset="words", split="train")
        np.testing.assert_array_equal(fs.utterance, local.utterance)
        assert fs.key.tolist() == local.key.tolist()
        for one, two in zip(fs.frames, local.frames, strict=True):
            np.testing.assert_array_equal(one, two)
        assert verify_store(f"{url}/x.zarr").sound
        [copied] = copy_store(
            f"{url}/x.zarr", str(tmp_path / "copy.zarr"), only="utterance", encoder=None, dataset=None, split=None
        )
        assert copied.copied == 3
        assert verify_store(str(tmp_path / "copy.zarr")).sound
        requests.clear()
        np.testing.assert_array_equal(featstore.open(f"{url}/x.zarr").select().utterance, local.utterance)
        assert len(requests) <= 7 + 3  # what it takes to see which parts there are, and the record of each
        with pytest.raises(RemoteError):
            split_writer(f"{url}/x.zarr", split="other")
        with pytest.raises(StoreNotFound):
            featstore.open(f"{url}/nothing.zarr")


def test_vectors_need_no_ranges_and_frames_say_that_they_do(s3, tmp_path):
    make_store(tmp_path / "x.zarr")
    with web_server(tmp_path, ranges=False) as (url, _):
        fs = featstore.open(f"{url}/x.zarr").select()
        assert fs.utterance.shape == (15, 6)
        with pytest.raises(StoreError, match=r"http://.*frames/c/0/0") as caught:
            fs.frames[0]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_web_server_that_fails_now_and_then_changes_nothing(fault, s3, tmp_path):
    make_store(tmp_path / "x.zarr")
    local = featstore.open(str(tmp_path / "x.zarr")).select()
    with web_server(tmp_path, ranges=True, first_time=fault) as (url, requests):
        fs = featstore.open(f"{url}/x.zarr").select()
        np.testing.assert_array_equal(fs.utterance, local.utterance)
        np.testing.assert_array_equal(fs.frames[7], local.frames[7])
        assert len(requests) > len(set(requests))


def test_a_query_of_a_url_goes_behind_the_names_of_datasets_and_shards():
    folder = dataset_folder("https://host/data/?sig=x&b=1", "words")
    assert folder == "https://host/data/words?sig=x&b=1"
    with hostile_server(lambda request: request.send(b"abc")) as (url, requests):
        [shard] = find_shards(dataset_folder(f"{url}/data?sig=SECRET", "words"), "train-0.tar")
    assert requests == ["HEAD /data/words/train-0.tar?sig=SECRET"]
    assert shard.where == f"{url}/data/words/train-0.tar?sig=***"

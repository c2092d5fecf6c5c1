"""A URL with credentials opens what they open, and no message, record or representation shows them."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from stores import make_store, split_writer

import featstore
from featstore.cli import cli, main
from featstore.errors import FeatstoreError, RemoteError, UsageError
from featstore.extract.shards import find_shards
from featstore.formatting import redacted
from featstore.remote import open_remote
from featstore.store.copy import copy_store
from featstore.store.filesystem import open_objects
from featstore.store.maintenance import gc_store
from featstore.store.verify import require_sound, verify_store
from hostile import Request, hostile_server
from servers import S3

SECRET = "hunter2SECRET"
URLS = {
    "a password": "http://user:{secret}@{host}/x.zarr",
    "a token for a user": "http://{secret}@{host}/x.zarr",
    "a signature": "http://{host}/x.zarr?X-Amz-Credential={secret}&X-Amz-Signature={secret}",
    "a shared access signature": "http://{host}/x.zarr?sv=2022-11-02&sig={secret}%3D",
    "a token": "http://{host}/x.zarr?token={secret}",
    "a token without a name": "http://{host}/x.zarr?{secret}{secret}",
}


def refuse(request: Request) -> None:
    request.send_error(403)


def fail(request: Request) -> None:
    request.send_error(500)


def with_secret(form: str, url: str) -> str:
    return form.format(secret=SECRET, host=url.removeprefix("http://"))


@pytest.fixture(autouse=True)
def _once(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATSTORE_RETRIES", "0")
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "5")
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))


def shown(error: BaseException) -> str:
    """All that a traceback of an error shows, of those that it comes from too."""
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)


CALLS: dict[str, Callable[[str, Path], object]] = {
    "open": lambda url, _: featstore.open(url),
    "read": lambda url, _: open_objects(url).read("key"),
    "range": lambda url, _: open_remote(url).get_range("key", 0, 10),
    "head": lambda url, _: open_remote(url).head("key"),
    "list": lambda url, _: open_objects(url).children("folder"),
    "list all": lambda url, _: open_objects(url).sizes("folder"),
    "write": lambda url, _: split_writer(url),
    "verify": lambda url, _: verify_store(url),
    "gc": lambda url, _: gc_store(url),
    "copy from": lambda url, folder: copied(url, str(folder / "y.zarr")),
    "copy to": lambda url, folder: copied(str(folder / "local.zarr"), url),
    "shards": lambda url, _: find_shards(url, "x-*.tar"),
    "shards by name": lambda url, _: find_shards(url, "x-{0..1}.tar"),
}


def copied(source: str, target: str) -> object:
    return copy_store(source, target, only="everything", encoder=None, dataset=None, split=None)


@pytest.mark.parametrize("answer", [refuse, fail])
@pytest.mark.parametrize("form", URLS.values(), ids=URLS)
def test_no_error_of_any_call_shows_a_credential(form, answer, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    make_store(tmp_path / "local.zarr", shards=["a.tar"])
    with hostile_server(answer) as (url, requests):
        for call in CALLS.values():
            with pytest.raises(FeatstoreError) as error:
                call(with_secret(form, url), tmp_path)
            assert SECRET not in shown(error.value)
            assert "\n" not in str(error.value)
        assert url.removeprefix("http://") in str(error.value)  # the address is in the message
        if "?" in form:
            assert all(SECRET in request for request in requests)  # and the credential was used
    assert SECRET not in caplog.text.replace(" ".join(requests), "")


def test_a_server_that_is_not_there_and_urls_that_are_none():
    for url in (
        f"http://user:{SECRET}@127.0.0.1:1/x?sig={SECRET}",
        f"http://user:{SECRET}@no-such-host.invalid/x",
        f"http://user:{SECRET}@[bad/x",
        f"http://user:{SECRET}@host:99999/x",
        f"http://user:{SECRET}/with/slash@host/x",
        f"s3://KEY:{SECRET}",
        f"s3://KEY:{SECRET}@/x",
        f"ftp://user:{SECRET}@host/x",
        f"hf://user:{SECRET}@datasets/x?token={SECRET}",
    ):
        with pytest.raises(FeatstoreError) as error:
            featstore.open(url)
        assert SECRET not in shown(error.value), url
        with pytest.raises(FeatstoreError) as error:
            find_shards(url, "x-*.tar")
        assert SECRET not in shown(error.value), url


def test_a_bucket_with_keys_in_its_url(s3: S3, bucket, monkeypatch):
    name = bucket.removeprefix("s3://")
    url = f"s3://KEY:{SECRET}@{name}/x.zarr"
    make_store(f"{bucket}/x.zarr", shards=["a.tar"])
    store = featstore.open(url)
    assert store.url == f"s3://***@{name}/x.zarr"
    assert len(store.select().utterance) == 5
    s3.fault = lambda _: "refuse"
    for call in (lambda: featstore.open(url), lambda: split_writer(url), lambda: open_objects(url).children("")):
        with pytest.raises(RemoteError) as error:
            call()
        assert SECRET not in shown(error.value)
    with monkeypatch.context() as wrong:
        wrong.setenv("AWS_ENDPOINT_URL", f"minio:{SECRET}")
        with pytest.raises(UsageError):
            featstore.open(url)
        wrong.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:1")
        with pytest.raises(RemoteError) as error:
            featstore.open(url)
        assert SECRET not in shown(error.value)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(RemoteError) as error:
        featstore.open(url)
    assert SECRET not in shown(error.value)


def serving(folder: Path) -> Callable[[Request], None]:
    """A store for those who bring the signature, or the password."""

    def answer(request: Request) -> None:
        has_password = request.headers.get("Authorization", "").startswith("Basic ")
        if SECRET not in request.path and not has_password:
            request.send_error(403)
            return
        path = folder / request.path.partition("?")[0].lstrip("/")
        if path.is_dir():
            links = "".join(f'<a href="{one.name}{"/" * one.is_dir()}">x</a>' for one in path.iterdir())
            request.send(f"<html>{links}</html>".encode(), kind="text/html")
        elif path.is_file():
            data, asked = path.read_bytes(), request.headers.get("Range")
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                piece = data[int(first) : int(last) + 1]
                request.send_response(206)
                request.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")
                request.send_header("Content-Length", str(len(piece)))
                request.end_headers()
                request.wfile.write(piece)
                return
            request.send(b"" if request.command == "HEAD" else data, length=len(data))
        else:
            request.send_error(404)

    return answer


@pytest.mark.parametrize("form", [URLS["a password"], URLS["a signature"]])
def test_a_store_behind_credentials_is_read_shown_pickled_and_copied(form, tmp_path):
    make_store(tmp_path / "x.zarr")
    local = featstore.open(str(tmp_path / "x.zarr")).select()
    with hostile_server(serving(tmp_path)) as (plain, _):
        url = with_secret(form, plain)
        store = featstore.open(url)
        fs = store.select()
        np.testing.assert_array_equal(fs.utterance, local.utterance)
        frames = fs.frames
        np.testing.assert_array_equal(frames[7], local.frames[7])
        for thing in (store, fs, frames, store.feature_sets(), store._repr_html_(), store.url, fs.store_url):
            assert SECRET not in repr(thing) + str(thing)
        for carried in (pickle.loads(pickle.dumps(fs)), pickle.loads(pickle.dumps(fs))):
            np.testing.assert_array_equal(carried.utterance, local.utterance)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(frames))[3], local.frames[3])
        assert open_remote(url).url == pickle.loads(pickle.dumps(open_remote(url))).url == redacted(url)
        report = verify_store(url)
        assert report.sound
        assert SECRET not in json.dumps(report.as_json())
        require_sound(url)
        copied(url, str(tmp_path / "y.zarr"))
        assert verify_store(str(tmp_path / "y.zarr")).sound
        for arguments in (
            ["inspect", "--store", url],
            ["inspect", "--store", url, "--json", "-v"],
            ["inspect", "nothing", "--store", url],
            ["verify", "--store", url],
            ["verify", "--store", url, "--json"],
            ["copy", url, str(tmp_path / "z.zarr"), "--json"],
            ["copy", url, url],
            ["gc", "--store", url],
            ["compact", "--store", url],
        ):
            outcome = CliRunner().invoke(cli, arguments)
            assert SECRET not in outcome.output + (shown(outcome.exception) if outcome.exception else ""), arguments


def test_a_process_of_its_own_opens_with_the_credentials_that_it_is_sent(tmp_path):
    make_store(tmp_path / "x.zarr")
    with hostile_server(serving(tmp_path)) as (plain, _):
        fs = featstore.open(with_secret(URLS["a signature"], plain)).select()
        (tmp_path / "fs.pickle").write_bytes(pickle.dumps(fs))
        code = f"import pickle; print(pickle.load(open({str(tmp_path / 'fs.pickle')!r}, 'rb')).utterance.shape)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(15, 6)"


def test_the_command_line_shows_none(tmp_path, capsys):
    make_store(tmp_path / "local.zarr", shards=["a.tar"])
    with hostile_server(fail) as (url, _):
        secret = with_secret(URLS["a signature"], url)
        for arguments in (
            ["inspect", "--store", secret],
            ["--traceback", "copy", str(tmp_path / "local.zarr"), secret],
            ["verify", "--store", secret],
            ["probe", "esc50", "--store", secret],
            ["export", "--store", secret, "--out", str(tmp_path / "out.npz")],
        ):
            with pytest.raises((SystemExit, FeatstoreError)) as ended:
                main(arguments)
            result = capsys.readouterr()
            assert SECRET not in result.out + result.err + shown(ended.value)


def test_texts_without_credentials_stay_as_they_are():
    for text in (
        "s3://bucket/deep/x.zarr",
        "hf://datasets/owner/name@main/x.zarr",
        "abfss://container@account.dfs.core.windows.net/x",
        "http://[::1]:9000/x and http://host:80: refused",
        "no shard matches 'train-?.tar' in s3://bucket/train-?.tar",
        "memory://x",
        "a@b: c",
    ):
        assert redacted(text) == text
    once = redacted(f"https://u:{SECRET}@h/x?sig={SECRET}#k={SECRET}")
    assert redacted(f"{once}/zarr.json is gone") == f"{once}/zarr.json is gone"

"""A server that lies about sizes, drips, or never ends costs a bounded time and memory, and one line."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from stores import make_store, split_writer

import featstore
from featstore.errors import DamagedPart, RemoteError, StoreError
from featstore.remote import buckets, limits, open_remote
from featstore.store.copy import copy_store
from featstore.store.filesystem import open_objects
from featstore.store.verify import verify_store
from hostile import Request, hostile_server
from servers import ENVIRONMENT

TRILLION = 10**12
SECONDS = 30  # what a bounded attack may take on a machine that does other things


@pytest.fixture(autouse=True)
def _impatient(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATSTORE_RETRIES", "0")
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "1")
    monkeypatch.setenv("FEATSTORE_CACHE", str(tmp_path / "cache"))


@contextmanager
def bounded() -> Iterator[None]:
    began = time.monotonic()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < SECONDS


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def test_a_content_length_of_a_trillion_is_not_allocated():
    """obstore reserves what the header says, and the allocator ends the process."""

    def answer(request: Request) -> None:
        request.send(b"x" * 1000, length=TRILLION)
        time.sleep(0.05)
        request.wfile.write(b"x" * 1000)  # with a second piece it makes room for all

    with hostile_server(answer) as (url, _), bounded():
        with pytest.raises(RemoteError) as error:
            featstore.open(f"{url}/x.zarr")
        one_line(error)
        remote = open_remote(url)
        assert remote.get("key", most_bytes=99) == b"x" * 100  # enough to see that there is more
        with pytest.raises(RemoteError):
            remote.get_range("key", 0, 10)


def test_an_object_without_an_end_is_read_as_far_as_its_kind_may_go(monkeypatch):
    from featstore.remote import client

    monkeypatch.setattr(client, "MOST_BYTES", 1 << 20)

    def answer(request: Request) -> None:
        request.send(b"", length=TRILLION)
        for _ in range(2000):
            request.wfile.write(b" " * 65536)

    with hostile_server(answer) as (url, _), bounded():
        with pytest.raises(RemoteError, match="1,048,576"):
            featstore.open(f"{url}/x.zarr")
        assert len(open_remote(url).get("key", most_bytes=1000)) == 1001


@pytest.mark.parametrize("call", ["get", "get_range", "children"])
def test_a_server_that_drips_is_left(call):
    with hostile_server(lambda request: request.drip()) as (url, _), bounded():
        remote = open_remote(f"{url}/x.zarr")
        asked = {"get": ("key",), "get_range": ("key", 0, 1 << 20), "children": ("folder",)}[call]
        with pytest.raises(RemoteError) as error:
            getattr(remote, call)(*asked)
        one_line(error)


def drip_headers(request: Request) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    for _ in range(200):
        request.wfile.write(b"a")
        request.wfile.flush()
        time.sleep(0.2)


@pytest.mark.parametrize("call", ["get", "head", "children"])
def test_a_server_that_drips_its_headers_is_left(call):
    with hostile_server(drip_headers) as (url, _), bounded():
        with pytest.raises(RemoteError) as error:
            getattr(open_remote(f"{url}/x.zarr"), call)("key")
        one_line(error)


def test_a_slow_server_that_makes_progress_is_waited_for(monkeypatch):
    """It takes several times as long as silence may; with a size that the pace allows it completes."""
    monkeypatch.setattr(limits, "LEAST_BYTES_A_SECOND", 100)
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "0.5")

    def answer(request: Request) -> None:
        request.send(b"", length=1500)
        for _ in range(15):
            request.wfile.write(b"x" * 100)
            request.wfile.flush()
            time.sleep(0.1)

    with hostile_server(answer) as (url, _):
        assert open_remote(url).get("key") == b"x" * 1500


def test_the_time_of_a_transfer_grows_with_what_has_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    pace = limits.Pace(300.0)
    now[0] = 299.0
    pace.check(0)
    now[0] = 301.0
    with pytest.raises(limits.TooSlow):
        pace.check(999)
    pace.check(1001)
    now[0] = 300.0 + 67_108
    pace.check(64 << 20)  # 64 MiB in nineteen hours


def index_of(*names: str) -> bytes:
    return ("<html>" + "".join(f'<a href="{name}">{name}</a>' for name in names) + "</html>").encode()


def test_an_index_page_that_links_to_itself_for_ever_ends():
    def answer(request: Request) -> None:
        request.send(index_of("deeper/"), kind="text/html")

    with hostile_server(answer) as (url, requests), bounded():
        with pytest.raises(RemoteError, match="index"):
            list(open_remote(url).objects(""))
        assert len(requests) <= limits.MOST_DEPTH + 2


def test_index_pages_that_branch_for_ever_end(monkeypatch):
    from featstore.remote import web
    from featstore.store import catalogue

    monkeypatch.setattr(web, "MOST_FOLDERS", 50)
    monkeypatch.setattr(catalogue, "MOST_SPLITS", 20)

    def answer(request: Request) -> None:
        request.send(index_of(*(f"{at}/" for at in range(100))), kind="text/html")

    with hostile_server(answer) as (url, requests), bounded():
        with pytest.raises(RemoteError, match="index"):
            list(open_remote(url).objects(""))
        assert len(requests) <= 51
        with pytest.raises(StoreError):
            verify_store(f"{url}/x.zarr")


def test_an_index_page_without_an_end_is_read_as_far_as_a_page_may_go(monkeypatch):
    from featstore.remote import filesystems

    monkeypatch.setattr(filesystems, "MOST_PAGE_BYTES", 1 << 20)

    def answer(request: Request) -> None:
        request.send(b"", kind="text/html", length=TRILLION)
        for number in range(100_000):
            request.wfile.write(index_of(f"{number:05}.tar") * 10)

    with hostile_server(answer) as (url, _), bounded(), pytest.raises(RemoteError, match="larger than"):
        open_remote(url).children("")


def test_names_on_a_page_are_counted(monkeypatch):
    from featstore.remote import filesystems

    monkeypatch.setattr(filesystems, "MOST_NAMES", 10)
    page = index_of(*(f"{number}.tar" for number in range(11)))
    with (
        hostile_server(lambda request: request.send(page, kind="text/html")) as (url, _),
        pytest.raises(RemoteError, match=r"\b10\b"),
    ):
        open_remote(url).children("")


def test_links_of_a_page_are_names_in_its_folder_and_nothing_else():
    links = [
        "a.tar", "b/", "./c.tar", "/x/d.tar", "?C=N;O=D", "../", "/", "http://elsewhere/x/e.tar", "f%20g.tar",
        "h&amp;i.tar", "../../etc/passwd", "..%2F..%2Fj", "k/../l.tar", "m//n", "http://[bad", "javascript:x", "",
    ]  # fmt: skip
    with hostile_server(lambda request: request.send(index_of(*links), kind="text/html")) as (url, requests):
        absolute = index_of(f"{url}/x/o.tar", *links)
        assert open_remote(f"{url}/x").children("") == ("a.tar", "b", "c.tar", "d.tar", "f g.tar", "h&i.tar", "l.tar")
        assert requests == ["GET /x/"]
    with hostile_server(lambda request: request.send(absolute, kind="text/html")) as (other, _):
        assert "o.tar" not in open_remote(f"{other}/x").children("")  # it is of another server


def test_a_server_that_has_no_such_folder_and_one_that_refuses_are_not_asked_again(monkeypatch):
    monkeypatch.setenv("FEATSTORE_RETRIES", "5")
    for status, expected in ((404, ()), (403, None)):
        with hostile_server(lambda request, status=status: request.send_error(status)) as (url, requests):
            if expected is None:
                with pytest.raises(RemoteError, match="403"):
                    open_remote(url).children("")
            else:
                assert open_remote(url).children("") == expected
            assert len(requests) == 1


@pytest.mark.parametrize("large", ["utterance/c/0/0", "key/c/0", "frames/c/0/0"])
def test_a_sealed_object_is_read_as_far_as_its_seal_says(large, tmp_path, monkeypatch):
    """Of a store that is sound but for one object, which the server never stops sending."""
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "20")
    make_store(tmp_path / "x.zarr", shards=["a.tar"])
    sent = [0]

    def answer(request: Request) -> None:
        path = tmp_path / request.path.lstrip("/")
        if request.path.endswith(large):
            if request.command == "HEAD":
                request.send(b"", length=path.stat().st_size)
                return
            request.send(b"", length=TRILLION)
            while sent[0] < 1 << 30:
                request.wfile.write(b"\0" * 65536)
                sent[0] += 65536
        elif path.is_dir():
            request.send(index_of(*(f"{one.name}{'/' * one.is_dir()}" for one in path.iterdir())), kind="text/html")
        elif path.is_file():
            request.send(b"" if request.command == "HEAD" else path.read_bytes(), length=path.stat().st_size)
        else:
            request.send_error(404)

    with hostile_server(answer) as (url, _), bounded():
        fs = featstore.open(f"{url}/x.zarr").select()
        with pytest.raises((DamagedPart, RemoteError)) as error:
            fs.frames[0] if large.startswith("frames") else getattr(fs, large.partition("/")[0])
        one_line(error)
        with pytest.raises(DamagedPart) as error:
            copy_store(
                f"{url}/x.zarr", str(tmp_path / "y.zarr"), only="everything", encoder=None, dataset=None, split=None
            )
        one_line(error)
        assert [finding.remedy for finding in verify_store(f"{url}/x.zarr").findings] == ["drop the part"]
    assert sent[0] < 1 << 30


def test_a_listing_of_a_bucket_is_counted(s3, bucket, monkeypatch):
    monkeypatch.setattr(buckets, "MOST_LISTED", 3)
    split_writer(f"{bucket}/x.zarr")
    objects = open_objects(bucket)
    for number in range(4):
        objects.write(f"many/{number}", b"x")
    with pytest.raises(RemoteError, match=r"\b3\b"):
        objects.sizes("many")


def bucket_page(number: int, *, names: int = 10) -> bytes:
    """A page of a listing that promises another."""
    found = "".join(f"<CommonPrefixes><Prefix>x/{number}-{at}/</Prefix></CommonPrefixes>" for at in range(names))
    found += "".join(
        f"<Contents><Key>x/{number}-{at}.tar</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        "</Contents>"
        for at in range(names)
    )
    return (
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{number}</NextContinuationToken>"
        f"{found}</ListBucketResult>"
    ).encode()


def test_pages_of_a_bucket_that_never_end_are_left(monkeypatch):
    monkeypatch.setattr(buckets, "MOST_LISTED", 200)
    monkeypatch.setenv("FEATSTORE_TIMEOUT", "0.3")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FEATSTORE_RETRIES", "0")
    numbers = itertools.count(1)

    def answer(request: Request) -> None:
        request.send(bucket_page(next(numbers)), kind="application/xml")

    with hostile_server(answer) as (url, requests), bounded():
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote = open_remote("s3://bucket/x")
        with pytest.raises(RemoteError) as error:
            remote.children("")
        one_line(error)
        asked = len(requests)
        time.sleep(0.1)
        assert len(requests) <= asked + 1  # nothing goes on in the background
        with pytest.raises(RemoteError, match=r"\b200\b"):
            list(remote.objects(""))
        assert len(requests) <= asked + 1 + 200


def test_names_of_a_bucket_are_counted(monkeypatch, s3, bucket):
    remote = open_remote(bucket)
    for name in "abc":
        remote.put(f"{name}/x", b"")
    assert remote.children("") == ("a", "b", "c")
    monkeypatch.setattr(buckets, "MOST_NAMES", 2)
    with pytest.raises(RemoteError) as error:
        remote.children("")
    one_line(error)

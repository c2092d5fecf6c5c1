"""`featstore fetch` against a server that drops connections, sends the wrong bytes and does not know ranges."""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tiny
from featstore.cli import cli
from featstore.errors import FetchError, UsageError
from featstore.fetch import FetchRecord, fetch_task

BODY = {
    name: np.random.default_rng(at).bytes(300_000)
    for at, name in enumerate(("train-0.tar", "valid-0.tar", "test-0.tar"))
}


@dataclass
class Server:
    """A record and how it is served; `asked` holds the path and range of each request."""

    files: dict[str, bytes]
    break_after: dict[str, list[int]] = field(default_factory=dict)
    busy: dict[str, int] = field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    knows_ranges: bool = True
    swap: dict[str, list[bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def listing(self) -> bytes:
        found = []
        for name, body in self.files.items():
            entry = {
                "key": name,
                "size": len(body),
                "checksum": "md5:" + hashlib.md5(body).hexdigest(),
                "links": {"self": f"{self.url}/api/records/7/files/{name}/content"},
            }
            found.append({**entry, **self.listed.get(name, {})})
        return json.dumps({"id": 7, "files": found}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(files=dict(BODY))

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked_range = self.headers.get("Range", "")
            name = self.path.split("/")[-2] if self.path.endswith("/content") else ""
            state.asked.append((name, asked_range))
            if state.busy.get(name, 0):
                state.busy[name] -= 1
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.listing() if not name else state.files.get(name)
            if body is None:
                self.answer(404, b"no such file")
                return
            if state.swap.get(name):
                body = state.swap[name].pop(0)
            start = int(asked_range[6:-1]) if asked_range and state.knows_ranges else 0
            if start >= len(body):
                self.answer(416, b"")
                return
            cuts = state.break_after.get(name)
            cut = cuts.pop(0) if cuts else None
            self.answer(206 if start else 200, body[start:], start=start, whole=len(body), cut=cut)

        def answer(self, status: int, body: bytes, *, start: int = 0, whole: int = 0, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 206:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            self.end_headers()
            self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(2)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


class Watching:
    def __init__(self) -> None:
        self.total = self.done = 0

    def begin(self, *, label: str, bytes_total: int) -> None:
        self.total = bytes_total

    def advance(self, n_bytes: int) -> None:
        self.done += n_bytes


TASK = tiny.task(data={"dataset": "tiny", "zenodo": "7"})


def fetch(server: Server, folder: Path, watching: Watching | None = None, *, jobs: int = 1) -> FetchRecord:
    watcher = watching or Watching()
    return fetch_task(TASK, folder, watcher=watcher, base_url=server.url, jobs=jobs, backoff_seconds=0.001)


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "tiny").iterdir()}


def test_every_shard_comes_and_the_second_run_downloads_nothing(server: Server, tmp_path: Path) -> None:
    server.files["README.md"] = b"not a shard"
    watching = Watching()
    record = fetch(server, tmp_path, watching, jobs=3)
    assert held(tmp_path) == BODY
    assert (record.shards, record.bytes_downloaded) == (tuple(sorted(BODY)), 900_000)
    assert watching.done == watching.total == 900_000
    server.asked.clear()
    again = fetch(server, tmp_path)
    assert (again.reused, again.bytes_downloaded) == (tuple(sorted(BODY)), 0)
    assert server.asked == [("", "")]


def test_a_file_that_is_there_and_wrong_is_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    path = tmp_path / "tiny/test-0.tar"
    path.write_bytes(b"\0" * 300_000)
    assert fetch(server, tmp_path).bytes_downloaded == 300_000
    assert held(tmp_path) == BODY


def test_a_dropped_connection_is_gone_on_from_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.break_after["train-0.tar"] = [100_000, 0, 50_000]
    watching = Watching()
    record = fetch(server, tmp_path, watching)
    assert held(tmp_path) == BODY
    ranges = [asked for name, asked in server.asked if name == "train-0.tar"]
    assert ranges[0] == ""
    assert all(re.fullmatch(r"bytes=\d+-", asked) for asked in ranges[1:])
    assert ranges[-1] == "bytes=150000-"
    assert record.bytes_downloaded == 900_000
    assert watching.done == 900_000


def test_a_run_that_was_killed_is_gone_on_from(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/.train-0.tar.part").write_bytes(BODY["train-0.tar"][:123_456])
    (tmp_path / "tiny/.test-0.tar.part").write_bytes(BODY["test-0.tar"] + b"more than there should be")
    (tmp_path / "tiny/.valid-0.tar.part").write_bytes(BODY["valid-0.tar"])
    record = fetch(server, tmp_path)
    assert held(tmp_path) == BODY
    assert ("train-0.tar", "bytes=123456-") in server.asked
    assert record.bytes_downloaded == 300_000 - 123_456 + 300_000


@pytest.mark.parametrize("rest", [b"stale" * 10, b"\0" * 300_000], ids=["a part", "all of it"])
def test_what_was_left_of_another_file_does_not_stay(server: Server, tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/.train-0.tar.part").write_bytes(rest)
    watching = Watching()
    fetch(server, tmp_path, watching)
    assert held(tmp_path) == BODY
    assert watching.done == 900_000


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.break_after["train-0.tar"] = [100_000, 200_000]
    watching = Watching()
    fetch(server, tmp_path, watching)
    assert held(tmp_path) == BODY
    assert watching.done == 900_000


def test_a_server_that_always_breaks_at_one_place_is_given_up(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.break_after["train-0.tar"] = [100_000] * 50
    with pytest.raises(FetchError, match=r"train-0\.tar.*\b6\b"):
        fetch(server, tmp_path)


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.busy = {"": 2, "train-0.tar": 3}
    fetch(server, tmp_path)
    assert held(tmp_path) == BODY


def test_wrong_bytes_are_thrown_away_and_asked_for_once_more(server: Server, tmp_path: Path) -> None:
    server.swap["train-0.tar"] = [b"\1" * 300_000]
    fetch(server, tmp_path)
    assert held(tmp_path) == BODY


@pytest.mark.parametrize(
    "listed", [{"checksum": "md5:" + "0" * 32}, {"size": 299_999}, {"size": 300_001}], ids=["md5", "less", "more"]
)
def test_what_is_never_as_listed_is_an_error_and_no_shard(
    server: Server, tmp_path: Path, listed: dict[str, Any]
) -> None:
    server.listed["train-0.tar"] = listed
    with pytest.raises(FetchError, match=r"train-0\.tar: "):
        fetch(server, tmp_path)
    assert "train-0.tar" not in held(tmp_path)


def test_a_server_that_sends_nothing_any_more_is_given_up_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    server.break_after["train-0.tar"] = [1000] + [0] * 50
    with pytest.raises(FetchError, match=r"train-0\.tar.*\b6\b"):
        fetch(server, tmp_path)
    assert held(tmp_path)[".train-0.tar.part"] == BODY["train-0.tar"][:1000]
    server.break_after.clear()
    fetch(server, tmp_path)
    assert held(tmp_path) == BODY


def test_a_file_that_has_gone_is_reported_with_its_address(server: Server, tmp_path: Path) -> None:
    server.listed["train-0.tar"] = {"links": {"self": f"{server.url}/files/elsewhere/content"}}
    with pytest.raises(FetchError, match=r"/files/elsewhere/content.*\b404\b"):
        fetch(server, tmp_path)


# --- zips -------------------------------------------------------------------------------------------------------------


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return out.getvalue()


def test_the_tars_of_a_zip_become_shards_and_nothing_else_of_it_does(server: Server, tmp_path: Path) -> None:
    members = {"shards/train-0.tar": b"one", "../../../escape.tar": b"two", "/etc/root.tar": b"three",
               "notes.txt": b"", "__MACOSX/._train-0.tar": b"", "..\\windows.tar": b"four"}  # fmt: skip
    server.files = {"all.zip": zipped(members)}
    record = fetch(server, tmp_path)
    tars = {name: body for name, body in held(tmp_path).items() if not name.startswith(".")}
    assert tars == {"train-0.tar": b"one", "escape.tar": b"two", "root.tar": b"three", "windows.tar": b"four"}
    assert record.shards == tuple(sorted(tars))
    outside = [path for path in tmp_path.rglob("*.tar") if path.parent != tmp_path / "tiny"]
    assert not [*outside, *tmp_path.parent.glob("escape.tar"), *Path("/etc").glob("root.tar")]
    assert not any("zip" in name for name in held(tmp_path))
    assert fetch(server, tmp_path).reused == ("all.zip",)
    (tmp_path / "tiny/root.tar").unlink()
    assert fetch(server, tmp_path).reused == ()
    assert (tmp_path / "tiny/root.tar").read_bytes() == b"three"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"no zip", r"all\.zip"),
        (zipped({"a.txt": b""}), r"all\.zip.*\.tar"),
        (zipped({"a/x.tar": b"1", "b/x.tar": b"2"}), r"all\.zip.*x\.tar"),
        (zipped({"x.tar": b"original"}).replace(b"original", b"tampered"), r"all\.zip"),
    ],
    ids=["no zip", "no tar", "two of one name", "damaged"],
)
def test_a_zip_that_cannot_be_taken_apart_is_an_error(server: Server, tmp_path: Path, body: bytes, named: str) -> None:
    server.files = {"all.zip": body}
    with pytest.raises(FetchError, match=named):
        fetch(server, tmp_path)
    assert not list((tmp_path / "tiny").glob("*.tar"))


# --- listings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ({"key": "../up.tar"}, r"'\.\./up\.tar'"),
        ({"key": "a/b.tar"}, r"'a/b\.tar'"),
        ({"key": ".hidden.tar"}, r"'\.hidden\.tar'"),
        ({"key": "c:x.tar"}, r"'c:x\.tar'"),
        ({"checksum": "sha256:00"}, "MD5"),
        ({"size": "9"}, r"train-0\.tar.*'9'"),
        ({"links": {"self": "file:///etc/passwd"}}, "file:///etc/passwd"),
        ({"links": {}}, "'self'"),
        ({"key": "TEST-0.tar"}, r"'(TEST|test)-0\.tar'"),
    ],
)
def test_a_listing_is_not_trusted(server: Server, tmp_path: Path, listed: dict[str, Any], named: str) -> None:
    server.listed["train-0.tar"] = listed
    with pytest.raises(FetchError, match=named):
        fetch(server, tmp_path)


def test_a_record_without_shards_is_reported(server: Server, tmp_path: Path) -> None:
    server.files = {"paper.pdf": b""}
    with pytest.raises(FetchError, match=r"\.tar.*\.zip"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("changes", [{"private": True}, {}])
def test_a_task_that_is_not_published_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"tiny.*{re.escape(str(tmp_path))}"):
        fetch_task(tiny.task(**changes), tmp_path, watcher=Watching())


def test_the_command_prints_a_line_and_json(server: Server, tmp_path: Path) -> None:
    server.files = {"ESC-50.tar": b"x" * 10_000}
    arguments = ["fetch", "esc50", "--data", str(tmp_path), "--zenodo-url", server.url]
    outcome = CliRunner().invoke(cli, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "esc50: 1 shard in " in outcome.stdout
    [record] = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert record["reused"] == ["ESC-50.tar"]

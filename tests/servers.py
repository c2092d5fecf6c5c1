"""Servers on loopback: moto's own S3 server with a log and injected faults, and a plain web server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "FEATSTORE_RETRIES": "4",
}
Fault = Callable[["Request"], str]  # "", "500", "slow down", "stall", "cut" or "refuse"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    number: int  # of its path and method, from 1

    @property
    def key(self) -> str:
        """What comes after the bucket."""
        return self.path.lstrip("/").partition("/")[2]


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass
class S3:
    """moto's server, seen from outside: every request is noted, and answered as `fault` says, or by moto."""

    port: int = 0
    fault: Fault = lambda _: ""
    requests: list[Request] = field(default_factory=list)
    _seen: dict[tuple[str, str], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def forget(self) -> None:
        """From here on no fault, and nothing noted."""
        self.fault = lambda _: ""
        self.requests.clear()
        self._seen.clear()

    def asked(self, *methods: str) -> list[Request]:
        return [request for request in self.requests if not methods or request.method in methods]

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path.startswith("/moto-api"):
            return self._moto(environ, start_response)
        with self._lock:
            number = self._seen[method, path] = self._seen.get((method, path), 0) + 1
            request = Request(method, path, environ["QUERY_STRING"], number)
            self.requests.append(request)
        fault = self.fault(request)
        if fault == "500":
            return _answer(
                environ, start_response, "500 Internal Server Error", b"<Error><Code>InternalError</Code></Error>"
            )
        if fault == "slow down":
            return _answer(environ, start_response, "503 Slow Down", b"<Error><Code>SlowDown</Code></Error>")
        if fault == "refuse":
            return _answer(environ, start_response, "403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
        if fault == "stall":
            time.sleep(2.0)
        if fault == "cut":
            return _cut(self._moto, environ, start_response)
        return self._moto(environ, start_response)


def _answer(environ: dict[str, Any], start_response: Any, status: str, body: bytes) -> list[bytes]:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _cut(app: Any, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Half of the answer's body under the headers of the whole; then the connection drops."""
    body = b"".join(app(environ, start_response))
    yield body[: len(body) // 2]
    raise ConnectionResetError


@contextmanager
def s3_server() -> Iterator[S3]:
    s3 = S3()
    server = make_server("127.0.0.1", 0, s3, threaded=True, request_handler=_Silent)
    s3.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        thread.join()


class _Files(SimpleHTTPRequestHandler):
    """The standard library's file server, which knows no ranges; `ranges` teaches it these."""

    ranges = False
    first_time = ""  # what happens to the first GET of a path: "500" or "cut"
    requests: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked_before = f"GET {self.path}" in self.requests
        self.requests.append(f"GET {self.path}")
        if self.first_time and not asked_before:
            self._fail()
            return
        path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not self.ranges or not asked or not path.is_file():
            super().do_GET()
        else:
            self._range(path, asked)

    def _range(self, path: Path, asked: str, *, cut: bool = False) -> None:
        first, _, last = asked.removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        piece = data[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(piece)))
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        self.wfile.write(piece[: len(piece) // 2] if cut else piece)

    def _fail(self) -> None:
        if self.first_time == "500":
            self.send_error(500)
            return
        self.close_connection = True
        if asked := self.headers.get("Range"):
            self._range(Path(self.translate_path(self.path)), asked, cut=True)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "4096")
        self.end_headers()
        self.wfile.write(b"<html>" * 9)


@contextmanager
def web_server(folder: Path, *, ranges: bool, first_time: str = "") -> Iterator[tuple[str, list[str]]]:
    """A web server of a folder: its URL, and the requests it had."""
    requests: list[str] = []
    handler = type("Files", (_Files,), {"ranges": ranges, "first_time": first_time, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

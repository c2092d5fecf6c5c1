"""A web server on loopback that lies, drips or never ends, and bytes of chunks that expand to anything."""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; `answer` does what it likes."""

    answer: Answer
    requests: list[str]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        with contextlib.suppress(OSError):
            type(self).answer(self)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def send(self, body: bytes, *, kind: str = "application/octet-stream", length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, *, length: int = 1 << 20) -> None:
        """Five bytes a second until the client disconnects."""
        self.send(b"", length=length, kind="text/html")
        for _ in range(200):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.2)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@contextmanager
def hostile_server(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """URL of a server that answers as `answer` does, and the requests that it had."""
    requests: list[str] = []
    handler = type("Handler", (Request,), {"answer": staticmethod(answer), "requests": requests})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def zstd_bomb(n_bytes: int, *, stated: bool) -> bytes:
    """A frame of zeros, by RFC 8878: blocks of 128 KiB that repeat one byte, 4 bytes each."""
    size = 128 << 10
    n_blocks = n_bytes // size
    head = bytes([0xC0, 0x38]) + struct.pack("<Q", n_blocks * size) if stated else bytes([0x00, 0x38])
    blocks = [struct.pack("<I", size << 3 | 1 << 1 | (at == n_blocks - 1))[:3] + b"\0" for at in range(n_blocks)]
    return struct.pack("<I", 0xFD2FB528) + head + b"".join(blocks)

"""A server of one page and the audio of its clips, on the loopback interface.

Two routes: the page, and ``/audio/<n>`` for clip `n` of the feature set. A request selects a clip by number, so it
cannot name a path. A request with another Host header (DNS rebinding) is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from featstore import __version__
from featstore.errors import DataError

if TYPE_CHECKING:
    from featstore.explore.audio import ClipAudio

__all__ = ["LOOPBACK", "PageServer"]

LOOPBACK = "127.0.0.1"
_CLIPS_KEPT = 32
_MAX_IDLE_SECONDS = 30


class PageServer(ThreadingHTTPServer):
    """A server on the loopback interface; port 0 chooses a free port.

    Parameters
    ----------
    page : str
        HTML.
    audio : ClipAudio or None
    """

    daemon_threads = True

    def __init__(self, page: str, audio: ClipAudio | None, *, port: int) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.page = page.encode()
        self._audio = audio
        self.sound = lru_cache(maxsize=_CLIPS_KEPT)(self._sound)

    @property
    def url(self) -> str:
        """URL of the page."""
        return f"http://{LOOPBACK}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Accepted Host headers."""
        return (f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that closes the connection during playback."""

    def _sound(self, number: int) -> bytes | None:
        """FLAC of clip `number`; None if there is no such clip, or it cannot be read."""
        if self._audio is None or not 0 <= number < len(self._audio):
            return None
        try:
            return self._audio.flac(number)
        except DataError:
            return None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = f"featstore/{__version__}"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = _MAX_IDLE_SECONDS

    def do_GET(self) -> None:
        """Answer a request."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with the headers only."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        if self.headers.get_all("Host") not in [[host] for host in self.server.hosts]:
            self._send(HTTPStatus.FORBIDDEN, b"only requests to the loopback address are served\n", with_body=with_body)
            return
        sound = re.fullmatch(r"/audio/(0|[1-9][0-9]{0,11})", self.path, flags=re.ASCII)
        content = self.server.sound(int(sound.group(1))) if sound else self.server.page if self.path == "/" else None
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", with_body=with_body)
        elif sound:
            self._send_range(content, with_body=with_body)
        else:
            self._send(HTTPStatus.OK, content, kind="text/html; charset=utf-8", with_body=with_body)

    def _send_range(self, content: bytes, *, with_body: bool) -> None:
        """Send a clip, or the requested range of it, which browsers need to seek."""
        requested = re.fullmatch(r"bytes=([0-9]{0,12})-([0-9]{0,12})", self.headers.get("Range", ""), flags=re.ASCII)
        first, last = requested.groups() if requested else ("", "")
        if not first and not last:
            self._send(HTTPStatus.OK, content, kind="audio/flac", with_body=with_body)
            return
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= stop:
            unsatisfiable = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._send(unsatisfiable, b"", span=f"bytes */{len(content)}", with_body=with_body)
            return
        span = f"bytes {start}-{stop - 1}/{len(content)}"
        piece = content[start:stop]
        self._send(HTTPStatus.PARTIAL_CONTENT, piece, kind="audio/flac", span=span, with_body=with_body)

    def _send(
        self, status: HTTPStatus, content: bytes, *, with_body: bool, kind: str = "text/plain", span: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if kind == "audio/flac":
            self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", span)
        for name, value in (
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""

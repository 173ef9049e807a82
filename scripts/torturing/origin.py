"""The origin: an HTTP server of the harness's own, in threads, that serves what the catalogue says,
and misbehaves as it is told.

Owns sockets and threads. An answer is written by a *manner*, a function of the request; that of
good manners serves ranges, ETags, dates and a SHA256SUMS.
"""

import socket
import threading
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from torturing.content import Image

PIECE = 2**18
DATE = "Wed, 01 Jan 2025 00:00:00 GMT"


class Request(BaseHTTPRequestHandler):
    """One request; what a manner answers with."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        """Answer as the image's manner says."""
        origin = self.server.origin
        name = unquote(self.path.lstrip("/"))
        origin.count(name)
        try:
            if name == "SHA256SUMS" and name not in origin.manners:
                self.sums()
                return
            image = origin.images.get(name)
            manner = origin.manners.get(name) or origin.manner
            if image is None and name not in origin.manners:
                self.refuse(HTTPStatus.NOT_FOUND)
            else:
                manner(self, image or Image("", name, 0))
        except OSError:
            self.close_connection = True  # the client went away, or is meant to think so

    do_HEAD = do_GET  # noqa: N815 - the name that the base class calls

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    @property
    def origin(self) -> "Origin":
        """The server."""
        return self.server.origin

    def wanted(self, size: int) -> tuple[int, int] | None:
        """The range asked for, half open; None where all is."""
        text = self.headers.get("Range", "")
        if not text.startswith("bytes=") or "," in text:
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        if not first:
            return max(0, size - int(last)), size
        return int(first), min(size, int(last) + 1) if last else size

    def head(self, status: int, headers: dict[str, object]) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def refuse(self, status: int, headers: dict[str, object] | None = None) -> None:
        """An empty answer."""
        self.head(status, {"Content-Length": 0, **(headers or {})})

    def send(self, data: bytes) -> None:
        """A piece of the body; nothing to a HEAD."""
        if self.command != "HEAD":
            self.wfile.write(data)

    def sums(self) -> None:
        """The checksum list."""
        self.body(self.origin.sums(), {"ETag": f'"{self.origin.edition}"'})

    def body(self, data: bytes, headers: dict[str, object] | None = None) -> None:
        """All of *data*."""
        self.head(200, {"Content-Length": len(data), **(headers or {})})
        self.send(data)

    def good(self, image: Image, headers: dict[str, object] | None = None) -> None:
        """Serve the image as a careful server does; *headers* come on top."""
        every: dict[str, object] = {
            "ETag": f'"{image.name}-{image.version}"',
            "Last-Modified": DATE,
            "Accept-Ranges": "bytes",
            **(headers or {}),
        }
        asked = self.headers.get("If-Match")
        if asked and asked != every["ETag"]:
            self.refuse(HTTPStatus.PRECONDITION_FAILED)
            return
        wanted = self.wanted(image.size)
        start, stop = wanted or (0, image.size)
        if wanted and start >= image.size:
            self.refuse(416, {"Content-Range": f"bytes */{image.size}"})
            return
        if wanted:
            every["Content-Range"] = f"bytes {start}-{stop - 1}/{image.size}"
        self.head(206 if wanted else 200, {**every, "Content-Length": stop - start})
        self.pour(image, start, stop)

    def pour(self, image: Image, start: int, stop: int) -> None:
        """The bytes [*start*, *stop*), no faster than the origin may."""
        for at in range(start, stop, PIECE):
            data = image.read(at, min(at + PIECE, stop))
            self.send(data)
            self.origin.pace(len(data))


Manner = Callable[[Request, Image], None]


class Origin:
    """The server on loopback; *images* are what it has, *manners* those that are served in another
    way than :attr:`manner`. *rate* is bytes a second of each connection, 0 without a limit.
    *unsummed* are left out of SHA256SUMS."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.images: dict[str, Image] = {}
        self.manners: dict[str, Manner] = {}
        self.manner: Manner = Request.good
        self.unsummed: set[str] = set()
        self.rate = 0
        self.edition = 1
        self.requests: Counter[str] = Counter()
        self.ended = threading.Event()
        self._digests: dict[Image, str] = {}
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving; connections that are answered still are cut."""
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def put(self, name: str, size: int, *, summed: bool = True) -> Image:
        """Have an image of *size* bytes, or the next version of it."""
        old = self.images.get(name)
        image = Image(self.seed, name, size, old.version + 1 if old else 1)
        if not summed:
            self.unsummed.add(name)
        self._digests[image] = image.digest()
        self.images[name] = image
        self.edition += 1
        return image

    def sums(self) -> bytes:
        """The text of SHA256SUMS."""
        lines = [
            f"{self._digests[image]}  {name}\n"
            for name, image in list(self.images.items())
            if name not in self.unsummed
        ]
        return "".join(lines).encode()

    def count(self, name: str) -> None:
        """A request has come."""
        with self._lock:
            self.requests[name] += 1

    def pace(self, size: int) -> None:
        """Wait as long as *size* bytes take."""
        if self.ended.is_set():
            raise ConnectionAbortedError
        if self.rate:
            self.ended.wait(size / self.rate)

    def stall(self, seconds: float) -> None:
        """Wait, at most until the server ends."""
        self.ended.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        super().__init__(("127.0.0.1", 0), Request)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that goes away is no error."""

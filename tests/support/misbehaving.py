"""An HTTP server on loopback that does what nginx never would: lies, stalls, cuts, ignores.

    def answer(exchange):
        exchange.send_head(200, {"Content-Length": 10})
        exchange.send(b"only")          # and the connection is closed when this returns
    with misbehaving(answer) as server:
        fetch(server.url + "img")

Owns sockets and threads, all closed and joined when the block is left. Knows nothing of cachefs.
"""

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_PATIENCE = 10.0


@dataclass(slots=True)
class Exchange:
    """One request and the connection to answer it on; header names are in lower case."""

    method: str
    uri: str
    headers: dict[str, str]
    connection: socket.socket
    ended: threading.Event

    def send_head(self, status: int, headers: Mapping[str, object] | None = None) -> None:
        """Send a status line and *headers*, and nothing that is not asked for."""
        lines = [f"HTTP/1.1 {status} Whatever", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send a piece of the body; nothing to a HEAD."""
        if self.method != "HEAD":
            self.connection.sendall(data)

    def send_file(
        self, data: bytes, headers: Mapping[str, object] | None = None, *, size: int | None = None
    ) -> None:
        """Answer properly, ranges included; *size* is claimed instead of the true one."""
        size = len(data) if size is None else size
        wanted = self.wanted
        if wanted is None:
            self.send_head(200, {"Content-Length": size, **(headers or {})})
            self.send(data)
        else:
            start, stop = wanted
            span = {
                "Content-Range": f"bytes {start}-{min(stop, size) - 1}/{size}",
                "Content-Length": min(stop, size) - start,
            }
            self.send_head(206, {**span, **(headers or {})})
            self.send(data[start:stop])

    @property
    def wanted(self) -> tuple[int, int] | None:
        """The range that is asked for, half open; None if all is."""
        if "range" not in self.headers:
            return None
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1

    def stall(self) -> None:
        """Say nothing more until the server is closed."""
        self.ended.wait(_PATIENCE)


@dataclass(slots=True)
class Misbehaving:
    """The running server; *requests* holds "METHOD uri" of each request."""

    url: str
    requests: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)


@contextmanager
def misbehaving(answer: Callable[[Exchange], None]) -> Iterator[Misbehaving]:
    """Serve until the block is left; *answer* is called in a thread for each request.

    Each connection serves one request and is then closed. The path ``/`` is as any other.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    server = Misbehaving(url=f"http://127.0.0.1:{listener.getsockname()[1]}/")
    threads: list[threading.Thread] = []
    failures: list[Exception] = []

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                exchange = _receive(connection, server.ended)
                if exchange is not None:
                    server.requests.append(f"{exchange.method} {exchange.uri}")
                    answer(exchange)
            except (ConnectionError, TimeoutError):
                pass  # the client went away, as it may
            except Exception as error:  # noqa: BLE001 raised again where the test sees it
                failures.append(error)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(_PATIENCE)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        server.ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def _receive(connection: socket.socket, ended: threading.Event) -> Exchange | None:
    received = b""
    while b"\r\n\r\n" not in received:
        more = connection.recv(65536)
        if not more:
            return None
        received += more
    first, *rest = received.decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")
    method, uri, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in rest)}
    return Exchange(method, uri, headers, connection, ended)

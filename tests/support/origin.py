"""A real nginx on a loopback port, as an origin to fetch images from.

Owns the process and everything below one temporary directory: configuration, logs, pid, temporary
files. Knows nothing of cachefs.

    with nginx(directory, limit_rate="20m") as origin:
        fetch(origin.url + "disk.img")
        assert origin.requests("/disk.img")[-1].status == 200
        origin.stop()  # an outage: connections are cut, then refused
        origin.start()  # the same port again
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0
"""Seconds that nginx may take to start or to stop."""

_PING = "/.nginx-ping"

_LOG_FORMAT = (
    '{"method":"$request_method","uri":"$request_uri","status":$status,'
    '"bytes_sent":$body_bytes_sent,"range":"$http_range","if_match":"$http_if_match",'
    '"accept_encoding":"$http_accept_encoding","connection":$connection}'
)


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the access log.

    *uri* is as it was sent, still percent-encoded; *bytes_sent* counts the body only; headers that
    were not sent are empty strings; requests with one *connection* number shared a connection.
    """

    method: str
    uri: str
    status: int
    bytes_sent: int
    range: str
    if_match: str
    accept_encoding: str
    connection: int


class Origin:
    """A running (or stopped) nginx; made by :func:`nginx`."""

    def __init__(
        self, home: Path, directory: Path, server_lines: str, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.directory = directory
        self._home = home
        self._server_lines = server_lines
        self._process: subprocess.Popen[bytes] | None = None
        self._log = home / "access.log"
        self._log.touch()
        self._skip = 0
        self._tls = tls
        self._secure_port = 0
        self.port = 0

    @property
    def secure_url(self) -> str:
        """The same over TLS."""
        assert self._tls is not None, "nginx has no certificate"
        return f"https://127.0.0.1:{self._secure_port}/"

    @property
    def url(self) -> str:
        """The URL of the directory, ending with a slash."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def running(self) -> bool:
        return self._process is not None

    def requests(self, path: str | None = None) -> list[Request]:
        """The requests that have ended, oldest first; of *path* (still encoded) only, if given.

        A request still being answered is not there yet.
        """
        if self.running:
            # One process, one event loop: when this is answered, all that ended before is logged.
            self._ping()
        lines = self._log.read_bytes().splitlines()[self._skip :]
        requests = [Request(**json.loads(line)) for line in lines]
        return [request for request in requests if path is None or request.uri == path]

    def bytes_sent(self, path: str | None = None) -> int:
        """Bytes of bodies sent in the :meth:`requests` that have ended."""
        return sum(request.bytes_sent for request in self.requests(path))

    def forget_requests(self) -> None:
        """Let :meth:`requests` begin with the next request."""
        self._skip += len(self.requests())

    def start(self) -> None:
        """Start (again, on the same port); returns when it answers."""
        assert self._process is None, "nginx is running already"
        deadline = time.monotonic() + PATIENCE
        fresh = self.port == 0
        while True:
            if fresh:
                self.port = _free_port()
                self._secure_port = _free_port() if self._tls else 0
            self._configure()
            if self._launch(deadline):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"nginx does not start: {self._stderr()}")

    def stop(self) -> None:
        """Stop at once: running downloads are cut off, new connections are refused."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """Answer nothing, but keep every connection: what a hanging server looks like."""
        assert self._process is not None, "nginx is not running"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after :meth:`freeze`."""
        assert self._process is not None, "nginx is not running"
        self._process.send_signal(signal.SIGCONT)

    def _launch(self, deadline: float) -> bool:
        with (self._home / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                [_nginx_path(), "-p", str(self._home), "-c", str(self._home / "nginx.conf")],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        while process.poll() is None:
            try:
                self._ping()
            except OSError:
                if time.monotonic() > deadline:
                    process.kill()
                    process.wait()
                    return False
                time.sleep(0.01)
            else:
                self._process = process
                return True
        return False

    def _ping(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url.rstrip("/") + _PING, timeout=PATIENCE) as answer:
            # Somebody else may have taken the port between our choosing it and nginx's bind.
            if answer.read().decode() != str(self._home):
                raise ConnectionError("another server answers on this port")

    def _stderr(self) -> str:
        return (self._home / "stderr").read_text(errors="replace").strip()[-500:]

    def _secure_lines(self) -> str:
        if self._tls is None:
            return ""
        certificate, key = self._tls
        return (
            f"listen 127.0.0.1:{self._secure_port} ssl;"
            f' ssl_certificate "{certificate}"; ssl_certificate_key "{key}";'
        )

    def _configure(self) -> None:
        home = self._home
        temporary = "".join(
            f'    {kind}_temp_path "{home}/{kind}";\n'
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (home / "nginx.conf").write_text(
            f"""
daemon off;
master_process off;
{"user root;" if os.geteuid() == 0 else ""}
pid "{home}/pid";
error_log "{home}/error.log" warn;
events {{ worker_connections 512; }}
http {{
{temporary}
    log_format json escape=json '{_LOG_FORMAT}';
    access_log "{self._log}" json;
    types {{ text/html html htm; }}
    default_type application/octet-stream;
    sendfile on;
    sendfile_max_chunk 1m;
    server {{
        listen 127.0.0.1:{self.port};
        {self._secure_lines()}
        root "{self.directory}";
        location = {_PING} {{ access_log off; limit_rate 0; auth_basic off;
                              default_type text/plain; return 200 "{home}"; }}
{self._server_lines}
    }}
}}
"""
        )


@contextmanager
def nginx(
    directory: Path | str,
    *,
    limit_rate: str | None = None,
    ranges: bool = True,
    etag: bool = True,
    last_modified: bool = True,
    gzip: bool = False,
    refuse: Mapping[str, int] | None = None,
    redirect: Mapping[str, str] | None = None,
    users: Mapping[str, str] | None = None,
    login_page: bool = False,
    tls: tuple[Path, Path] | None = None,
    extra: str = "",
) -> Iterator[Origin]:
    """Serve *directory* over HTTP until the block is left.

    *limit_rate* is bytes a second for each connection, as nginx writes it (``500k``, ``20m``).
    ``ranges=False`` answers range requests with the whole file and 200; ``etag=False`` and
    ``last_modified=False`` leave these headers out; ``gzip=True`` compresses for who accepts it.
    *refuse* maps a path prefix to the status of everything below it (``{"/secret/": 403}``);
    *redirect* maps a path prefix to the prefix it has moved to (302); *users* maps names to
    passwords, which everything then needs (HTTP Basic). ``login_page=True`` answers every request
    with 200 and an HTML page. *tls* is a certificate and its key, for ``secure_url``. *extra* is
    put into the ``server`` block as it is.
    """
    home = Path(tempfile.mkdtemp(prefix="cachefs-nginx-"))
    lines = [
        f"limit_rate {limit_rate};" if limit_rate else "",
        "" if ranges else "max_ranges 0;",
        "" if etag else "etag off;",
        "" if last_modified else 'add_header Last-Modified "";',
        "gzip on; gzip_types *; gzip_min_length 0;" if gzip else "",
    ]
    lines += [f"location {path} {{ return {code}; }}" for path, code in (refuse or {}).items()]
    lines += [
        f"location {old} {{ rewrite ^{old}(.*)$ {new}$1 redirect; }}"
        for old, new in (redirect or {}).items()
    ]
    if users:
        secrets = home / "users"
        secrets.write_text("".join(f"{name}:{{PLAIN}}{word}\n" for name, word in users.items()))
        lines.append(f'auth_basic "images"; auth_basic_user_file "{secrets}";')
    if login_page:
        page = "<!DOCTYPE html><title>Log in</title><form>Who are you?</form>"
        lines.append(f"location / {{ default_type text/html; return 200 '{page}'; }}")
    lines.append(extra)
    origin = Origin(home, Path(directory).absolute(), "\n".join(lines), tls)
    try:
        origin.start()
        yield origin
    finally:
        origin.stop()
        shutil.rmtree(home, ignore_errors=True)


def basic_auth(user: str, password: str) -> str:
    """The value of the Authorization header that *user* sends."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _nginx_path() -> str:
    path = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise RuntimeError("these tests need nginx")
    return path

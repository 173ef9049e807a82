"""The set-up of a run: an origin on loopback, mounts of it, and the end of all of them.

Owns every process and mount that a run starts. A process that does not answer in time is killed,
which also frees whoever waits for its mount."""

import contextlib
import functools
import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from benchmark.measure import TIMEOUT, read_through

LIMIT = 900.0
"""Seconds that a served process may live: nothing here takes as long unless it hangs."""

NGINX = """\
{user}
daemon off; worker_processes 2; pid {here}/nginx.pid; error_log {here}/nginx.log;
events {{}}
http {{
    access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
    client_body_temp_path {here}/t1; proxy_temp_path {here}/t2; fastcgi_temp_path {here}/t3;
    uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
    server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; }}
}}
"""


class Served:
    """A running process, perhaps with a mount."""

    def __init__(self, command: list[str], log: Path, mountpoint: Path | None = None) -> None:
        self.mountpoint = mountpoint
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=log.parent
            )
        self.pid = self._process.pid
        self._timer = threading.Timer(LIMIT, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def wait_mounted(self, answer: str = "") -> Self:
        """Return once the mount is there and *answer*, a name in it, can be seen."""
        assert self.mountpoint is not None
        until = time.monotonic() + LIMIT
        while not (is_mounted(self.mountpoint) and (self.mountpoint / answer).exists()):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no mount at {self.mountpoint}:\n{self._log.read_text()}")
            time.sleep(0.002)
        return self

    def stop(self) -> None:
        """End it, and its mount; by force if need be."""
        self._timer.cancel()
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.mountpoint is not None and is_mounted(self.mountpoint):
            subprocess.run(["umount", "-l", self.mountpoint], timeout=30, check=False)


class Lab:
    """What subjects measure with. Images are below :attr:`root`, served at :attr:`url`; mounts are
    made when first asked for, and shared."""

    def __init__(self, here: Path, *, quick: bool, rounds: int | None) -> None:
        self.here = here
        self.root = here / "origin"
        self.quick = quick
        self._cachefs_pid = 0
        self.rounds = rounds or (3 if quick else 7)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.root.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read_at(self, name: str) -> dict[str, Path]:
        """Where the image *name* can be read, and has been: ``native`` is the file itself,
        ``relay`` :attr:`cachefs`, as root gets it."""
        places = {
            "relay": self.cachefs / "images" / name,
            "plain": self.plain / "images" / name,
            "rclone": self.rclone / name,
            "native": self.root / name,
        }
        for path in places.values():
            read_through(path)  # caches it
        return places

    def uncache(self, mountpoint: Path, name: str) -> None:
        """Have the image evicted from a cachefs mount, once it is not being fetched any more, and
        the disk idle."""
        control = mountpoint / "control"
        until = time.monotonic() + TIMEOUT
        while (control / "incomplete" / name).exists() and time.monotonic() < until:
            time.sleep(0.05)
        (control / "cached" / name).unlink(missing_ok=True)
        os.sync()

    def serve(self, served: Served) -> Served:
        """Stop it at the end of the run."""
        self._stack.callback(served.stop)
        return served

    @functools.cached_property
    def big(self) -> str:
        """An image of 1 GiB (256 MiB when quick), without a checksum file."""
        return self._image("big.img", 2**28 if self.quick else 2**30)

    @functools.cached_property
    def big_summed(self) -> str:
        """The same bytes under another name, which is in SHA256SUMS."""
        name = "summed.img"
        os.link(self.root / self.big, self.root / name)
        with (self.root / name).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (self.root / "SHA256SUMS").write_text(f"{digest}  {name}\n")
        return name

    @functools.cached_property
    def small(self) -> list[str]:
        """64 images of 1 MiB."""
        return [self._image(f"small-{number:02}.img", 2**20) for number in range(64)]

    @functools.cached_property
    def url(self) -> str:
        """The origin: nginx with sendfile, serving :attr:`root`. All images are made first, for
        rclone reads a directory only now and then."""
        assert self.big
        assert self.big_summed
        assert self.small
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        conf = self.here / "nginx.conf"
        user = "user root;" if os.getuid() == 0 else ""
        conf.write_text(NGINX.format(user=user, here=self.here, root=self.root, port=port))
        log = self.here / "nginx.log"
        self.serve(Served(["nginx", "-e", str(log), "-c", str(conf)], log))
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except ConnectionRefusedError:
                if time.monotonic() > until:
                    raise RuntimeError(f"nginx does not start:\n{log.read_text()}") from None
                time.sleep(0.01)
            else:
                return f"http://127.0.0.1:{port}/"

    @functools.cached_property
    def cachefs(self) -> Path:
        """A cachefs mount of the origin."""
        mountpoint = self._directory("cachefs")
        served = self.start_cachefs(self.url, mountpoint, self.here / "cachefs.cache")
        self._cachefs_pid = served.pid
        return self._ready(self.serve(served), "control/status")

    @property
    def cachefs_pid(self) -> int:
        """The process that was started for :attr:`cachefs`; others are below it."""
        assert self.cachefs
        return self._cachefs_pid

    @functools.cached_property
    def plain(self) -> Path:
        """A cachefs mount of the origin by plain pyfuse3, without relay and passthrough."""
        mountpoint = self._directory("plain")
        cache = self.here / "plain.cache"
        served = self.start_cachefs(self.url, mountpoint, cache, "--transport", "plain")
        return self._ready(self.serve(served), "control/status")

    @functools.cached_property
    def rclone(self) -> Path:
        """An rclone mount of the origin that caches whole files."""
        return self._ready(self.serve(self._start_rclone("rclone")), "")

    @contextlib.contextmanager
    def fresh_rclone(self) -> Iterator[Path]:
        """The same for a while, with an empty cache."""
        served = self._start_rclone(f"rclone-{time.monotonic_ns()}")
        try:
            yield self._ready(served, "")
        finally:
            served.stop()

    def _start_rclone(self, name: str) -> Served:
        mountpoint = self._directory(name)
        command = ["rclone", "mount", ":http:", str(mountpoint), "--http-url", self.url]
        command += ["--vfs-cache-mode", "full", "--cache-dir", str(self.here / f"{name}.cache")]
        command += ["--read-only", "--config", os.devnull, "--dir-cache-time", "1h"]
        return Served(command, self.here / f"{name}.log", mountpoint)

    def start_cachefs(self, source: str, mountpoint: Path, cache: Path, *more: str) -> Served:
        """Start a cachefs in the foreground; the caller waits, and stops it."""
        code = "from cachefs.cli import main; main()"
        command = [sys.executable, "-c", code, "mount", source, str(mountpoint), "--foreground"]
        command += ["--cache-dir", str(cache), "--min-free", "0", *more]
        return Served(command, mountpoint.with_suffix(".log"), mountpoint)

    def _ready(self, served: Served, answer: str) -> Path:
        mountpoint = served.wait_mounted(answer).mountpoint
        assert mountpoint is not None
        return mountpoint

    def _directory(self, name: str) -> Path:
        path = self.here / name
        path.mkdir()
        return path

    def _image(self, name: str, size: int) -> str:
        block = random.Random(name).randbytes(min(size, 2**22))
        with (self.root / name).open("wb") as file:
            for _ in range(size // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        return name


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted there, without asking it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(mountpoint) for line in mounts)

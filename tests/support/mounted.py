# ruff: noqa: T201, BLE001
# Its output is its interface; pyfuse3 and the protocols have the types.
"""Test mounts: served by child processes, with limits on everything, cleaned up whatever happens.

The process of the test may use the mount, since it does not serve it; what could hang goes through
:func:`limited` or a process of its own (:meth:`Mounted.spawn`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import cachefs
from cachefs.kernel import mounting

from .connections import Connection

T = TypeVar("T")
ROOT = Path(cachefs.__file__).parent.parent
LIMIT = 20.0


def limited(function: Callable[[], T], seconds: float = LIMIT) -> T:
    """*function*'s result, in a thread that is left behind if it takes longer."""
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    assert results, f"hung for {seconds} s"
    return results[0]


def eventually(condition: Callable[[], T], seconds: float = LIMIT) -> T:
    """The first true result of *condition*."""
    deadline = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            result = limited(condition)
            if result:
                return result
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


class Mounted:
    """A mount of smallfs, and the processes around it."""

    def __init__(self, mode: str, files: dict[str, bytes | int], *words: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="transport-"))
        self.source = self.directory / "source"
        self.path = self.directory / "mnt"
        self.source.mkdir()
        self.path.mkdir()
        for name, content in files.items():
            data = os.urandom(content) if isinstance(content, int) else content
            (self.source / name).write_bytes(data)
        self.log = self.directory / "log"
        module = "supervise" if mode.startswith("supervised-") else "smallfs"
        mode = mode.removeprefix("supervised-")
        self.children: list[subprocess.Popen[bytes]] = []
        self.connection: Connection | None = None
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    f"tests.support.{module}",
                    mode,
                    self.source,
                    self.path,
                    *words,
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.server.poll() is None, self.log.read_text()
            return "ready\n" in self.log.read_text() or "serving " in self.log.read_text()

        eventually(ready)
        self.connection = Connection.of(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def stats(self) -> dict[str, Any]:
        """What the filesystem has seen, from its own mouth."""
        return dict(json.loads(limited((self.path / "stats").read_bytes)))

    def command(self, text: str) -> None:
        limited(lambda: (self.path / "stats").write_text(text))

    def wait_for_waiting(self, name: str) -> None:
        """Return once a request for *name* has reached the worker, which does not answer it."""
        eventually(lambda: name in self.stats()["waiting"])

    def go(self) -> None:
        """Have the requests answered that wait for it."""
        (self.directory / "go").touch()

    def worker(self) -> int:
        return int(self.stats()["pid"])

    def kill_worker(self) -> int:
        pid = self.worker()
        os.kill(pid, signal.SIGKILL)
        return pid

    def new_worker(self, old: int) -> int:
        return eventually(lambda: (pid := self.worker()) != old and pid)

    def spawn(self, code: str, *names: str) -> subprocess.Popen[bytes]:
        """Python *code* in a process of its own; ``sys.argv`` has the paths of *names*."""
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import os, sys, errno\n{code}",
                *(self.path / n for n in names),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.children.append(process)
        return process

    def abort(self) -> None:
        """Abort the connection, which frees whoever waits for it."""
        if self.connection is not None:
            self.connection.abort()
        mounting.abort(self.path)

    def close(self) -> None:
        with suppress(OSError):
            mounting.unmount(self.path)
        for child in self.children:
            child.kill()
            child.stdin.close()  # type: ignore[union-attr]
            child.stdout.close()  # type: ignore[union-attr]
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
        with suppress(subprocess.TimeoutExpired):
            self.server.wait(2)
        self.abort()
        if self.server.poll() is None:
            self.server.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.server.wait(8)
        if self.server.poll() is None:
            self.server.kill()
            self.server.wait(5)
        for child in self.children:
            child.wait(5)
        print(self.log.read_text())
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def mounted(mode: str, files: dict[str, bytes | int], *words: str) -> Iterator[Mounted]:
    """A mount of *files* (name to content, or to a size of random bytes), served by *mode*: relay,
    plain, supervised-relay or supervised-plain."""
    made = Mounted(mode, files, *words)
    try:
        made.wait_ready()
        yield made
    finally:
        made.close()


def result(process: subprocess.Popen[bytes], seconds: float = LIMIT) -> str:
    """What a process of :meth:`Mounted.spawn` printed; it has ended."""
    out, _ = process.communicate(timeout=seconds)
    return out.decode().strip()

"""A cachefs on a kernel mount, served by a child process, with an origin of its own.

    with mounted(tmp_path, source="nginx") as mount:
        data = mount.origin.put("disk.img", 100_000)
        assert mount.cat("disk.img") == data

Owns the daemon, the mount and everything below one directory, and takes all of it away however the
test ends. The process that tests is never the one that serves, and a daemon that hangs is aborted
before it can hang whoever reads from it.

What the daemon logs at WARNING or above fails the test, unless :meth:`Mounted.expect` announced it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Self

from cachefs.kernel import mountinfo, mounting

from .images import Images
from .origin import Origin, nginx
from .processes import PATIENCE, Done, run, start, wait_for

CACHEFS = (sys.executable, "-W", "default", "-m", "cachefs")
"""The command line, installed or not. Python's own warnings are shown, and then fail the test."""

_LOUD = re.compile(
    r" (WARNING|ERROR|CRITICAL) |^Traceback|^Exception ignored|\b\w+Warning: |^Fatal Python"
)

DIRECTORY, NGINX = "directory", "nginx"


class Mounted:
    """One mount, running or not. *url* is its source; *prefix* are words to put before every
    command, for another user or namespace."""

    def __init__(
        self,
        home: Path,
        url: str,
        *,
        driver: str = "sqlite",
        options: Sequence[str] = (),
        prefix: Sequence[str] = (),
        program: Sequence[str] = CACHEFS,
    ) -> None:
        self.home = home
        self.url = url
        self.driver = driver
        self.options = list(options)
        self.prefix = list(prefix)
        self.program = list(program)
        self.mountpoint = home / "mnt"
        self.cache_dir = home / "cache"
        self.log = home / "daemon.log"
        self.images = self.mountpoint / "images"
        self.control = self.mountpoint / "control"
        self.origin: Images
        self.server: Origin
        self.process: subprocess.Popen[bytes] | None = None
        self._read_to = 0
        self._expected: list[str] = []
        self.mountpoint.mkdir(exist_ok=True)
        self.log.touch()

    # The daemon

    @property
    def command(self) -> list[str]:
        """The command that mounts, but for ``--foreground``."""
        words = [*self.program, "mount", self.url, str(self.mountpoint)]
        words += ["--cache-dir", str(self.cache_dir), "--driver", self.driver, "--min-free", "0"]
        return [*words, *self.options]

    def start(self, *options: str) -> None:
        """Mount, and return once ``control/status`` answers."""
        assert self.process is None, "it is mounted already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *self.command, *options, "--foreground"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        wait_for(self._answers, "the mount to answer")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon as its administrator would; nothing stays mounted."""
        assert self.process is not None, "it is not mounted"
        self.process.send_signal(number)
        self.wait_ended()
        assert not mountinfo.is_mounted(self.mountpoint), "it is still mounted"

    def wait_ended(self) -> None:
        """Wait for the daemon to end by itself, with exit status 0."""
        assert self.process is not None, "it is not mounted"
        status = self.process.wait(PATIENCE)
        self.process = None
        assert status == 0, f"the daemon ended with {status}:\n{self.tail()}"

    def kill(self) -> None:
        """``kill -9`` of supervisor and worker: the daemon is gone, its dead mount stays."""
        assert self.process is not None, "it is not mounted"
        worker = self.worker()
        self.expect("the supervisor is gone")
        self.process.kill()
        self.process.wait(PATIENCE)
        self.process = None
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: mounting.is_dead(self.mountpoint), "the worker to be gone")

    def worker(self) -> int:
        """The process that answers requests."""
        worker = self.status()["worker"]
        assert isinstance(worker, dict)
        return int(worker["pid"])

    def restart(self) -> None:
        """:meth:`stop` and :meth:`start`."""
        self.stop()
        self.start()

    def abort(self) -> None:
        """Fail every request under way and to come: whoever hangs in the kernel gets ENOTCONN."""
        mounting.abort(self.mountpoint)

    def clean_up(self) -> list[str]:
        """Take everything away, whatever state it is in; what did not go by itself."""
        troubles = []
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                troubles.append("the daemon did not end on SIGTERM")
                self.abort()
                run("umount", "-l", str(self.mountpoint), check=False)
                process.kill()
                process.wait()
        while mountinfo.is_mounted(self.mountpoint):
            if process is not None:
                troubles.append("it stayed mounted after its daemon")
            run("umount", "-l", str(self.mountpoint))
        return troubles

    @contextmanager
    def watched(self, seconds: float = 45.0) -> Iterator[None]:
        """Abort the connection when the block takes longer: a test that hangs in the kernel can be
        ended in no other way."""
        timer = threading.Timer(seconds, self.abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.tail()}")
        if self.prefix:  # another namespace: only from inside can it be seen
            return self.run("cat", str(self.control / "status"), check=False).status == 0
        try:
            return mountinfo.is_mounted(self.mountpoint) and bool(self.status())
        except OSError:
            return False  # a dead mount, that is about to be detached

    # Its log

    def expect(self, *patterns: str) -> None:
        """Announce that the daemon will log warnings or errors that these expressions find."""
        self._expected += patterns

    def new_lines(self) -> list[str]:
        """What was logged since the last :meth:`check_log`."""
        return self.log.read_text(errors="replace")[self._read_to :].splitlines()

    def check_log(self) -> None:
        """Fail for warnings and errors that nobody announced; announcements end here."""
        loud = [line for line in self.new_lines() if _LOUD.search(line)]
        self._read_to = len(self.log.read_text(errors="replace"))
        expected, self._expected = self._expected, []
        unexpected = [
            line for line in loud if not any(re.search(pattern, line) for pattern in expected)
        ]
        assert not unexpected, "the daemon logged:\n" + "\n".join(unexpected)

    def tail(self) -> str:
        """The end of the log, to be shown with a failure."""
        return self.log.read_text(errors="replace")[-1500:]

    # What users do

    def run(self, *command: str, check: bool = True, timeout: float = PATIENCE) -> Done:
        """Run a tool beside the daemon, as its user."""
        return run(*self.prefix, *command, check=check, timeout=timeout)

    def start_tool(self, *command: str, stdout: int | IO[bytes] = subprocess.DEVNULL) -> "Tool":
        """A tool that runs on, ended with the ``with`` block."""
        return Tool(start(*self.prefix, *command, stdout=stdout))

    def cli(self, *words: str, check: bool = True, timeout: float = PATIENCE) -> Done:
        """Run a cachefs command on this mount."""
        name, *rest = words
        where = ["--mount", str(self.mountpoint)]
        return self.run(*self.program, name, *where, *rest, check=check, timeout=timeout)

    def image(self, image_id: str) -> str:
        """The path of an image, for a tool."""
        return f"{self.images}/{image_id}"

    def cat(self, image_id: str, *, timeout: float = PATIENCE) -> bytes:
        """The bytes of an image, read by cat(1)."""
        return self.run("cat", self.image(image_id), timeout=timeout).stdout

    def touch(self, name: str) -> Done:
        """``touch control/NAME``."""
        return self.run("touch", f"{self.control}/{name}")

    def remove(self, name: str) -> Done:
        """``rm control/NAME``."""
        return self.run("rm", f"{self.control}/{name}")

    def record(self, name: str) -> dict[str, object]:
        """The record that ``cat control/NAME`` shows."""
        record: dict[str, object] = json.loads(self.show(name))
        return record

    def show(self, name: str) -> str:
        """What ``cat control/NAME`` shows."""
        return self.run("cat", f"{self.control}/{name}").stdout.decode()

    def write(self, name: str, text: str) -> None:
        """``echo TEXT > control/NAME``, with one write(2)."""
        fd = os.open(self.control / name, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(fd, f"{text}\n".encode())
        finally:
            os.close(fd)

    def listed(self, name: str = "images") -> list[str]:
        """What ``ls`` shows of a directory, ``images`` or one of ``control/``."""
        place = self.images if name == "images" else self.control / name
        return sorted(path.name for path in place.iterdir())

    def status(self) -> dict[str, object]:
        """``control/status``."""
        document: dict[str, object] = json.loads((self.control / "status").read_bytes())
        return document

    def fetch(self, *image_ids: str) -> None:
        """Queue images, and wait until all are cached."""
        for image_id in image_ids:
            self.touch(f"queue/{image_id}")
        self.wait_listed("cached", *image_ids)

    def wait_listed(self, name: str, *image_ids: str, timeout: float = 20.0) -> None:
        """Wait until a directory of ``control/`` lists the images."""
        wait_for(
            lambda: set(image_ids) <= set(self.listed(name)),
            f"{', '.join(image_ids)} in {name}/",
            timeout,
        )

    def kept(self) -> dict[str, int]:
        """Every image, queued ID and failure in the cache directory, with its size on the disk."""
        return {
            str(path.relative_to(self.cache_dir)): path.stat().st_size
            for path in sorted(self.cache_dir.rglob("*"))
            if path.is_file()
            and not path.name.startswith("cache.db")
            and ".cachefs" not in path.relative_to(self.cache_dir).parts
        }


class Tool:
    """A program under way."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        # A reader that hangs in the kernel ends with its mount, which is the next to be cleaned up.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.communicate(timeout=2)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(timeout)


@contextmanager
def mounted(
    home: Path,
    *,
    driver: str = "sqlite",
    source: str = DIRECTORY,
    options: Sequence[str] = (),
    images: Images | None = None,
    program: Sequence[str] = CACHEFS,
    running: bool = True,
    patience: float | None = 50.0,
    **served: object,
) -> Iterator[Mounted]:
    """A mount below *home*, of *images* in a directory (a fresh one), which *source* says how to
    reach: as it is, through nginx (which takes *served*), or through some other server by its URL.
    After *patience* seconds the connection is aborted.
    """
    home.mkdir(parents=True, exist_ok=True)
    images = images or Images(home / "origin")
    with ExitStack() as stack:
        url = str(images.directory) if source == DIRECTORY else source
        server = None
        if source == NGINX:
            server = stack.enter_context(nginx(images.directory, **served))  # type: ignore[arg-type]
            url = server.url
        mount = Mounted(home, url, driver=driver, options=options, program=program)
        mount.origin = images
        if server is not None:
            mount.server = server
        failed = True
        try:
            with mount.watched(patience) if patience else contextlib.nullcontext():
                if running:
                    mount.start()
                yield mount
            failed = False
        finally:
            troubles = mount.clean_up()
            if failed:
                sys.stdout.write(f"the daemon's log ends:\n{mount.tail()}\n")  # pytest shows it
        assert not troubles, "; ".join(troubles)
        mount.check_log()

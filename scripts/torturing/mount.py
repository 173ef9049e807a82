"""One mount of cachefs in child processes, and what a user does with it, each with a limit.

Owns the daemon's processes, from ``cachefs mount --foreground`` on, and their end. The harness
never touches a mount outside :meth:`Mount.limited`; a request that hangs aborts the connection,
which frees all that wait for it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cachefs.kernel import mountinfo
from tests.support.processes import Done
from torturing.kind import Combo
from torturing.patience import HANG, HangError, limited, run, until
from torturing.processes import MARK, kill, marked

T = TypeVar("T")

START = 40.0
"""Seconds that a mount may take to answer."""


class StartError(Exception):
    """The mount did not come up; the message is the end of the daemon's log."""


class Mount:
    """A mount of *url* below *home*, running or not. *control* is where fusectl is mounted."""

    def __init__(
        self,
        home: Path,
        url: str,
        combo: Combo,
        fusectl: Path,
        *,
        cache_dir: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.url = url
        self.combo = combo
        self.options = list(options)
        self.mountpoint = home / "mnt"
        self.cache_dir = cache_dir or home / "cache"
        self.log = home / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.aborted = 0
        self._fusectl = fusectl
        self.mountpoint.mkdir(exist_ok=True)
        self.log.touch()

    # The daemon

    def command(self, *options: str) -> list[str]:
        """The words that mount."""
        words = [sys.executable, "-m", "cachefs", "mount", self.url, str(self.mountpoint)]
        words += ["--cache-dir", str(self.cache_dir), "--driver", self.combo.driver]
        words += ["--transport", self.combo.transport, "--min-free", "0", "--foreground"]
        return [*words, *self.options, *options]

    def start(
        self, *options: str, prefix: Sequence[str] = (), seconds: float = START, wait: bool = True
    ) -> None:
        """Mount, and return once ``control/status`` answers. *prefix* are words before the command,
        a tracer say. Raises StartError."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *self.command(*options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8", MARK: str(self.home)},
            )
        if not wait:
            return
        deadline = time.monotonic() + seconds
        while not self.answers():
            if self.process.poll() is not None:
                status, self.process = self.process.returncode, None
                raise StartError(f"the mount ended with {status}: {self.tail()}")
            if time.monotonic() > deadline:
                raise StartError(f"the mount did not answer within {seconds:g} s: {self.tail()}")
            time.sleep(0.03)

    def answers(self, seconds: float = HANG) -> bool:
        """Whether it is mounted and ``control/status`` can be read."""
        if not mountinfo.is_mounted(self.mountpoint):
            return False
        try:
            return bool(self.status(seconds))
        except (OSError, ValueError):
            return False

    def stop(self, seconds: float = 25.0) -> None:
        """SIGTERM, as an administrator would. Raises HangError where it does not end, after having
        ended it by force."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.abort()
            self.destroy()
            raise HangError(f"the daemon did not end on SIGTERM within {seconds:g} s") from None
        if not until(lambda: not mountinfo.is_mounted(self.mountpoint), 2):
            self.destroy()
            raise HangError("it stayed mounted after its daemon")

    def kill_all(self) -> None:
        """Kill every process of the mount, with SIGKILL."""
        for pid in self.pids():
            kill(pid)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self.process = None

    def destroy(self) -> None:
        """Take everything away, whatever state it is in."""
        if mountinfo.is_mounted(self.mountpoint):
            self.abort()
        self.kill_all()
        for _ in range(8):
            if not mountinfo.is_mounted(self.mountpoint):
                break
            with contextlib.suppress(HangError):
                run(["umount", "-l", self.mountpoint], 10, check=False)

    def abort(self) -> None:
        """Fail every request under way and to come."""
        number = mountinfo.mount_device(self.mountpoint)
        if number is None:
            return
        self.aborted += 1
        with contextlib.suppress(OSError):
            (self._fusectl / number.partition(":")[2] / "abort").write_text("1")

    def pids(self) -> list[int]:
        """The daemon's processes that are alive, the supervisor first."""
        return marked(self.home)

    def worker(self, seconds: float = HANG) -> int:
        """The process that answers requests."""
        return int(self.status(seconds)["worker"]["pid"])

    def supervisor(self, seconds: float = HANG) -> int:
        """The process that holds the mount; 0 where there is none."""
        return int(self.status(seconds)["worker"].get("supervisor") or 0)

    def tail(self) -> str:
        """The end of the log, in one line."""
        text = self.log.read_text(errors="replace")[-700:]
        return " / ".join(text.strip().splitlines()[-5:])

    # What users do

    def limited(self, call: Callable[[], T], what: str, seconds: float = HANG) -> T:
        """What *call*, which uses the mount, gives. Raises HangError."""
        return limited(call, f"{self.combo} {what}", seconds, self.abort)

    def status(self, seconds: float = HANG) -> dict[str, Any]:
        """``control/status``."""
        text = self.show("status", seconds)
        document: dict[str, Any] = json.loads(text)
        return document

    def show(self, name: str, seconds: float = HANG) -> str:
        """``cat control/NAME``."""
        path = self.mountpoint / "control" / name
        return self.limited(path.read_bytes, f"cat control/{name}", seconds).decode()

    def write(self, name: str, text: str, seconds: float = HANG) -> None:
        """Write a line to a control file at once, as echo(1) does."""
        path = self.mountpoint / "control" / name

        def call() -> None:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(fd, f"{text}\n".encode())
            finally:
                os.close(fd)

        self.limited(call, f"echo {text} > control/{name}", seconds)

    def touch(self, name: str, seconds: float = HANG) -> None:
        """``touch control/NAME``."""
        path = self.mountpoint / "control" / name
        flags = os.O_CREAT | os.O_WRONLY
        self.limited(
            lambda: os.close(os.open(path, flags, 0o644)), f"touch control/{name}", seconds
        )

    def remove(self, name: str, seconds: float = HANG) -> None:
        """``rm control/NAME``."""
        path = self.mountpoint / "control" / name
        self.limited(path.unlink, f"rm control/{name}", seconds)

    def listed(self, name: str = "images", seconds: float = HANG) -> list[str]:
        """What ``ls`` shows of ``images`` or a directory of ``control/``."""
        path = self.mountpoint / ("images" if name == "images" else f"control/{name}")
        return sorted(self.limited(lambda: os.listdir(path), f"ls {name}", seconds))  # noqa: PTH208 - names

    def image(self, image_id: str) -> Path:
        """Where an image is read."""
        return self.mountpoint / "images" / image_id

    def read(self, image_id: str, seconds: float = HANG) -> bytes:
        """``cat images/ID``."""
        return self.limited(self.image(image_id).read_bytes, f"cat images/{image_id}", seconds)

    def fetch(self, *image_ids: str, seconds: float = HANG) -> None:
        """Queue images and wait until each is cached. Raises HangError."""
        for image_id in image_ids:
            with contextlib.suppress(FileExistsError):
                self.touch(f"queue/{image_id}")
        wanted = set(image_ids)
        if not until(lambda: wanted <= set(self.listed("cached")), seconds):
            left = ", ".join(sorted(wanted - set(self.listed("cached"))))
            raise HangError(f"{self.combo} {left}: not cached within {seconds:g} s")

    def settle(self, seconds: float = HANG) -> bool:
        """Whether nothing is queued or fetched any more, within *seconds*."""
        return until(lambda: not self.listed("queue") and not self.listed("incomplete"), seconds)

    def cli(self, *words: str, seconds: float = HANG, check: bool = False) -> Done:
        """A cachefs command on this mount."""
        name, *rest = words
        command = [sys.executable, "-m", "cachefs", name, "--mount", str(self.mountpoint), *rest]
        return run(command, seconds, check=check)

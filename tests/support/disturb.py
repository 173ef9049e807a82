"""What must not disturb a reader, done over and over beside it: the worker killed, images evicted.

Owns the thread that does it, and what it has counted. ``CACHEFS_ENDURANCE`` (seconds) is how long
such a test goes on; without it, a few seconds, as a CI run can bear.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from .cachefs_mount import Mounted
from .processes import wait_for

SECONDS = float(os.environ.get("CACHEFS_ENDURANCE", "6"))
"""How long disturbed readers read."""

PATIENCE = SECONDS + 30
"""Seconds after which a test that hangs in the kernel is ended by aborting its connection."""

LONG = SECONDS > 30
"""Whether this is the long run, and counts may be large, too."""

SETTLED = 0.4
"""Seconds between a worker's start and its death, after which the supervisor sees no row of deaths:
it would pause longer each time, and give up after 20."""

KILLED = "died of SIGKILL"


class Disturbance:
    """Every *interval* seconds, for as long as the block runs: kill -9 of the worker, if it serves
    (again); and the eviction of the next one of *evict*, fetched anew by *refetch*."""

    def __init__(
        self,
        mount: Mounted,
        *,
        evict: Sequence[str] = (),
        interval: float = 1.0,
        kill: bool = True,
        refetch: bool = True,
    ) -> None:
        self._mount = mount
        self._evict = list(evict)
        self._interval = interval
        self._kill = kill
        self._refetch = refetch
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.kills = self.evictions = 0
        self.longest = 0.0
        """The longest time, in seconds, that the mount took to answer after a kill."""

    def __enter__(self) -> Self:
        if self._kill:
            self._mount.expect(KILLED)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the mount does not answer"
        if exc[0] is None and self._error is not None:
            raise self._error
        print(  # noqa: T201 - figures of the long run, shown by pytest -s
            f"{self.kills} kills, {self.evictions} evictions, longest {self.longest:.2f} s"
        )

    def _run(self) -> None:
        try:
            while not self._over.wait(self._interval):
                if self._kill:
                    self.longest = max(self.longest, kill_worker(self._mount))
                    self.kills += 1
                self._evict_next()
        except BaseException as error:  # noqa: BLE001 - raised in __exit__
            self._error = error

    def _evict_next(self) -> None:
        for _ in self._evict:
            name = self._evict.pop(0)
            self._evict.append(name)
            if evict(self._mount, name):
                self.evictions += 1
                if self._refetch:
                    queue(self._mount, name)
                return


def kill_worker(mount: Mounted) -> float:
    """``kill -9`` of the worker; seconds until the next one answers."""
    pid = mount.worker()
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: mount.worker() != pid, "another worker")
    return time.monotonic() - began


def evict(mount: Mounted, name: str) -> bool:
    """Whether there was such an image to evict."""
    try:
        (mount.control / "cached" / name).unlink()
    except FileNotFoundError:
        return False
    return True


def queue(mount: Mounted, name: str) -> None:
    """Have it fetched, if it is not being fetched already."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(mount.control / "queue" / name, os.O_CREAT | os.O_WRONLY, 0o644))


def supervisor(mount: Mounted) -> int:
    """The pid of the process that holds the mount."""
    worker = mount.status()["worker"]
    assert isinstance(worker, dict)
    return int(worker["supervisor"])


def descriptors(pid: int) -> list[str]:
    """What the process has open, sorted."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except FileNotFoundError:
            continue
    return sorted(found)


def settled(measure: Callable[[], object], expected: object, what: str) -> None:
    """Wait until *measure* gives *expected*; what it gave instead is shown."""
    try:
        wait_for(lambda: measure() == expected, what, 10)
    except AssertionError:
        found = measure()
        assert found == expected, f"{what}: {found}, not {expected}"

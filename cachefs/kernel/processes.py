"""What the kernel says of a process: proc(5).

Owns the parsing, and nothing of what a process may mean to whom. Every look can be at another
process by the same number; :class:`Handle` tells whether it was.
"""

import os
import re
import select
import signal
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cachefs.kernel.device import DEVICE

UNKNOWN: Final = -1
"""A connection whose number the kernel does not tell (fdinfo has it since Linux 6.17)."""

_CONNECTION = re.compile(r"^fuse_connection:\s*(\d+)$", re.MULTILINE)
_MOUNT_ID = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)
_PARENT = re.compile(r"^PPid:\s*(\d+)$", re.MULTILINE)
_USERS = re.compile(r"^Uid:\s*(\d+)\s+(\d+)\s+(\d+)", re.MULTILINE)


class Handle:
    """One process, which keeps its meaning when the number becomes another's (pidfd_open(2)).

    Raises :class:`ProcessLookupError` where there is none, or none that this process sees. What was
    read of ``/proc/PID`` between making this and a true :attr:`is_alive` is this process's."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.fd = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.wait(0.0)

    def wait(self, seconds: float) -> bool:
        """Wait so long for its end; whether it has ended."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(max(0.0, seconds) * 1000))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal. Raises OSError as kill(2)."""
        signal.pidfd_send_signal(self.fd, number)


def parent(pid: int) -> int:
    """The parent's number. Raises OSError where the process is not to be seen."""
    found = _PARENT.search(_status(pid))
    return int(found[1]) if found else 0


def users(pid: int) -> frozenset[int]:
    """Its real, effective and saved user. Raises OSError where the process is not to be seen."""
    found = _USERS.search(_status(pid))
    return frozenset(map(int, found.groups())) if found else frozenset()


def arguments(pid: int) -> list[str]:
    """Its argument vector; empty for a zombie. Raises OSError where it is not to be seen."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return [os.fsdecode(word) for word in words[:-1]]


def fuse_connections(pid: int) -> set[int]:
    """The FUSE connections that it holds a device of, by the numbers in
    ``/sys/fs/fuse/connections``; :data:`UNKNOWN` where the kernel does not tell. Raises OSError
    where its descriptors are not ours to see."""
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        number = _CONNECTION.search(_text(f"/proc/{pid}/fdinfo/{link.name}"))
        if number is not None:
            found.add(int(number[1]))
        elif _target(str(link)) == DEVICE:
            found.add(UNKNOWN)
    return found


def uses(pid: int, mount_id: int, mountpoint: Path) -> bool:
    """Whether it keeps a mount busy: by an open file, its working or root directory, or a file that
    it has mapped. Looks at no file of the mount, whose daemon may hang; False where the process is
    not ours to see."""
    place = f"/proc/{pid}"
    for link in ("cwd", "root"):
        target = _target(f"{place}/{link}")
        if target is not None and _below(target, mountpoint):
            return True
    for name in _names(f"{place}/fdinfo"):
        number = _MOUNT_ID.search(_text(f"{place}/fdinfo/{name}"))
        if number is not None and int(number[1]) == mount_id:
            return True
    return any(
        _below(line.split(maxsplit=5)[-1], mountpoint)
        for line in _text(f"{place}/maps").splitlines()
        if "/" in line
    )


def name_of(pid: int) -> str:
    """Its short name; empty where it has ended."""
    return _text(f"/proc/{pid}/comm").strip()


def all_processes() -> list[int]:
    """Every process that is to be seen, but this one."""
    return [int(name) for name in _names("/proc") if name.isdigit() and int(name) != os.getpid()]


def _below(path: str, mountpoint: Path) -> bool:
    return Path(path).is_relative_to(mountpoint)


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text("utf-8", "replace")


def _text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "surrogateescape")
    except OSError:
        return ""  # it has ended, or is not ours to see


def _target(path: str) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - Path.readlink would take ` (deleted)` apart
    except OSError:
        return None


def _names(path: str) -> list[str]:
    try:
        return [entry.name for entry in Path(path).iterdir()]
    except OSError:
        return []

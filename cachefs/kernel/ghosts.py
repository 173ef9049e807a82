"""Processes that were killed and cannot end, and the locks that they keep.

A thread that waits in the kernel for a disk, a network filesystem or a FUSE daemon ends when that
answers, and not when it is killed; until then the process keeps all that it has open, locks
included. It runs no code of its own again: SIGKILL is pending and is seen before the next
instruction outside of the kernel; the one system call that it is in may still be finished.

Owns that judgement and how the holder of a lock is found (``/proc/TID/fdinfo``, ``/proc/locks``;
proc(5)); no policy: what is done about such a lock is :mod:`cachefs.cache.lock`'s.
"""

import functools
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_LOCKS: Final = Path("/proc/locks")
_STATE = re.compile(r"^State:\s+(\S)", re.MULTILINE)
_PENDING = re.compile(r"^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$", re.MULTILINE)
_KILL: Final = 1 << (signal.SIGKILL - 1)


def is_ghost(pid: int) -> bool:
    """Whether no thread of the process runs any code of its own again: each is dead, or was killed
    and waits in the kernel. False for one that is not to be seen."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return bool(tasks) and all(_is_lost(task) for task in tasks)
    except OSError:
        return False


def held_by_ghosts(fd: int) -> bool:
    """Whether some process has an flock or an OFD lock on the file of *fd* through a description
    that only ghosts have, so that no living process has it. What this process may not see is taken
    not to be there: a description is not shared between users."""
    ghosts = _ghosts(int(time.monotonic()))
    if not ghosts:
        return False
    inode = os.fstat(fd).st_ino
    if not any(_has_lock(pid, inode) for pid in ghosts):
        return False
    return not any(_has_lock(pid, inode) for pid in _processes() if not is_ghost(pid))


def lock_holder(path: str | os.PathLike[str]) -> tuple[int, str] | None:
    """The process that has an flock on the file, by number and name, or None where that is not to
    be found out. For words in a log: it may be another by now."""
    try:
        inode = Path(path).stat().st_ino
        lines = _LOCKS.read_text("ascii", "replace").splitlines()
        for line in lines:
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
                pid = int(words[4])
                return pid, Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except (OSError, ValueError):
        pass
    return None


def _is_lost(task: Path) -> bool:
    status = (task / "status").read_text("ascii", "replace")
    state = _STATE.search(status)
    if state is None or state[1] in "ZX":
        return state is not None
    return state[1] == "D" and any(int(mask, 16) & _KILL for mask in _PENDING.findall(status))


@functools.lru_cache(maxsize=1)
def _ghosts(_second: int) -> list[int]:
    """Looked for at most once a second: most of the time there are none."""
    return [pid for pid in _processes() if _may_be_ghost(pid) and is_ghost(pid)]


def _may_be_ghost(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "ZXD"


def _processes() -> Iterator[int]:
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())


def _has_lock(pid: int, inode: int) -> bool:
    """Whether one of the process's descriptors is of a description with a lock on the inode. Its
    files are not looked at themselves: they may be on a mount that hangs."""
    pattern = re.compile(rf"^lock:.*\b(?:FLOCK|OFDLCK)\b.*:{inode}\s", re.MULTILINE)
    for task in _entries(Path(f"/proc/{pid}/task")):
        # Threads share the table, but a dead one, as the first may be, has none.
        if descriptors := _entries(task / "fdinfo"):
            return any(pattern.search(_text(each)) for each in descriptors)
    return False


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""

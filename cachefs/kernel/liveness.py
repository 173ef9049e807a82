"""Looks at a mount that may hang: a process of its own does it, and is given up in time.

A thread that waits for a daemon in the kernel cannot be given up, and keeps its process from
ending. Owns those looks; knows nothing of what is looked for.
"""

import subprocess
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

SECONDS: Final = 2.0
"""How long a living daemon may take to answer."""


class Liveness(Enum):
    """What a mount answers to statvfs(3), which the kernel never answers from memory."""

    ANSWERS = "answers"
    DEAD = "its daemon is gone"
    HANGS = "does not answer"
    FAILS = "fails"


def look(mountpoint: Path, seconds: float = SECONDS) -> Liveness:
    """How the mount at *mountpoint* is."""
    status, _, error = _run(["stat", "--file-system", "--", str(mountpoint)], seconds)
    if status is None:
        return Liveness.HANGS
    if status == 0:
        return Liveness.ANSWERS
    dead = any(each in error for each in (b"not connected", b"abort", b"refused"))
    return Liveness.DEAD if dead else Liveness.FAILS


def read(path: Path, seconds: float = SECONDS) -> bytes | None:
    """What the file holds, or None where it cannot be read in time."""
    status, content, _ = _run(["cat", "--", str(path)], seconds)
    return content if status == 0 else None


def _run(command: list[str], seconds: float) -> tuple[int | None, bytes, bytes]:
    """The exit status, or None where it did not end in time, and both outputs."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
    )
    try:
        content, error = process.communicate(timeout=seconds)
        return process.returncode, content, error
    except subprocess.TimeoutExpired:
        process.kill()
        # Not waited for without a limit: it may be stuck for as long as the mount is.
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
        return None, b"", b""

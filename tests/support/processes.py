"""Programs with time limits, and bounded waiting.

A program that hangs in the kernel cannot be waited for, not even after SIGKILL; nothing here does.
"""

import contextlib
import errno
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PATIENCE = 20.0
"""Seconds that a program may take, unless a test knows better."""

_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """Its standard output."""
        return self.stdout.decode()


def start(*command: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """Start a program that speaks English, without input."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def run(*command: str, timeout: float = PATIENCE, check: bool = True) -> Done:
    """Run a program to its end. AssertionError when it takes longer, or fails and *check* is
    set."""
    process = start(*command)
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=2)
        raise AssertionError(f"{command} did not end within {timeout} s") from None
    done = Done(process.returncode, stdout, stderr.decode(errors="replace"))
    assert not check or done.status == 0, f"{command} ended with {done.status}: {done.stderr}"
    return done


def wait_for(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
    """Return once *condition* holds; AssertionError naming *what* when it does not in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(_POLL)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended, and that nobody waited for, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def failure(call: Callable[..., object], *arguments: object) -> str:
    """The name of the errno with which a system call fails; ``""`` if it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""

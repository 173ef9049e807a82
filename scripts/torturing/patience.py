"""Waiting, always with a limit: what takes longer is a hang, and a hang is an error.

Owns threads that are left behind where they hang in the kernel, and programs that are ended. Knows
nothing of mounts but that one may have to be aborted to free who waits for it.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.support.processes import Done

T = TypeVar("T")

HANG = 45.0
"""Seconds after which a request that has no answer hangs: more than a supervisor takes to see that
a worker is silent, and to start the next one."""


class HangError(Exception):
    """Something did not answer in time."""


def limited(
    call: Callable[[], T], what: str, seconds: float = HANG, free: Callable[[], None] | None = None
) -> T:
    """What *call* gives, or raises; in a thread. Raises HangError naming *what* after *seconds*;
    *free* is called then, to let the thread end."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        if free is not None:
            free()
        raise HangError(f"{what}: no answer within {seconds:g} s")
    if errors:
        raise errors[0]
    return results[0]


def until(condition: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Whether *condition* came true within *seconds*. The condition itself must not hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def run(
    command: Sequence[str | os.PathLike[str]],
    seconds: float = HANG,
    *,
    check: bool = True,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Done:
    """Run a program to its end. Raises HangError, and RuntimeError where it fails and *check* is
    set."""
    words = [os.fspath(word) for word in command]
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        cwd=cwd,
    )
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise HangError(f"{' '.join(words)}: did not end within {seconds:g} s") from None
    done = Done(process.returncode, stdout, stderr.decode(errors="replace"))
    if check and done.status != 0:
        raise RuntimeError(f"{' '.join(words)} ended with {done.status}: {done.stderr.strip()}")
    return done

"""Dying at a chosen step: every change that a cache makes to the disk is a step, and the process is
killed right before the one asked for. Without one, the steps are written down."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from cachefs.drivers.sqlite import SqliteDriver
from cachefs.drivers.xattr import XattrDriver

STEPS = [
    (os, "fsync"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (os, "setxattr"),
    (Path, "rename"),
    (Path, "unlink"),
    *[(driver, name) for driver in (SqliteDriver, XattrDriver) for name in ("put", "remove")],
]


def die_before(step: int | None) -> list[tuple[str, str]]:
    """From now on count the steps, and die before number *step*. The steps taken, as names with
    what they act upon."""
    taken: list[tuple[str, str]] = []

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(first: object, *rest: object, **options: object) -> object:
            if len(taken) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            path = Path(f"/proc/self/fd/{first}").readlink() if isinstance(first, int) else first
            taken.append((name, str(path)))
            return call(first, *rest, **options)

        return wrapper

    for owner, name in STEPS:
        setattr(owner, name, counted(name, getattr(owner, name)))
    return taken

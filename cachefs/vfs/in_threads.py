"""Asking the cache in the event loop, and in a thread where it would have to wait.

Owns the limiters of those threads: many readers of an index that is locked must not keep the
threads from all else, nor those who wait for a whole file to be compared keep look-ups from the
index. Knows nothing of what is asked."""

import threading
from collections.abc import Callable
from typing import TypeVar

import trio

from cachefs.errors import IndexBusyError
from cachefs.vfs.waiting import unless_interrupted

T = TypeVar("T")

MAX_WAITING = 16
"""Questions that may wait for the index at once, and as many opens that have a file checked."""

_INDEX: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("index")
_FILES: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("files")


async def at_once_or(quick: Callable[[], T], waiting: Callable[[], T]) -> T:
    """What *quick* gives, or what *waiting* gives in a thread, where *quick* raises IndexBusyError.
    Cancellation takes effect only once the thread has its answer, which may hold a descriptor."""
    try:
        return quick()
    except IndexBusyError:
        return await in_thread(waiting)


async def in_thread(waiting: Callable[[], T]) -> T:
    """What *waiting* gives in a thread; see :func:`at_once_or`."""
    return await trio.to_thread.run_sync(waiting, limiter=_limiter(_INDEX))


async def open_in_thread(
    open_it: Callable[[], T], close: Callable[[T], None], *, pid: int = 0
) -> T:
    """What *open_it* opens in a thread. Cancellation ends the waiting at once, and so does a signal
    to the process *pid* (:func:`unless_interrupted`): what is opened all the same is given to
    *close*, in that thread."""
    guard = threading.Lock()
    given_up, opened = False, False
    result: list[T] = []

    def work() -> None:
        nonlocal opened
        found = open_it()
        with guard:
            if not given_up:
                opened = True
                result.append(found)
        if not opened:
            close(found)

    try:
        await unless_interrupted(
            pid,
            lambda: trio.to_thread.run_sync(work, limiter=_limiter(_FILES), abandon_on_cancel=True),
        )
    except BaseException:  # cancelled or interrupted, perhaps when it was open already
        with guard:
            given_up = True
        for found in result:
            close(found)
        raise
    return result[0]


def _limiter(var: trio.lowlevel.RunVar[trio.CapacityLimiter]) -> trio.CapacityLimiter:
    try:
        limiter = var.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAX_WAITING)
        var.set(limiter)
    return limiter

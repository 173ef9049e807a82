"""Letting go of a wait when its caller has been interrupted, on the plain transport.

The kernel tells of it with FUSE_INTERRUPT, which libfuse notes and pyfuse3 does not pass on. So a
wait looks from time to time whether its caller is to be let go (:mod:`cachefs.kernel.signals`), or
has gone: the relay answers an interrupt by itself, and the caller need not outlive that. Where the
caller is not to be seen (another PID namespace) the wait just goes on."""

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from cachefs.errors import InterruptedReadError
from cachefs.kernel.signals import process_wants_to_end

POLL = 0.1
"""Seconds between two looks: no person sees the difference, and a look takes 50 microseconds."""

_MOST_LOOKS = 1000

T = TypeVar("T")


class _Looks:
    """What the looks at processes found just now: hundreds of threads of one may wait at once, and
    a look takes as long as it has threads."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[float, bool]] = {}

    def wants_to_end(self, pid: int) -> bool:
        """As :func:`process_wants_to_end`, :data:`POLL` late at most."""
        now = time.monotonic()  # of all event loops alike
        when, found = self._found.get(pid, (-POLL, False))
        if now - when < POLL:
            return found
        if len(self._found) > _MOST_LOOKS:
            self._found.clear()
        found = process_wants_to_end(pid)
        self._found[pid] = now, found
        return found


_looks = _Looks()


async def unless_interrupted(pid: int, wait: Callable[[], Awaitable[T]]) -> T:
    """Await ``wait()``; raises InterruptedReadError as soon as the process *pid* has a signal to
    take, or has ended, and cancels the wait. With a *pid* of 0 it is only awaited."""
    if pid <= 0:
        return await wait()
    result: list[T] = []
    interrupted = False

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        seen = _is_there(pid)
        while True:
            await trio.sleep(POLL)
            if _looks.wants_to_end(pid) or (seen and not _is_there(pid)):
                interrupted = True
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        try:
            result.append(await wait())
        except Exception as error:  # noqa: BLE001 - carried out of the nursery without a group
            failure: Exception | None = error
        else:
            failure = None
        nursery.cancel_scope.cancel()
    if result:
        return result[0]
    if interrupted:
        raise InterruptedReadError(f"process {pid} was interrupted")
    assert failure is not None
    raise failure


def _is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

"""Letting go when whoever waits has been interrupted.

The kernel tells of it with FUSE_INTERRUPT, which libfuse notes and pyfuse3 does not pass on; and
once a request is with the daemon, even SIGKILL waits for its answer (``request_wait_answer`` in
``fs/fuse/dev.c``). So a wait looks from time to time whether its caller's threads have a signal
pending that they neither block nor ignore (proc_pid_status(5)). Where the caller is not to be seen
(another PID namespace) the wait just goes on."""

import contextlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio

from cachefs.errors import InterruptedReadError

POLL = 0.1
"""Seconds between two looks: no person sees the difference, and a look takes 50 microseconds."""

T = TypeVar("T")


async def unless_interrupted(pid: int, wait: Callable[[], Awaitable[T]]) -> T:
    """Await ``wait()``; raises InterruptedReadError as soon as the process *pid* has a signal to
    take, or is gone, and cancels the wait."""
    if pid <= 0:  # nobody to be seen
        return await wait()
    result: list[T] = []
    interrupted = False

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        while True:
            await trio.sleep(POLL)
            if has_signal(pid):
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


def has_signal(pid: int) -> bool:
    """Whether any thread of the process has a signal pending that should end its wait."""
    if pid <= 0:
        return False
    statuses = []
    with contextlib.suppress(OSError):
        statuses = [thread / "status" for thread in Path(f"/proc/{pid}/task").iterdir()]
    return any(_is_signalled(status) for status in statuses)


def _mask(*signals: signal.Signals) -> int:
    return sum(1 << (number - 1) for number in signals)


_ENDING = _mask(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that end a wait even where the process catches them: somebody wants it to stop."""

_HARMLESS = _mask(
    signal.SIGCHLD,
    signal.SIGCONT,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGSTOP,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)
"""Signals whose default is not to end the process (signal(7)); a read must not fail for them."""


def _is_signalled(status: Path) -> bool:
    masks = {}
    with contextlib.suppress(OSError):
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt"):
                masks[name] = int(value, 16)
    if len(masks) < 5:
        return False
    pending = (masks["SigPnd"] | masks["ShdPnd"]) & ~masks["SigBlk"] & ~masks["SigIgn"]
    return bool(pending & (_ENDING | ~(masks["SigCgt"] | _HARMLESS)))

"""Whether a process that waits for an answer is to be let go, by the signals that it has pending.

A request that the daemon has is given up by the daemon alone: even SIGKILL waits for its
answer (``request_wait_answer`` in ``fs/fuse/dev.c``). The kernel sends FUSE_INTERRUPT for any
signal that wakes the caller, once for a request: also for a SIGTSTP, a Go runtime's SIGURG or
qemu's timers, after which a read of an ordinary file goes on and never says EINTR. So a wait is
ended for a signal that kills, or that is caught and asks to end. What a task has pending is in
``/proc/TID/status`` (proc_pid_status(5)); a signal that kills stands there as SIGKILL for every
thread (``complete_signal``), but for those that dump core.

Owns that judgement, and reading ``/proc`` for it; knows nothing of messages.
"""

import contextlib
import re
import signal
from pathlib import Path
from typing import Final

_MASK = re.compile(r"^(SigPnd|ShdPnd|SigBlk|SigIgn|SigCgt):\s*([0-9a-f]+)$", re.MULTILINE)


def _mask(*signals: signal.Signals) -> int:
    return sum(1 << (number - 1) for number in signals)


_ENDING: Final = _mask(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals that end a wait even where the process catches them: they ask it to stop."""

_HARMLESS: Final = _mask(
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


def task_wants_to_end(tid: int) -> bool:
    """Whether the task (an id as the kernel puts it in ``fuse_in_header.pid``) is about to end or
    to handle a signal that asks it to. True for a task that is gone; False for 0, which is a task
    of another pid namespace, of which nothing can be known."""
    if tid == 0:
        return False
    try:
        status = Path(f"/proc/{tid}/status").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status_wants_to_end(status)


def process_wants_to_end(pid: int) -> bool:
    """Whether any thread of the process is: for a transport that is not told of interrupts. False
    where the process is not to be seen."""
    statuses: list[Path] = []
    if pid > 0:
        with contextlib.suppress(OSError):
            statuses = [thread / "status" for thread in Path(f"/proc/{pid}/task").iterdir()]
    for status in statuses:
        with contextlib.suppress(OSError):
            if status_wants_to_end(status.read_text("ascii", "replace")):
                return True
    return False


def status_wants_to_end(status: str) -> bool:
    """The judgement, from the text of ``/proc/TID/status``."""
    masks = {name: int(value, 16) for name, value in _MASK.findall(status)}
    own, shared = masks.get("SigPnd", 0), masks.get("ShdPnd", 0)
    if (own | shared) & _mask(signal.SIGKILL):
        return True
    deliverable = (own | shared) & ~masks.get("SigBlk", 0) & ~masks.get("SigIgn", 0)
    return bool(deliverable & (_ENDING | ~(masks.get("SigCgt", 0) | _HARMLESS)))

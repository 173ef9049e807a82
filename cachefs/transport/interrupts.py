"""Whether a process whose request is interrupted wants to end.

The kernel sends FUSE_INTERRUPT for any signal that wakes the caller, once for a request: also for a
SIGTSTP, a Go runtime's SIGURG or qemu's timers, after which a read of an ordinary file goes on and
never says EINTR. So EINTR is given only to callers that are being killed or that catch a signal
which asks to end. What a task has pending is in ``/proc/TID/status`` (proc(5)); a fatal signal
stands there as SIGKILL for every thread (``complete_signal``).

Owns that policy only; knows nothing of messages.
"""

import re
import signal
from pathlib import Path
from typing import Final

_MASK = re.compile(r"^(SigPnd|ShdPnd|SigBlk|SigCgt):\s*([0-9a-f]+)$", re.MULTILINE)
_KILL: Final = 1 << (signal.SIGKILL - 1)
_END: Final = sum(
    1 << (number - 1) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
)


def wants_to_end(tid: int) -> bool:
    """Whether the task (an id as the kernel puts it in ``fuse_in_header.pid``) is about to end or
    to handle a signal that asks it to. True for a task that is gone; False for 0, which is a task
    of another pid namespace, of whom nothing can be known."""
    if tid == 0:
        return False
    try:
        status = Path(f"/proc/{tid}/status").read_text("ascii", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status_wants_to_end(status)


def status_wants_to_end(status: str) -> bool:
    """The same, from the text of ``/proc/TID/status``."""
    masks = {name: int(value, 16) for name, value in _MASK.findall(status)}
    own, shared = masks.get("SigPnd", 0), masks.get("ShdPnd", 0)
    if (own | shared) & _KILL:
        return True
    deliverable = (own | shared) & ~masks.get("SigBlk", 0)
    return bool(deliverable & masks.get("SigCgt", 0) & _END)

"""Which processes are of a run: each carries the directory that it belongs to in its environment,
however far it has been forked away.
"""

import contextlib
import os
import signal
from pathlib import Path

from tests.support.processes import is_alive

MARK = "TORTURE_HOME"


def marked(home: Path) -> list[int]:
    """The living processes, oldest number first, that belong to *home* or to what is below it."""
    wanted = f"\0{MARK}={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = b"\0" + (entry / "environ").read_bytes()
            _, mark, rest = environment.partition(wanted)
            if mark and rest[:1] in (b"", b"\0", b"/") and is_alive(int(entry.name)):
                found.append(int(entry.name))
    return sorted(found)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal; nothing where the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def leftovers() -> list[str]:
    """The processes beside this one, in a PID namespace of its own, that have not ended: a zombie
    has, unless a thread of it is stuck in the kernel."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            ended = not is_alive(int(entry.name))
            if not ended or len(list((entry / "task").iterdir())) > 1:
                found.append(describe(int(entry.name)))
    return found


def describe(pid: int) -> str:
    """Its number, state and command, for a report."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return f"{pid} (ended)"
    return f"{pid} {state} {b' '.join(words).decode(errors='replace')[:120]}"

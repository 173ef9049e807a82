"""A process that was killed and cannot end: it waits for an answer that a FUSE server does not
give."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cachefs.kernel.wire import Opcode
from tests.support.rawfuse import path, raw_server

from .place import Place
from .processes import is_alive, wait_for


def is_stuck(pid: int) -> bool:
    """Whether the process waits in the kernel and no signal wakes it."""
    stat = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    return stat.rpartition(")")[2].split()[0] == "D"


@contextmanager
def ghost(place: Place, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of *place* that has run *code* and was then killed in a system call that lasts as
    long as the block. It has what it had until then, and no more after the block."""
    with raw_server() as server:
        process = place.start(f"{code}\nos.stat({path(server, 'never')!r})")
        try:
            server.next(Opcode.LOOKUP, timeout=20)
            process.send_signal(signal.SIGKILL)
            wait_for(lambda: is_stuck(process.pid), "the process to be stuck")
            yield process
            assert process.poll() is None, "it has ended all the same"
        finally:
            process.kill()
            server.close()
            process.communicate(timeout=20)
    assert not is_alive(process.pid)


@contextmanager
def stopped(place: Place, code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of *place* that has run *code* and was stopped: it may go on at any time."""
    process = place.start(f"{code}\nprint('done', flush=True)\nsys.stdin.readline()")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        os.kill(process.pid, signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)

"""A worker process, as its supervisor sees it.

Owns how it is started, the process, our end of its socket, and what it has said and when; judges
nothing. Imports neither pyfuse3 nor trio.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cachefs.supervise.protocol import ENVIRONMENT, Inheritance

_KILL_GRACE: Final = 1.0  # seconds

log = logging.getLogger(__name__)


def spawn(command: Sequence[str], inheritance: Inheritance, now: float) -> "WorkerProcess":
    """Start *command* as a worker that inherits *inheritance*, in which *control* is filled in
    here. *now* is the supervisor's clock, in seconds.

    Raises :class:`OSError` when it cannot be started; then neither a descriptor nor a process is
    left of it."""
    with contextlib.ExitStack() as undo:
        ours, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.enter_context(ours)
        with workers:
            ours.setblocking(False)
            inheritance = replace(inheritance, control=workers.fileno())
            process = subprocess.Popen(
                command,
                env={**os.environ, ENVIRONMENT: inheritance.to_text()},
                pass_fds=inheritance.descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        undo.callback(_end, process)
        worker = WorkerProcess(process, ours, now)
        undo.pop_all()
    return worker


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill and reap it; one that waits in the kernel is left to the next Popen, which reaps it."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_GRACE)


class WorkerProcess:
    """One worker process, and what it has said. *control* is our end of its socket, non-blocking;
    *now* is the supervisor's clock, in seconds."""

    def __init__(
        self, process: subprocess.Popen[bytes], control: socket.socket, now: float
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.control = control
        self.pidfd = os.pidfd_open(process.pid)
        self.started = self.heard = now
        self.ready_at: float | None = None
        self.standby = False
        self.leave_by: float | None = None
        self.killed_at: float | None = None
        self.silent = False
        self.unmounted = False

    def tell(self, word: bytes) -> None:
        """Send it a word of :mod:`.protocol`."""
        try:
            self.control.send(word)
        except OSError as error:
            log.debug("worker %d does not listen: %s", self.pid, error)

    def listen(self, now: float) -> list[bytes]:
        """The words that it has sent since the last call."""
        words: list[bytes] = []
        while True:
            try:
                word = self.control.recv(64)
            except (BlockingIOError, ConnectionError):
                return words
            if not word:
                return words
            self.heard = now
            words.append(word)

    def kill(self, now: float) -> None:
        """SIGKILL, once."""
        if self.killed_at is None:
            self.killed_at = now
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    @property
    def is_up(self) -> bool:
        """Whether it serves, or waits for nothing but its turn."""
        return self.standby or self.ready_at is not None

    @property
    def leader_is_dead(self) -> bool:
        """Whether the main thread is gone although the process is not (proc(5), stat)."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text("ascii", "replace")
        except (FileNotFoundError, ProcessLookupError):
            return True
        except OSError:  # EMFILE, say: that is our trouble, and no word about the worker
            return False
        return stat.rpartition(")")[2].split()[0] in "ZX"

    def close(self) -> None:
        """Give its descriptors back."""
        self.control.close()
        os.close(self.pidfd)

    @property
    def how_it_ended(self) -> str:
        """In words; of a process that has."""
        status = self.process.returncode
        if status < 0:
            return f"worker {self.pid} died of {signal.Signals(-status).name}"
        return f"worker {self.pid} exited with status {status}"

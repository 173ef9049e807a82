"""A worker process, as its supervisor sees it.

Owns the process, our end of its socket, and what it has said and when; judges nothing. Imports
neither pyfuse3 nor trio.
"""

import logging
import os
import signal
import socket
import subprocess
from pathlib import Path

log = logging.getLogger(__name__)


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

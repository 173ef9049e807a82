"""The other end of :mod:`support.registry_worker`: workers that can be told what to do, and killed.

Owns their processes. INVARIANT: nothing here waits for a worker without a limit, and no process
outlives the block that :func:`worker_server` is."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds that a command may take: longer than a worker waits for anything by itself."""


class WorkerProcess:
    """One worker. Commands are told with :meth:`send`, several at a time, and answered in any
    order."""

    def __init__(self, sock: socket.socket, pidfd: int) -> None:
        self._sock = sock
        self._pidfd = pidfd
        self._last = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._names = {0: "its start"}
        sock.settimeout(PATIENCE)

    def send(self, command: str, **rest: object) -> int:
        """Have a command done; the number by which :meth:`wait` knows it."""
        self._last += 1
        self._names[self._last] = f"{command} {rest}"
        message = {"command": command, "ticket": self._last, **rest}
        self._sock.send(json.dumps(message).encode())
        return self._last

    def wait(self, ticket: int) -> dict[str, Any]:
        """The answer to a command; AssertionError where none comes in time, or the worker fails."""
        while ticket not in self._answers:
            try:
                message = self._sock.recv(2**20)
            except TimeoutError:
                self._show_stacks()
                raise AssertionError(f"no answer to {self._names[ticket]}") from None
            assert message, f"the worker died of {self._names[ticket]}"
            answer = json.loads(message)
            self._answers[answer.pop("ticket")] = answer
        answer = self._answers.pop(ticket)
        assert "bug" not in answer, f"{self._names[ticket]}: {answer['bug']}"
        return answer

    def call(self, command: str, **rest: object) -> dict[str, Any]:
        """Do a command; its answer."""
        return self.wait(self.send(command, **rest))

    def kill(self) -> None:
        """``kill -9``; returns when the kernel has taken away all that the process had."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._gone()

    def end(self) -> None:
        """As the supervisor's word to leave; returns when it has."""
        self._sock.send(json.dumps({"command": "end"}).encode())
        self._gone()

    def close(self) -> None:
        """Be rid of it, whatever its state."""
        if self._pidfd >= 0:
            self.kill()

    def _gone(self) -> None:
        over = select.poll()
        over.register(self._pidfd, select.POLLIN)
        if not over.poll(PATIENCE * 1000):
            self._show_stacks()
            raise AssertionError("the worker does not end")
        self._sock.close()
        os.close(self._pidfd)
        self._pidfd = -1

    def _show_stacks(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGUSR1)


class WorkerServer:
    """The process that forks workers."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        control.settimeout(PATIENCE)

    def start(self, **plan: object) -> WorkerProcess:
        """A worker by *plan* (see :class:`support.registry_worker.Worker`), ready for commands."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(plan).encode()], [theirs.fileno()])
            message, descriptors, _, _ = socket.recv_fds(self._control, 16, 1)
        assert message, "the server of workers has died"
        worker = WorkerProcess(ours, descriptors[0])
        try:
            worker.wait(0)
        except BaseException:
            worker.close()
            raise
        return worker


@contextlib.contextmanager
def worker_server() -> Iterator[WorkerServer]:
    """A server of workers for the block, and none of its workers after it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            server = subprocess.Popen(
                [sys.executable, "-m", "support.registry_worker", str(theirs.fileno())],
                cwd=Path(__file__).parents[1],
                pass_fds=[theirs.fileno()],
            )
        try:
            yield WorkerServer(ours)
        finally:
            server.kill()  # and with it its workers
            server.wait(PATIENCE)

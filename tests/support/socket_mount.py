"""Files behind a relay on a socket: a kernel, one worker process at a time, and the end of both.

Owns the processes and what is left of them; what workers do is :mod:`.relay_worker`'s. Workers are
forked from a process that has imported everything, so that one starts in a few hundredths of a
second and can be killed as often as a test likes.
"""

import functools
import json
import multiprocessing
import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from cachefs.kernel.wire import InitFlag
from tests.support import relay_worker
from tests.support.socket_kernel import LIMIT, OFFERED, Answer, SocketKernel


@functools.cache
def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([relay_worker.__name__])
    return context


class Worker:
    """A worker process. It is this process's child in all but name: the fork server's."""

    def __init__(self, kernel: SocketKernel, *arguments: Any) -> None:
        self._kernel = kernel
        self._serving = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = fork_server().Process(
                target=relay_worker.run, args=(theirs, *arguments), daemon=True
            )
            self.process.start()
        descriptors = [kernel.device.fileno(), kernel.table_fd]
        socket.send_fds(self._control, [b"device, table"], descriptors)

    def command(self, *words: Any) -> None:
        self._control.send(json.dumps(words).encode())

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next report of that *event*; others on the way are dropped. The kernel goes on
        meanwhile."""
        deadline = time.monotonic() + LIMIT
        while True:
            assert time.monotonic() < deadline, f"no {event!r} for {LIMIT} s"
            ready = select.select([self._control, self._kernel], [], [], LIMIT)[0]
            if self._kernel in ready:
                self._kernel.receive()
            if self._control in ready:
                message = self._control.recv(1 << 16)
                assert message, f"the worker ended before {event!r}"
                report = dict(json.loads(message))
                self._serving |= report["event"] == "serving"
                if report["event"] == event:
                    return report

    def stats(self) -> dict[str, Any]:
        """*seen*: how often pyfuse3's handlers were called; *granted*: nodes and how often each
        is open, those of earlier workers included; *reads_here*."""
        if not self._serving:
            self.wait_for("serving")
        self.command("stats")
        return self.wait_for("stats")

    def stop(self) -> None:
        """Have it do nothing until :meth:`go_on`; what is sent meanwhile is there at once then."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + LIMIT
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline, "it does not stop"
            time.sleep(0.001)

    def go_on(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9``; the kernel knows."""
        self.process.kill()
        self.died()

    def die_at_next_message(self, when: str) -> None:
        """Have it killed "before" or "after" it writes its next message to the kernel; see
        :meth:`died`."""
        self.command("die", when)
        self.wait_for("armed")

    def died(self) -> None:
        """Return once it has been killed; the kernel knows."""
        self.process.join(LIMIT)
        assert self.process.exitcode == -signal.SIGKILL
        self._control.close()
        self._kernel.worker_died()

    def wait(self) -> int | None:
        """Its exit status, waited for."""
        self.process.join(LIMIT)
        return self.process.exitcode

    def close(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join(LIMIT)
        self._control.close()


class Served:
    """A directory of *files*, a kernel, and one worker at a time."""

    def __init__(self, files: Mapping[str, bytes], *, passthrough: bool) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self._log = self._directory / "log"
        self._passthrough = passthrough
        self._workers: list[Worker] = []
        self._source = self._directory / "source"
        self._source.mkdir()
        for name, content in files.items():
            (self._source / name).write_bytes(content)
        self.kernel = SocketKernel()
        self.init: Answer
        """To INIT."""

    @property
    def worker(self) -> Worker:
        return self._workers[-1]

    def start(self, *, quarantine: bool = False) -> Worker:
        """Start the next worker, which need not have begun to serve when this returns."""
        worker = Worker(
            self.kernel, str(self._source), str(self._log), self._passthrough, quarantine
        )
        self._workers.append(worker)
        return worker

    def restart(self, *, quarantine: bool = False) -> None:
        """Kill the worker and start the next."""
        self.worker.kill()
        self.start(quarantine=quarantine)

    def next_worker(self) -> None:
        """Start the next worker after one that has ended by itself."""
        self.kernel.worker_died()
        self.start()

    def _is_granted(self, nodeid: int) -> bool:
        """Whether opens of that node are counted by the worker's registry."""
        names = sorted(path.name for path in self._source.iterdir())
        return relay_worker.is_kind(names[nodeid - 2], *relay_worker.GRANTED)

    def check_counts(self) -> None:
        """See that kernel, table and worker count the same opens. While no request is under
        way."""
        kernel = {node: opens for node, opens in self.kernel.opens.items() if opens}
        assert self.kernel.counted() == kernel
        granted = [[node, n] for node, n in sorted(kernel.items()) if self._is_granted(node)]
        assert self.worker.stats()["granted"] == granted

    def go(self) -> None:
        """Have the requests answered that wait for it."""
        (self._directory / "go").touch()

    def end(self) -> None:
        """Unmount, and see that the worker ends well and has logged no error, and that nothing was
        answered that was not asked."""
        self.kernel.unmount()
        assert self.worker.wait() == 0
        self.kernel.receive()
        assert self.kernel.unawaited == []
        log = self._log.read_text()
        assert not [word for word in ("ERROR", "CRITICAL", "Traceback") if word in log]

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
        self.kernel.close()
        print(self._log.read_text() if self._log.exists() else "no log")  # noqa: T201 - pytest shows it
        shutil.rmtree(self._directory, ignore_errors=True)


@contextmanager
def served(
    files: Mapping[str, bytes], *, passthrough: bool = False, offered: InitFlag = OFFERED
) -> Iterator[Served]:
    """*files* behind a relay that serves; ended and looked at on leaving. *passthrough* is asked
    for, *offered* by the kernel."""
    made = Served(files, passthrough=passthrough)
    try:
        unique = made.kernel.send_init(offered)
        made.start()
        made.init = made.kernel.answer(unique)
        made.worker.wait_for("serving")
        yield made
        made.end()
    finally:
        made.close()

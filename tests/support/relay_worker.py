# ruff: noqa: ANN001, ANN201, T201
# pyfuse3 has the handlers' types; what is printed is shown with a test that fails.
"""A worker that serves the relay on a socket in the kernel's place, and the test's hold on it.

The worker shows the files of one directory as :mod:`tests.support.smallfs` does, whose names say
what a file does (``later-one*``, ``lateopen*``, ``stuckopen*``, ``slow*``); of its own are:

- ``*img*``: opened by the relay; all of it is final
- ``*half*``: opened by the relay; the first half is final
- ``*asked*``: opened by pyfuse3, read and released by the relay

Workers are forked from a process that has imported everything, so that one starts in a few
hundredths of a second and can be killed as often as a test likes.
"""

import functools
import json
import logging
import multiprocessing
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyfuse3
import trio
import trio.testing

from cachefs.kernel import wire
from cachefs.kernel.device import Connection
from cachefs.kernel.wire import InitFlag
from cachefs.transport.base import TransportInfo
from cachefs.transport.relay import OpenGate, RelayTransport
from tests.support.smallfs import Files, SmallFS
from tests.support.socket_kernel import LIMIT, OFFERED, Answer, SocketKernel

GRANTED = ("img", "half", "asked")
HANDLES = 1 << 20
"""In every handle that a grant has, which is the same in all workers."""


def is_kind(name: str, *kinds: str) -> bool:
    """Whether the file of that name is of one of those kinds."""
    return any(kind in name for kind in kinds)


# --- in the worker --------------------------------------------------------------------------------


class Grant:
    """A file that is open: see :mod:`cachefs.transport.backing`."""

    def __init__(self, registry: "Registry", nodeid: int) -> None:
        self.handle = nodeid | HANDLES
        self._registry = registry
        self._nodeid = nodeid
        self._fd = registry.files.fds[nodeid]

    def passthrough_fd(self) -> int | None:
        return None if self._registry.is_kind(self._nodeid, "half") else self._fd

    def read_fd(self, start: int, stop: int) -> int | None:
        size = os.fstat(self._fd).st_size
        final = size // 2 if self._registry.is_kind(self._nodeid, "half") else size
        return self._fd if min(stop, size) <= final else None

    def close(self) -> None:
        self._registry.opens[self.handle] -= 1
        assert self._registry.opens[self.handle] >= 0, "given back more often than opened"


class Registry:
    """What this worker has open, and the relay's Backing."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.opens: Counter[int] = Counter()  # by handle

    def is_kind(self, nodeid: int, *kinds: str) -> bool:
        place = nodeid - 2
        names = self.files.names
        return 0 <= place < len(names) and is_kind(names[place], *kinds)

    def add(self, nodeid: int, opens: int = 1) -> Grant:
        self.opens[nodeid | HANDLES] += opens
        return Grant(self, nodeid)

    def open(self, nodeid: int, flags: int) -> Grant | None:
        return self.add(nodeid) if self.is_kind(nodeid, "img", "half") else None

    def opened(self, handle: int) -> Grant | None:
        return Grant(self, handle & ~HANDLES) if self.opens[handle] else None

    # until the registry lands: the five methods of the old protocol

    def backing_fd(self, nodeid: int, fh: int) -> int | None:
        grant = self.opened(fh)
        return grant.passthrough_fd() if grant else None

    def read_fd(self, nodeid: int, fh: int, start: int, stop: int) -> int | None:
        grant = self.opened(fh)
        return grant.read_fd(start, stop) if grant else None

    def open_here(self, nodeid: int, flags: int) -> int | None:
        grant = self.open(nodeid, flags)
        return grant.handle if grant else None

    def opened_here(self, nodeid: int) -> None:
        pass

    def release_here(self, nodeid: int, fh: int) -> bool:
        grant = self.opened(fh)
        if grant:
            grant.close()
        return grant is not None

    # end of what goes when the registry lands


class ReportingFS(SmallFS):
    """Tells the test what pyfuse3 is asked."""

    def __init__(self, registry: Registry, control: socket.socket) -> None:
        super().__init__(registry.files)
        self.registry = registry
        self.control = control

    def report(self, event: str, **details: Any) -> None:
        self.control.send(json.dumps({"event": event, **details}).encode())

    @contextmanager
    def waits(self, name: str) -> Iterator[None]:
        with super().waits(name):
            self.report("waiting", name=name)
            yield

    async def open(self, inode, flags, ctx=None):
        info = await super().open(inode, flags, ctx)
        if self.registry.is_kind(inode, "asked"):
            info.fh = self.registry.add(inode).handle
        return info

    async def read(self, fh, off, size):
        return await super().read(fh & ~HANDLES, off, size)

    async def release(self, fh):
        await super().release(fh)
        if grant := self.registry.opened(fh):  # of an open that the kernel never heard of
            grant.close()
        self.report("release", handle=fh)

    async def forget(self, inode_list):
        await super().forget(inode_list)
        self.report("forget", nodes=[nodeid for nodeid, _ in inode_list])


class ReportingGate(OpenGate):
    """Takes up what earlier workers had open, as :class:`cachefs.vfs` does."""

    def __init__(self, operations: ReportingFS) -> None:
        self._operations = operations

    async def take_over(self, open_nodes: Mapping[int, int], *, first: bool) -> None:
        registry = self._operations.registry
        for nodeid, opens in open_nodes.items():
            if registry.is_kind(nodeid, *GRANTED):
                registry.add(nodeid, opens)

    def unmounted(self) -> None:
        self._operations.report("unmounted")


def run(
    control: socket.socket, directory: str, log: str, passthrough: bool, quarantine: bool
) -> None:
    """What the worker process does."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, sys.stdout.fileno())
    os.dup2(fd, sys.stderr.fileno())
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(process)d %(name)s: %(message)s"
    )
    _, descriptors, _, _ = socket.recv_fds(control, 16, 2)
    device, table = descriptors
    control.setblocking(False)
    registry = Registry(Files(directory))
    operations = ReportingFS(registry, control)
    transport = RelayTransport(
        device,
        table,
        TransportInfo("relay", passthrough, ""),
        mountpoint=f"{directory}/not-mounted",
        backing=registry,
        gate=ReportingGate(operations),
        quarantine=quarantine,
    )
    operations.transport = transport
    trio.run(serve, transport, operations)


async def serve(transport: RelayTransport, operations: ReportingFS) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(obey, transport, operations)
        await nursery.start(_serve, transport, operations, nursery)
        operations.report("serving")


async def _serve(transport, operations, nursery, *, task_status) -> None:
    await transport.serve(operations, task_status=task_status)
    nursery.cancel_scope.cancel()


async def obey(transport: RelayTransport, operations: ReportingFS) -> None:
    """Do what the test says; see :meth:`Worker.command`."""
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(operations.control)
            message = operations.control.recv(4096)
            if not message:
                return
            match json.loads(message):
                case ["inode", nodeid, attr_only]:
                    transport.invalidate_inode(nodeid, attr_only=attr_only)
                case ["pyfuse3-inode", nodeid]:
                    pyfuse3.invalidate_inode(nodeid)
                case ["entry", name]:
                    transport.invalidate_entry(wire.ROOT_ID, os.fsencode(name))
                case ["delete", name, child]:
                    transport.invalidate_entry(wire.ROOT_ID, os.fsencode(name), child)
                case ["stats"]:
                    opens = sorted(operations.registry.opens.items())
                    operations.report(
                        "stats",
                        seen=operations.seen,
                        granted=[[handle & ~HANDLES, n] for handle, n in opens if n],
                        reads_here=transport.reads_here,
                    )
                case ["die", when]:
                    die(when, transport._connection)
                    operations.report("armed")
                case ["drain", seconds]:
                    nursery.start_soon(drain, transport, operations, seconds)
                    await trio.testing.wait_all_tasks_blocked()
                    operations.report("draining")


def die(when: str, connection: Connection) -> None:
    """Have the worker killed "before" or "after" the next message that it writes to the kernel, its
    journal not cleared."""
    write = connection.write

    def write_and_die(message: bytes | memoryview) -> None:
        if when == "after":
            write(message)
        os.kill(os.getpid(), signal.SIGKILL)

    connection.write = write_and_die  # type: ignore[method-assign] # a fault


async def drain(transport: RelayTransport, operations: ReportingFS, seconds: float) -> None:
    with trio.CancelScope(shield=True):  # of the end of `serve`, which it brings about
        operations.report("drained", all_answered=await transport.drain(seconds))


# --- in the test ----------------------------------------------------------------------------------


@functools.cache
def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class Worker:
    """A worker process. It is this process's child in all but name: the fork server's."""

    def __init__(self, kernel: SocketKernel, *arguments: Any) -> None:
        self._kernel = kernel
        self._serving = False
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = fork_server().Process(target=run, args=(theirs, *arguments), daemon=True)
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

    def is_granted(self, nodeid: int) -> bool:
        """Whether opens of that node are counted by the worker's registry."""
        names = sorted(path.name for path in self._source.iterdir())
        return is_kind(names[nodeid - 2], *GRANTED)

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
        print(self._log.read_text() if self._log.exists() else "no log")
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

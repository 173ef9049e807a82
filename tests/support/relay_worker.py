# ruff: noqa: ANN001, ANN201
# pyfuse3 has the handlers' types.
"""The program of a worker that serves the relay on a socket in the kernel's place.

The worker shows the files of one directory as :mod:`tests.support.smallfs` does, whose names say
what a file does (``later-one*``, ``lateopen*``, ``stuckopen*``, ``slow*``); of its own are:

- ``*img*``: opened by the relay; all of it is final
- ``*half*``: opened by the relay; the first half is final
- ``*asked*``: opened by pyfuse3, read and released by the relay

It reports what it is asked, and does what it is told, over another socket; :mod:`.socket_mount` is
the test's hold on it.
"""

import json
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyfuse3
import trio
import trio.testing

from cachefs.kernel.device import Connection
from cachefs.transport.base import TransportInfo
from cachefs.transport.relay import OpenGate, RelayTransport
from cachefs.vfs.inodes import ROOT_INODE
from tests.support.smallfs import Files, SmallFS

GRANTED = ("img", "half", "asked")
HANDLES = 1 << 20
"""In every handle that a grant has, which is the same in all workers."""


def is_kind(name: str, *kinds: str) -> bool:
    """Whether the file of that name is of one of those kinds."""
    return any(kind in name for kind in kinds)


class Grant:
    """A file that is open: see :mod:`cachefs.transport.backing`."""

    def __init__(self, registry: "Registry", nodeid: int) -> None:
        self.handle = nodeid | HANDLES
        self._registry = registry
        self._nodeid = nodeid
        self._fd = registry.files.fds[nodeid]

    @property
    def fd(self) -> int | None:
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
    """Do what the test says; see :meth:`.socket_mount.Worker.command`."""
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
                    transport.invalidate_entry(ROOT_INODE, os.fsencode(name))
                case ["delete", name, child]:
                    transport.invalidate_entry(ROOT_INODE, os.fsencode(name), child)
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

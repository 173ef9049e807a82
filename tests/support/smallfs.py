# ruff: noqa: ANN001, ANN201, PTH108, PTH118, PTH208, T201, ASYNC251, ASYNC110, ASYNC240, PTH110
# Its output is its interface; pyfuse3 and the protocols have the types.
"""A small filesystem to test transports with, and the program that serves it.

The mount shows the files of one directory. A file's inode number is its place in the sorted listing
plus 2, so it means the same to every worker. What a file does stands in its name:

- ``img*``: complete; the relay may use passthrough (its grant has an ``fd``)
- ``here*``: the relay may read it by itself (``read_fd``), no passthrough
- ``imgq*``, ``hereq*``: and opened by the relay itself, too (``open``)
- ``slow*``: read by pyfuse3 after a pause; anything else: read by pyfuse3
- ``stuckopen*``, ``stuckread*``, ``stuckattr*``: that request is never answered
- ``stucklookup*``: looking it up never ends, whether it exists or not
- ``crash*``: opening it kills the worker
- ``stats``: JSON with what the filesystem has seen; ``direct*``: opened with FOPEN_DIRECT_IO
- ``nap*``: a READ of it blocks the whole worker (its event loop) for ever
- ``later-one*``: a LOOKUP of it is answered once a file ``go`` lies beside the directory;
  ``lateopen*``: an OPEN is

With ``-once`` in the name it happens once only, over all workers. ``stats`` has under ``waiting``
the names of which a request is not answered yet.

Writing ``back NAME``, ``unback NAME``, ``unlink NAME``, ``entry NAME`` or ``inode NUMBER`` to
``stats`` does what it says.

usage: python -m tests.support.smallfs relay|plain|worker SOURCE MOUNTPOINT [--no-passthrough]
"""

import errno
import json
import logging
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyfuse3
import trio

from cachefs.kernel import device as fuse_device
from cachefs.kernel import mounting
from cachefs.kernel.mounting import MountOptions
from cachefs.mount.attachment import Attachment
from cachefs.transport.base import TransportInfo
from cachefs.transport.open_table import OpenTable
from cachefs.transport.plain import PlainTransport
from cachefs.transport.relay import RelayTransport

STATS = 1 << 40
PAUSE = 0.001


class Files:
    """The files of one directory by inode number, and the policy of which one backs what."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.names = sorted(os.listdir(directory))
        self.fds = {
            number + 2: os.open(os.path.join(directory, name), os.O_RDONLY)
            for number, name in enumerate(self.names)
        }
        self.inodes = {name: number + 2 for number, name in enumerate(self.names)}
        self.passthrough = True
        self.seen: Counter[str] = Counter()
        self.here = {i: self.fds[i] for n, i in self.inodes.items() if n.startswith("here")}
        self.quick = {i for n, i in self.inodes.items() if n.startswith(("imgq", "hereq"))}
        self.images = {i: self.fds[i] for n, i in self.inodes.items() if n.startswith("img")}

    def unlink(self, name: str) -> None:
        """Drop the file and every descriptor of it, as an eviction does."""
        inode = self.inodes[name]
        os.unlink(os.path.join(self.directory, name))
        self.images.pop(inode, None)
        os.close(self.fds.pop(inode))

    def first_time(self, name: str) -> bool:
        """Whether *name* does what it does for the first time, over all workers."""
        if "-once" not in name:
            return True
        try:
            os.close(os.open(f"{self.directory}/../{name}.done", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def open(self, nodeid: int, flags: int) -> "Grant | None":
        return Grant(self, nodeid) if nodeid in self.quick else None

    def opened(self, handle: int) -> "Grant | None":
        known = handle in self.quick or handle in self.here or handle in self.images
        return Grant(self, handle) if known else None


class Grant:
    """A file, open; its handle is its inode number."""

    def __init__(self, files: Files, inode: int) -> None:
        self.files = files
        self.handle = inode
        self.fd = files.images.get(inode)

    def read_fd(self, start: int, stop: int) -> int | None:
        return self.files.here.get(self.handle)

    def close(self) -> None:
        if self.handle not in self.files.quick:  # those opens are not in ``seen`` either
            self.files.seen["release"] += 1


class SmallFS(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self, files: Files) -> None:
        super().__init__()
        self.files = files
        self.seen = files.seen
        self.buffer = memoryview(bytearray(1 << 20))
        self.transport: Any = None
        self.text = b""
        self.waiting: list[str] = []

    @contextmanager
    def waits(self, name: str) -> Iterator[None]:
        """Show in ``stats`` that a request waits."""
        self.waiting.append(name)
        try:
            yield
        finally:
            self.waiting.remove(name)

    async def never(self, name: str) -> None:
        with self.waits(name):
            await trio.sleep_forever()

    async def go(self, name: str) -> None:
        with self.waits(name):
            while not os.path.exists(f"{self.files.directory}/../go"):
                await trio.sleep(0.01)

    def stats(self) -> bytes:
        transport = self.transport
        extra = {
            "pid": os.getpid(),
            "waiting": self.waiting,
            "fds": len(os.listdir("/proc/self/fd")),
            "open_nodes": getattr(transport, "open_nodes", {}),
            "reads_here": getattr(transport, "reads_here", 0),
            "info": [transport.info.mode, transport.info.passthrough, transport.info.why],
        }
        return json.dumps({**self.seen, **extra}).encode()

    async def getattr(self, inode, ctx=None, looking_up=False):
        self.seen["getattr"] += 1
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = 300
        if inode > 1 and inode != STATS and self.name(inode).startswith("stuckattr"):
            entry.attr_timeout = 0
        if inode == 1:
            entry.st_mode = stat.S_IFDIR | 0o755
        elif inode == STATS:
            entry.st_mode = stat.S_IFREG | 0o644
        else:
            if self.name(inode).startswith("stuckattr") and not looking_up:
                await self.never(self.name(inode))
            entry.st_mode = stat.S_IFREG | 0o444
            entry.st_size = os.fstat(self.files.fds[inode]).st_size
        return entry

    def name(self, inode):
        return self.files.names[inode - 2]

    async def lookup(self, parent_inode, name, ctx=None):
        self.seen["lookup"] += 1
        if name == b"stats":
            return await self.getattr(STATS)
        if name.startswith(b"stucklookup"):
            await self.never(os.fsdecode(name))
        if name.startswith(b"later-one"):
            await self.go(os.fsdecode(name))
        inode = self.files.inodes.get(os.fsdecode(name))
        if inode is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        self.seen["found"] += 1
        return await self.getattr(inode, looking_up=True)

    async def forget(self, inode_list):
        for _, count in inode_list:
            self.seen["forget"] += count

    async def opendir(self, inode, ctx):
        return inode

    async def readdir(self, fh, start_id, token):
        for number, name in enumerate(self.files.names):
            if number + 1 <= start_id:
                continue
            attributes = await self.getattr(number + 2)
            self.seen["found"] += 1
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, number + 1):
                self.seen["found"] -= 1
                break

    async def open(self, inode, flags, ctx=None):
        self.seen["open"] += 1
        if inode == STATS:
            return pyfuse3.FileInfo(fh=inode, direct_io=True)
        name = self.name(inode)
        if name.startswith("stuckopen") and self.files.first_time(name):
            await self.never(name)
        if name.startswith("lateopen"):
            await self.go(name)
        if name.startswith("crash"):
            os.abort()
        return pyfuse3.FileInfo(fh=inode, keep_cache=True, direct_io=name.startswith("direct"))

    async def read(self, fh, off, size):
        self.seen["read"] += 1
        if fh == STATS:
            if off == 0:
                self.text = self.stats()
            return self.text[off : off + size]
        name = self.name(fh)
        if name.startswith("stuckread"):
            await self.never(name)
        if name.startswith("slow"):
            await trio.sleep(PAUSE)
        if name.startswith("nap") and self.files.first_time(name):
            time.sleep(3600)
        fd = self.files.fds[fh]
        try:
            n = os.preadv(fd, [self.buffer[:size]], off, os.RWF_NOWAIT)
            if n < size and off + n != os.fstat(fd).st_size:
                raise BlockingIOError
        except BlockingIOError:
            return await trio.to_thread.run_sync(os.pread, fd, size, off)
        return self.buffer[:n]

    async def release(self, fh):
        self.seen["release"] += 1

    async def write(self, fh, off, buf):
        word, *arguments = buf.split()
        if word == b"entry":
            self.transport.invalidate_entry(1, arguments[0])
        elif word == b"pyfuse3-entry":  # blocks the caller in plain pyfuse3
            pyfuse3.invalidate_entry(1, arguments[0])
        elif word in (b"back", b"unback"):
            inode = self.files.inodes[os.fsdecode(arguments[0])]
            if word == b"back":
                self.files.images[inode] = self.files.fds[inode]
            else:
                self.files.images.pop(inode)
        elif word == b"unlink":
            self.files.unlink(os.fsdecode(arguments[0]))
        elif word == b"inode":
            self.transport.invalidate_inode(int(arguments[0]))
        return len(buf)

    async def setattr(self, inode, attr, fields, fh, ctx):
        return await self.getattr(inode)


async def serve(transport, files: Files, attachment=None) -> None:
    operations = SmallFS(files)
    operations.transport = transport
    async with trio.open_nursery() as nursery:
        if attachment is not None:
            nursery.start_soon(attachment.run)
        await nursery.start(_serve, transport, operations, nursery)
        print("serving", os.getpid(), flush=True)


async def _serve(transport, operations, nursery, *, task_status) -> None:
    await transport.serve(operations, task_status=task_status)
    nursery.cancel_scope.cancel()


def main() -> None:
    mode, source, mountpoint, *rest = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s: %(message)s")
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    files = Files(source)
    if "--no-passthrough" in rest:
        files.images = {}
    attachment = None
    transport: Any
    if mode == "plain":
        transport = PlainTransport(TransportInfo("plain", False, "asked"), mountpoint=mountpoint)
    elif mode == "relay":
        fd = fuse_device.open_device()
        mounting.mount(fd, mountpoint, MountOptions())
        transport = RelayTransport(
            fd,
            OpenTable.create(),
            TransportInfo("relay", True, ""),
            mountpoint=mountpoint,
            backing=files,
        )
    else:
        attachment = Attachment.from_environment()
        assert attachment is not None
        transport = attachment.open_transport(files)
    trio.run(serve, transport, files, attachment)


if __name__ == "__main__":
    main()

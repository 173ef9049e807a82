"""A filesystem asked without a kernel: the requests that system calls become, made in the event
loop, and what the kernel would keep for them.

Owns the kernel's part (lookup counts, handles, the second look-up after an ESTALE, the relay's
short way past pyfuse3) and no expectation. Errors are OSErrors, as a system call's.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from cachefs.errors import StaleError
from cachefs.mount.filesystem import Filesystem
from cachefs.transport.backing import Guarded
from cachefs.vfs.inodes import ROOT_INODE

PAGE = 128 * 1024
"""Bytes asked for in one READ, as the kernel does unless told otherwise."""


def context(pid: int = 0) -> Any:
    """Who asks; a stand-in, since only pyfuse3 can fill its own. A pid of 0 is that of a process
    that cannot be seen."""
    return SimpleNamespace(pid=pid, uid=0, gid=0, umask=0o022)


@dataclass(eq=False)
class Handle:
    """One open of *inode*, known to the filesystem as *number*. *fd* is the descriptor that reads
    go to without any request (passthrough), None where there is none."""

    inode: int
    number: int
    direct_io: bool
    keep_cache: bool
    fd: int | None = None


@dataclass(eq=False)
class Reply:
    """The buffer of one READDIRPLUS reply, which takes *room* entries."""

    room: int
    entries: list[tuple[str, pyfuse3.EntryAttributes, int]] = field(default_factory=list)


def readdir_reply(token: Reply, name: bytes, attr: pyfuse3.EntryAttributes, next_id: int) -> bool:
    """In place of :func:`pyfuse3.readdir_reply`, which writes to libfuse's buffer."""
    if len(token.entries) == token.room:
        return False
    token.entries.append((os.fsdecode(name), attr, next_id))
    return True


class Requests:
    """Asks *filesystem*. With *relay*, opens, reads and releases ask the transport's backing first,
    as the relay does; *room* is how many names one listing reply takes."""

    def __init__(
        self,
        filesystem: Filesystem,
        monkeypatch: pytest.MonkeyPatch,
        *,
        relay: bool = False,
        room: int = 50,
    ) -> None:
        monkeypatch.setattr(pyfuse3, "readdir_reply", readdir_reply)
        self.operations: Any = filesystem.operations
        self._backing = Guarded(filesystem.image_files)
        self._relay = relay
        self._room = room
        self.context = context()
        self.lookups: Counter[int] = Counter()

    # Names

    async def lookup(self, path: str | bytes) -> pyfuse3.EntryAttributes:
        """The attributes of *path*, below the mountpoint; each of its names is looked up."""
        parent, entry = ROOT_INODE, await self.getattr(ROOT_INODE)
        for name in os.fsencode(path).split(b"/"):
            entry = await self.lookup_in(parent, name)
            parent = entry.st_ino
        return entry

    async def lookup_in(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """One LOOKUP."""
        with as_system_calls():
            entry = await self.operations.lookup(parent, name, self.context)
        self.lookups[entry.st_ino] += 1
        return entry

    async def forget(self, inode: int | None = None) -> None:
        """Give back every reference to *inode*, or all there are."""
        inodes = list(self.lookups) if inode is None else [inode]
        counts = [(each, self.lookups.pop(each)) for each in inodes]
        with as_system_calls():
            await self.operations.forget(counts)

    async def create(self, path: str) -> Handle:
        """``open(O_CREAT | O_WRONLY)`` of a name that is not there."""
        parent, name = await self._parent(path)
        with as_system_calls():
            info, entry = await self.operations.create(
                parent, name, 0o644, os.O_WRONLY | os.O_CREAT, self.context
            )
        self.lookups[entry.st_ino] += 1
        return Handle(entry.st_ino, info.fh, info.direct_io, info.keep_cache)

    async def touch(self, path: str) -> None:
        """``touch`` of a name that is not there."""
        await self.release(await self.create(path))

    async def unlink(self, path: str, *, lookup: bool = True) -> None:
        """``unlink``: the name is looked up, unless the kernel believes that it knows it, and then
        removed."""
        parent, name = await self._parent(path)
        if lookup:
            await self.lookup_in(parent, name)
        with as_system_calls():
            await self.operations.unlink(parent, name, self.context)

    # Attributes

    async def getattr(self, inode: int) -> pyfuse3.EntryAttributes:
        """One GETATTR."""
        with as_system_calls():
            return await self.operations.getattr(inode, self.context)

    async def setattr(self, path: str, *updates: str) -> pyfuse3.EntryAttributes:
        """One SETATTR of *updates* (size, mode, uid, gid, atime, mtime), whatever they become."""
        names = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
        fields = SimpleNamespace(**{f"update_{name}": name in updates for name in names})
        inode = (await self.lookup(path)).st_ino
        with as_system_calls():
            return await self.operations.setattr(
                inode, pyfuse3.EntryAttributes(), fields, None, self.context
            )

    async def getxattr(self, path: str, name: str) -> bytes:
        """The extended attribute *name*."""
        inode = (await self.lookup(path)).st_ino
        with as_system_calls():
            return await self.operations.getxattr(inode, name.encode(), self.context)

    async def listxattr(self, path: str) -> list[str]:
        """The names of extended attributes."""
        inode = (await self.lookup(path)).st_ino
        with as_system_calls():
            return [
                os.fsdecode(name) for name in await self.operations.listxattr(inode, self.context)
            ]

    async def statfs(self) -> pyfuse3.StatvfsData:
        """One STATFS."""
        with as_system_calls():
            return await self.operations.statfs(self.context)

    # Files

    async def open(self, path: str | bytes, flags: int = os.O_RDONLY) -> Handle:
        """Open *path*; of a stale number the kernel looks the name up once more."""
        entry = await self.lookup(path)
        try:
            return await self.open_inode(entry.st_ino, flags)
        except OSError as error:
            if error.errno != StaleError.errno:
                raise
        return await self.open_inode((await self.lookup(path)).st_ino, flags)

    async def open_inode(self, inode: int, flags: int = os.O_RDONLY) -> Handle:
        """One OPEN."""
        grant = self._backing.open(inode, flags) if self._relay else None
        if grant is not None:
            return Handle(inode, grant.handle, False, True, grant.fd)
        with as_system_calls():
            info = await self.operations.open(inode, flags, self.context)
        return Handle(inode, info.fh, info.direct_io, info.keep_cache)

    async def read(self, handle: Handle, offset: int = 0, size: int = PAGE) -> bytes:
        """One READ."""
        if handle.fd is not None:
            return os.pread(handle.fd, size, offset)
        fd = self._backing.read_fd(handle.number, offset, offset + size) if self._relay else None
        if fd is not None:
            return os.pread(fd, size, offset)
        with as_system_calls():
            return bytes(await self.operations.read(handle.number, offset, size))

    async def read_all(self, handle: Handle) -> bytes:
        """Its bytes from the start to the end, READ by READ."""
        data = b""
        while piece := await self.read(handle, len(data)):
            data += piece
        return data

    async def write(self, handle: Handle, data: str | bytes, offset: int = 0) -> int:
        """One WRITE."""
        data = data.encode() if isinstance(data, str) else data
        with as_system_calls():
            return await self.operations.write(handle.number, offset, data)

    async def release(self, handle: Handle) -> None:
        """RELEASE: the handle's last descriptor is closed."""
        if not (self._relay and self._backing.close(handle.number)):
            with as_system_calls():
                await self.operations.release(handle.number)

    async def cat(self, path: str) -> bytes:
        """``cat``: what a file holds, which is open meanwhile."""
        handle = await self.open(path)
        try:
            return await self.read_all(handle)
        finally:
            await self.release(handle)

    async def echo(self, text: str | bytes, path: str) -> None:
        """``echo -n text > path``: truncated, and written at once."""
        await self.setattr(path, "size")
        handle = await self.open(path, os.O_WRONLY)
        try:
            await self.write(handle, text)
        finally:
            await self.release(handle)

    # Directories

    async def listdir(self, path: str) -> list[str]:
        """``ls``: all names, by as many replies as they take."""
        inode = (await self.lookup(path)).st_ino if path else ROOT_INODE
        number = await self.opendir(inode)
        names: list[str] = []
        position = 0
        while page := await self.readdir(number, position):
            names += [name for name, _ in page]
            position = page[-1][1]
        await self.releasedir(number)
        return names

    async def opendir(self, inode: int) -> int:
        """One OPENDIR; the handle's number."""
        with as_system_calls():
            return await self.operations.opendir(inode, self.context)

    async def readdir(self, number: int, position: int) -> list[tuple[str, int]]:
        """One READDIRPLUS: names, each with the position after it."""
        reply = Reply(self._room)
        with as_system_calls():
            await self.operations.readdir(number, position, reply)
        for _, entry, _ in reply.entries:
            self.lookups[entry.st_ino] += 1
        return [(name, next_id) for name, _, next_id in reply.entries]

    async def releasedir(self, number: int) -> None:
        """One RELEASEDIR."""
        with as_system_calls():
            await self.operations.releasedir(number)

    # Inside

    async def _parent(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        parent = (await self.lookup(directory)).st_ino if directory else ROOT_INODE
        return parent, name.encode()


@contextlib.contextmanager
def as_system_calls() -> Iterator[None]:
    """What pyfuse3 would answer the kernel with, raised as the system call's error. Any other
    exception would have ended the daemon, and passes."""
    try:
        yield
    except pyfuse3.FUSEError as error:
        raise OSError(error.errno, os.strerror(error.errno)) from error

# ruff: noqa: ARG002
# The arguments are those of pyfuse3's request handlers.
"""A disk that loses power: a file below a loop device, whose writes are kept in the order in which
they came, so that the disk can be had as it was at any of them.

Owns the program (``python -m torturing.blockdev MOUNTPOINT MIB``, a FUSE filesystem with one file,
``disk``) and nothing else. What was written since the last flush may or may not have reached the
medium: a snapshot has a random part of it, which is what a drive with a cache promises.

Commands come on standard input: ``snap COUNT SEED PATH`` writes the disk to PATH after COUNT more
writes, and says ``done PATH``; ``now SEED PATH`` does so at once.
"""

import ctypes
import errno
import os
import random
import stat
import sys
from pathlib import Path

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, InodeT

DISK = InodeT(2)
MIB = 2**20

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_MNT_DETACH = 2  # umount2(2)
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h


class Disk(pyfuse3.Operations):
    """The filesystem: a root with one file."""

    enable_writeback_cache = False

    def __init__(self, size: int) -> None:
        super().__init__()
        self.now = bytearray(size)
        self.durable = bytearray(size)
        self.pending: list[tuple[int, bytes]] = []
        self.wanted: list[tuple[int, str, Path]] = []
        self.writes = 0

    def snapshot(self, seed: str, path: Path) -> None:
        """Write the disk as it is if the power goes now."""
        dice = random.Random(seed)
        kept = dice.choice((0.0, 0.5, 0.9, 1.0))
        disk = bytearray(self.durable)
        for start, data in self.pending:
            if dice.random() < kept:
                disk[start : start + len(data)] = data
        path.write_bytes(disk)
        print(f"done {path}", flush=True)

    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> EntryAttributes:
        """See pyfuse3."""
        return self._attributes(inode)

    def _attributes(self, inode: InodeT) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o600 if inode == DISK else stat.S_IFDIR | 0o700
        entry.st_size = len(self.now) if inode == DISK else 0
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def lookup(
        self, parent_inode: InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> EntryAttributes:
        """See pyfuse3."""
        if name != b"disk":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(DISK)

    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> EntryAttributes:
        """Nothing can be set, and nothing needs to."""
        return self._attributes(inode)

    async def open(self, inode: InodeT, flags: int, ctx: pyfuse3.RequestContext) -> FileInfo:
        """See pyfuse3."""
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """See pyfuse3."""
        return bytes(self.now[off : off + size])

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """One more write; perhaps the one after which a snapshot is wanted."""
        self.now[off : off + len(buf)] = buf
        self.pending.append((off, bytes(buf)))
        self.writes += 1
        due = [order for order in self.wanted if order[0] <= self.writes]
        for order in due:
            self.wanted.remove(order)
            self.snapshot(order[1], order[2])
        return len(buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """What was written is on the medium."""
        for start, data in self.pending:
            self.durable[start : start + len(data)] = data
        self.pending.clear()

    async def flush(self, fh: FileHandleT) -> None:
        """A close, which promises nothing."""


async def _obey(disk: Disk) -> None:
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        word, *rest = line.split()
        if word == "snap":
            disk.wanted.append((disk.writes + int(rest[0]), rest[1], Path(rest[2])))
        elif word == "now":
            disk.wanted.clear()
            disk.snapshot(rest[0], Path(rest[1]))


async def _serve(disk: Disk) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, disk)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def _leave_the_mounts(mountpoint: str) -> None:
    """Go on in a mount namespace of its own, without the disk. Where everything is killed at once,
    the last process of a namespace unmounts what is in it; the filesystem on the disk would be
    written to the disk by the very process that is the disk, which would wait for itself for
    ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        or libc.umount2(os.fsencode(mountpoint), _MNT_DETACH)
    ):
        raise OSError(ctypes.get_errno(), "cannot have a mount namespace")


def main() -> None:
    """Serve until it is unmounted."""
    mountpoint, mib = sys.argv[1:]
    disk = Disk(int(mib) * MIB)
    options = set(pyfuse3.default_options) | {"fsname=torture-disk"}
    options.discard("default_permissions")
    pyfuse3.init(disk, mountpoint, options)
    _leave_the_mounts(mountpoint)
    print("ready", flush=True)
    try:
        trio.run(_serve, disk)
    finally:
        pyfuse3.close(unmount=False)
        os._exit(0)  # a thread waits for standard input


if __name__ == "__main__":
    main()

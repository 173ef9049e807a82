"""``/dev/fuse``: opening it, answering through it, and the ioctls for backing files.

Owns those system calls; knows nothing of mount points, of what messages mean, of trio or pyfuse3.
Source: ``linux/fuse.h`` (ioctls).
"""

import contextlib
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

DEVICE: Final = "/dev/fuse"

BACKING_OPEN: Final = 0x4010E501
"""``FUSE_DEV_IOC_BACKING_OPEN``: ``_IOW(229, 1, struct fuse_backing_map)``."""
BACKING_CLOSE: Final = 0x4004E502
"""``FUSE_DEV_IOC_BACKING_CLOSE``: ``_IOW(229, 2, uint32_t)``."""
CLONE: Final = 0x8004E500
"""``FUSE_DEV_IOC_CLONE``: ``_IOR(229, 0, uint32_t)``."""


def open_device() -> int:
    """A fresh descriptor of ``/dev/fuse``, non-blocking and close-on-exec.

    INVARIANT: no request is read through a clone (:func:`clone`) that is to outlive its reader: the
    requests that were read through a clone are ended with ECONNABORTED when the clone is closed
    (``fuse_dev_release``), while those read through one descriptor shared by supervisor and worker
    outlive the worker.
    """
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def clone(fd: int) -> int:
    """Another descriptor of the connection of *fd*, as :func:`open_device`'s: closing *fd* ends the
    requests that were read through *fd*, and this one keeps only the connection. Raises
    :class:`OSError`."""
    device = open_device()
    try:
        _ioctl(device, CLONE, struct.pack("=I", fd))
    except BaseException:
        os.close(device)
        raise
    return device


def devices() -> list[int]:
    """The descriptors of ``/dev/fuse`` that this process has open; of one that libfuse has opened
    it tells in no other way."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            if str(link.readlink()) == DEVICE:
                found.append(int(link.name))
    return found


class Connection:
    """An initialised connection, as the process that answers requests sees it; not its mount
    point."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, message: bytes | memoryview) -> None:
        """Give the kernel an answer or a notification. Raises :class:`OSError`: ENOENT where no
        caller waits for the answer, ENODEV when unmounted, EINVAL for a message that makes no
        sense."""
        os.write(self.fd, message)

    def open_backing(self, fd: int) -> int:
        """Register the file of *fd* with the connection; its backing id, positive.

        Raises :class:`OSError`: EPERM without CAP_SYS_ADMIN or where INIT did not agree on
        passthrough, ELOOP where the file lies on a filesystem that is itself stacked (overlayfs).
        """
        return _ioctl(self.fd, BACKING_OPEN, struct.pack("=iIQ", fd, 0, 0))  # fuse_backing_map

    def close_backing(self, backing_id: int) -> bool:
        """Let go of a backing id; False where there is none by that number."""
        try:
            _ioctl(self.fd, BACKING_CLOSE, struct.pack("=I", backing_id))
        except FileNotFoundError:
            return False
        return True


def _ioctl(device: int, request: int, argument: bytes) -> int:
    # With a mutable buffer, fcntl.ioctl returns the call's own result, which is the backing id.
    return int(fcntl.ioctl(device, request, bytearray(argument), True))

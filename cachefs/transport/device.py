"""Mounting: ``/dev/fuse``, ``mount(2)``, fusermount3, dead mounts, readahead, backing-file ioctls.

Owns the system calls that have to do with a FUSE mount as a whole; knows nothing of messages, trio
or pyfuse3, so the supervisor may import it. Sources: ``linux/fuse.h`` (ioctls), the kernel's
Documentation/filesystems/fuse.rst (mount options), libfuse's util/fusermount.c (``_FUSE_COMMFD``).
"""

import array
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path
from typing import Final

from .base import MountOptions

DEVICE: Final = "/dev/fuse"

BACKING_OPEN: Final = 0x4010E501
"""``FUSE_DEV_IOC_BACKING_OPEN``: ``_IOW(229, 1, struct fuse_backing_map)``."""
BACKING_CLOSE: Final = 0x4004E502
"""``FUSE_DEV_IOC_BACKING_CLOSE``: ``_IOW(229, 2, uint32_t)``."""

_MS_NOSUID, _MS_NODEV = 2, 4
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2
_FUSERMOUNT_TIMEOUT = 30  # seconds

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


class MountError(OSError):
    """The filesystem could not be mounted; the text is for the operator."""


def open_device() -> int:
    """A fresh descriptor of ``/dev/fuse``, non-blocking and close-on-exec.

    INVARIANT: it is never cloned (``FUSE_DEV_IOC_CLONE``): the requests that were read through a
    clone are ended with ECONNABORTED when the clone is closed (``fuse_dev_release``), while those
    read through one descriptor shared by supervisor and worker outlive the worker.
    """
    return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)


def mount(device: int, mountpoint: str | os.PathLike[str], options: MountOptions) -> None:
    """Mount the filesystem served through *device* by ``mount(2)``. Raises :class:`MountError`."""
    words = [f"fd={device}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    words += _words(options)
    fstype = f"fuse.{options.subtype}" if options.subtype else "fuse"
    result = _libc.mount(
        os.fsencode(options.source),
        os.fsencode(mountpoint),
        fstype.encode(),
        ctypes.c_ulong(_MS_NOSUID | _MS_NODEV),
        ",".join(words).encode(),
    )
    if result:
        code = ctypes.get_errno()
        raise MountError(code, f"cannot mount: {os.strerror(code)}", os.fspath(mountpoint))


def mount_with_helper(mountpoint: str | os.PathLike[str], options: MountOptions) -> int:
    """Mount as an ordinary user through the setuid helper fusermount3; the device it passes back.

    The helper writes one byte with the descriptor attached to the socket that ``_FUSE_COMMFD``
    names. Raises :class:`MountError`, with what the helper said.
    """
    helper = shutil.which("fusermount3")
    if helper is None:
        raise MountError(errno.ENOENT, "fusermount3 is not installed", os.fspath(mountpoint))
    words = _words(options)
    words += ["nosuid", "nodev", f"fsname={options.source}"]
    if options.subtype:
        words.append(f"subtype={options.subtype}")
    ours, helpers = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, helpers:
        done = subprocess.run(
            [helper, "-o", ",".join(words), "--", os.fspath(mountpoint)],
            env={**os.environ, "_FUSE_COMMFD": str(helpers.fileno())},
            pass_fds=[helpers.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_FUSERMOUNT_TIMEOUT,
            check=False,
        )
        if done.returncode:
            said = done.stderr.strip() or f"exit status {done.returncode}"
            raise MountError(errno.EPERM, f"fusermount3: {said}", os.fspath(mountpoint))
        device = _receive_descriptor(ours)
    os.set_inheritable(device, False)
    os.set_blocking(device, False)
    return device


def unmount(mountpoint: str | os.PathLike[str]) -> bool:
    """Detach the mount lazily, dead or alive. False where nothing was mounted."""
    if not is_mounted(mountpoint):
        return False
    if not _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        return True
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        return False
    helper = shutil.which("fusermount3") if code == errno.EPERM else None
    if helper is None:
        raise MountError(code, f"cannot unmount: {os.strerror(code)}", os.fspath(mountpoint))
    done = subprocess.run(
        [helper, "-u", "-z", "--", os.fspath(mountpoint)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_FUSERMOUNT_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise MountError(code, f"fusermount3: {done.stderr.strip()}", os.fspath(mountpoint))
    return True


def is_mounted(mountpoint: str | os.PathLike[str]) -> bool:
    """Whether something is mounted there. Reads the kernel's table only: never waits for a
    daemon."""
    return mount_device(mountpoint) is not None


def mount_device(mountpoint: str | os.PathLike[str]) -> str | None:
    """``MAJOR:MINOR`` of what is mounted there last, from ``/proc/self/mountinfo`` (see
    proc(5))."""
    wanted = str(Path(mountpoint).absolute())
    found = None
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        if _unescape(fields[4]) == wanted:
            found = fields[2]
    return found


def is_dead(mountpoint: str | os.PathLike[str]) -> bool:
    """Whether a mount is there whose daemon is gone: any access is ENOTCONN. A living daemon has to
    answer, so never call it in the process that serves the mount. (Not stat(2): the root's
    attributes are the kernel's for a while yet.)"""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def tune(mountpoint: str | os.PathLike[str], read_ahead_kib: int, background: int) -> None:
    """Set the readahead window of the mount, and how many readahead requests may be under way.

    To be called after the answer to INIT, which sets both anew (``process_init_reply``). Where they
    are not ours to set, they stay as they are.
    """
    number = mount_device(mountpoint)
    if number is None:
        return
    connection = Path("/sys/fs/fuse/connections", number.partition(":")[2])
    for path, value in (
        (Path("/sys/class/bdi", number, "read_ahead_kb"), read_ahead_kib),
        (connection / "congestion_threshold", background * 3 // 4),
        (connection / "max_background", background),
    ):
        try:
            path.write_text(f"{value}\n", "ascii")
        except OSError as error:
            log.debug("cannot set %s: %s", path, error)


class Connection:
    """An initialised connection, as those see it who answer requests: not its mount point."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def write(self, message: bytes | memoryview) -> None:
        """Give the kernel an answer or a notification. Raises :class:`OSError`: ENOENT where nobody
        waits for the answer, ENODEV when unmounted, EINVAL for a message that makes no sense."""
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


def _words(options: MountOptions) -> list[str]:
    words = list(options.extra)
    if options.allow_other:
        words.append("allow_other")
    if options.default_permissions:
        words.append("default_permissions")
    return words


def _receive_descriptor(sock: socket.socket) -> int:
    descriptors = array.array("i")
    sock.settimeout(_FUSERMOUNT_TIMEOUT)
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: descriptors.itemsize])
    if not descriptors:
        raise MountError(errno.EIO, "fusermount3 passed no descriptor")
    return descriptors[0]


def _unescape(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field

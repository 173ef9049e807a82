"""Mounting and unmounting: ``mount(2)``, fusermount3, dead mounts, readahead.

Owns the system calls that have to do with a FUSE mount as a whole; knows nothing of messages, trio
or pyfuse3. Sources: the kernel's Documentation/filesystems/fuse.rst (mount options), libfuse's
util/fusermount.c (``_FUSE_COMMFD``).
"""

import array
import ctypes
import errno
import logging
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .mountinfo import find, mount_device

_MS_NOSUID, _MS_NODEV = 2, 4
_UMOUNT_NOFOLLOW, _MNT_DETACH, _MNT_FORCE = 8, 2, 1
_FUSERMOUNT_TIMEOUT = 30  # seconds
_CONNECTIONS = Path("/sys/fs/fuse/connections")

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. *source* is what ``mount`` and ``df`` show in the first column."""

    source: str = "cachefs"
    subtype: str = "cachefs"
    allow_other: bool = True
    default_permissions: bool = True
    read_ahead_kib: int = 1024
    extra: tuple[str, ...] = ()


def mount(device: int, mountpoint: str | os.PathLike[str], options: MountOptions) -> None:
    """Mount the filesystem served through *device* by ``mount(2)``. Raises :class:`OSError`."""
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
        raise OSError(code, f"cannot mount: {os.strerror(code)}", os.fspath(mountpoint))


def mount_with_helper(mountpoint: str | os.PathLike[str], options: MountOptions) -> int:
    """Mount as an ordinary user through the setuid helper fusermount3; the device it passes back.

    The helper writes one byte with the descriptor attached to the socket that ``_FUSE_COMMFD``
    names. Raises :class:`OSError`, with what the helper said.
    """
    helper = shutil.which("fusermount3")
    if helper is None:
        raise OSError(errno.ENOENT, "fusermount3 is not installed", os.fspath(mountpoint))
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
            raise OSError(errno.EPERM, f"fusermount3: {said}", os.fspath(mountpoint))
        device = _receive_descriptor(ours)
    os.set_inheritable(device, False)
    os.set_blocking(device, False)
    return device


def unmount(mountpoint: str | os.PathLike[str]) -> bool:
    """Detach the mount lazily, dead or alive. False where nothing was mounted."""
    found = find(mountpoint)
    if found is None:
        return False
    mountpoint = found.mountpoint  # UMOUNT_NOFOLLOW takes no symbolic link
    if not _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        return True
    code = ctypes.get_errno()
    if code == errno.EINVAL:
        return False
    helper = shutil.which("fusermount3") if code == errno.EPERM else None
    if helper is None:
        raise OSError(code, f"cannot unmount: {os.strerror(code)}", os.fspath(mountpoint))
    done = subprocess.run(
        [helper, "-u", "-z", "--", os.fspath(mountpoint)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_FUSERMOUNT_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise OSError(code, f"fusermount3: {done.stderr.strip()}", os.fspath(mountpoint))
    return True


def is_dead(mountpoint: str | os.PathLike[str]) -> bool:
    """Whether a mount is there whose daemon is gone: any access is ENOTCONN. A living daemon has to
    answer, so never call it in the process that serves the mount. (Not stat(2): the root's
    attributes are the kernel's for a while yet.)"""
    try:
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def abort(mountpoint: str | os.PathLike[str]) -> bool:
    """Fail all that is asked of the FUSE connection that is mounted there, now and from now on:
    readers that wait for an answer in state D go on, whoever has the device open. It may be
    unmounted after that, or not. False where it could not be done.

    Through the control filesystem, whose files are the mounting user's, or, where that is not
    mounted, by a forced unmount, which is root's (the kernel's Documentation/filesystems/fuse.rst).
    """
    found = find(mountpoint)
    if found is None or not found.kind.startswith("fuse"):
        return False
    connection = _CONNECTIONS / found.device.partition(":")[2]
    try:
        (connection / "abort").write_text("1\n", "ascii")
        return True
    except OSError as error:
        log.debug("cannot abort %s: %s", connection, error)
    flags = _MNT_FORCE | _UMOUNT_NOFOLLOW
    return not _libc.umount2(os.fsencode(found.mountpoint), flags) or (
        ctypes.get_errno() == errno.EBUSY  # aborted, but still in use
    )


def tune(mountpoint: str | os.PathLike[str], read_ahead_kib: int, background: int) -> None:
    """Set the readahead window of the mount, and how many readahead requests may be under way.

    To be called after the answer to INIT, which sets both anew (``process_init_reply``). Where they
    are not ours to set, they stay as they are.
    """
    number = mount_device(mountpoint)
    if number is None:
        return
    connection = _CONNECTIONS / number.partition(":")[2]
    for path, value in (
        (Path("/sys/class/bdi", number, "read_ahead_kb"), read_ahead_kib),
        (connection / "congestion_threshold", background * 3 // 4),
        (connection / "max_background", background),
    ):
        try:
            path.write_text(f"{value}\n", "ascii")
        except OSError as error:
            log.debug("cannot set %s: %s", path, error)


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
        raise OSError(errno.EIO, "fusermount3 passed no descriptor")
    return descriptors[0]

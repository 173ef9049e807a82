"""Why libfuse could not mount: it says so on standard error alone.

Owns its words and ours for them (libfuse 3, ``lib/mount.c`` and ``util/fusermount.c``)."""

import os
import re
from collections.abc import Callable
from typing import Final

from cachefs.errors import MountError

_OURS: Final = (
    (
        re.compile(r"user_allow_other"),
        "-o allow_other is not allowed to users: /etc/fuse.conf needs a line user_allow_other",
    ),
    (
        re.compile(r"no write access to mountpoint|not owner of mountpoint"),
        "a user may mount only on a directory that is his own",
    ),
    (
        re.compile(r"exec.*fusermount|fusermount3?: (?:not found|No such file)"),
        "fusermount3 is not installed, and without it only root may mount: install fuse3",
    ),
    (
        re.compile(r"device not found|/dev/fuse: (?:No such|Permission)"),
        "/dev/fuse is missing or not ours to open: modprobe fuse, or pass it into the container",
    ),
    (
        re.compile(r"too many FUSE filesystems"),
        "there are too many FUSE mounts: see mount_max in /etc/fuse.conf",
    ),
)


def explained(mountpoint: str, begin: Callable[[], None]) -> None:
    """Call *begin*, which mounts by libfuse and raises RuntimeError where it cannot. MountError
    then, with the reason that libfuse gave meanwhile."""
    said = os.memfd_create("stderr", os.MFD_CLOEXEC)
    kept = os.dup(2)
    try:
        os.dup2(said, 2)
        try:
            begin()
        finally:
            os.dup2(kept, 2)
        if words := _read(said):
            os.write(2, words)
    except RuntimeError as error:
        raise MountError(f"cannot mount {mountpoint}: {_reason(_read(said), error)}") from error
    finally:
        os.close(kept)
        os.close(said)


def _reason(said: bytes, error: RuntimeError) -> str:
    text = said.decode(errors="replace")
    for pattern, ours in _OURS:
        if pattern.search(text):
            return ours
    lines = text.split("\n")
    if unknown := re.search(r"unknown option\(s\): `(.*)'", text):
        return f"libfuse does not know {unknown[1]}: leave it out"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"libfuse says: {last}" if last else f"libfuse failed without a reason ({error})"


def _read(fd: int) -> bytes:
    return os.pread(fd, 2**16, 0)

"""A FUSE connection as the kernel's control filesystem shows it, for ending what hangs on it."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cachefs.kernel import mountinfo

_CONNECTIONS = Path("/sys/fs/fuse/connections")


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection: its number, which another one gets later, and the directory's inode, which
    tells them apart."""

    number: str
    inode: int

    @classmethod
    def of(cls, mountpoint: str | os.PathLike[str]) -> Self | None:
        """That of what is mounted there; None where nothing is, or no control filesystem."""
        device = mountinfo.mount_device(mountpoint)
        number = device.partition(":")[2] if device else ""
        with contextlib.suppress(OSError):
            return cls(number, (_CONNECTIONS / number).stat().st_ino) if number else None
        return None

    def abort(self) -> None:
        """Fail all that is asked of it, if it is still there, mounted or detached."""
        with contextlib.suppress(OSError):
            if (_CONNECTIONS / self.number).stat().st_ino == self.inode:
                (_CONNECTIONS / self.number / "abort").write_text("1")

"""What supervisor and worker say to each other: the inherited values and the control words.

Owns the format; both ends import it, so it imports neither pyfuse3 nor trio. An upgraded worker may
be newer than its supervisor: fields are only ever added, unknown words and fields are ignored.
"""

import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from cachefs.kernel.mounting import MountOptions
from cachefs.transport.base import TransportInfo

ENVIRONMENT: Final = "CACHEFS_WORKER"

# Words of the worker.
BEAT: Final = b"beat"
STANDBY: Final = b"standby"  # shaken hands with libfuse, waiting for its turn
WAITING: Final = b"waiting"  # beats, and waits for a lock, or for a thread that makes ready
READY: Final = b"ready"  # answers requests
UNMOUNTED: Final = b"unmounted"  # and exits

# Words of the supervisor.
GO: Final = b"go"  # it is your turn
DRAIN: Final = b"drain"  # take no more requests, finish those you have, exit
STOP: Final = b"stop"  # the same, and no worker comes after you

DRAIN_SECONDS: Final = 5.0

TOLD_WHY: Final = 78  # EX_CONFIG of sysexits.h
"""Exit status of a worker that could not begin and has said why, in one line on stderr."""


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a worker is started with. *control* is -1 until then; *device* and *table* are -1 where
    the transport is plain, and so is *shown*, what is being read of control files
    (:mod:`cachefs.vfs.shown`); *document* has what the composition root hands over (see
    :func:`seal`). *alive* and *claim* are held and not used: the writing end of the pipe
    *lifeline*, which hangs up when neither the supervisor nor a worker is left, and what says that
    the cache directory is in use."""

    info: TransportInfo
    mountpoint: str
    options: MountOptions
    control: int = -1
    device: int = -1
    table: int = -1
    shown: int = -1
    document: int = -1
    lifeline: int = -1
    alive: int = -1
    claim: int = -1
    turn: bool = True
    restarts: int = 0
    quarantine: bool = False
    beat_interval: float = 1.0

    @property
    def descriptors(self) -> list[int]:
        """Those that the worker inherits."""
        own = (self.control, self.device, self.table, self.shown, self.document)
        return [fd for fd in (*own, self.lifeline, self.alive, self.claim) if fd >= 0]

    def to_text(self) -> str:
        """For the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> "Inheritance":
        """The reverse of :meth:`to_text`."""
        values = json.loads(text)
        values["info"] = TransportInfo(**_known(TransportInfo, values["info"]))
        options = _known(MountOptions, values["options"])
        options["extra"] = tuple(options.get("extra", ()))
        values["options"] = MountOptions(**options)
        return cls(**_known(cls, values))


def seal(document: bytes) -> int:
    """A descriptor of *document*, in memory, close-on-exec: no process can change it, and only its
    owner can open it through ``/proc`` (fcntl(2), file sealing)."""
    fd = os.memfd_create("document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(fd, 0o400)
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(document)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def unseal(fd: int) -> bytes:
    """The document of :func:`seal`; empty for -1. The descriptor's offset, which all workers share,
    is not used."""
    return os.pread(fd, os.fstat(fd).st_size, 0) if fd >= 0 else b""


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}

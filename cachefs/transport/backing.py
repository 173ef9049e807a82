"""Which files stand behind which nodes: what the relay asks of the filesystem above it.

Owns that protocol, and what an error in its implementation means here: no answer, and so the way
through pyfuse3. Knows no message, no device and no image.
"""

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Backing(Protocol):
    """Asked by the relay in its pump, so a look-up in memory, never a wait."""

    def backing_fd(self, nodeid: int, fh: int) -> int | None:
        """A descriptor of the complete, immutable file that all reads of *nodeid* may go to without
        the daemon from now on, or None. The relay does not keep it: it is needed only during the
        call that follows, and may be closed after the last release.

        Asked once for the first of several concurrent opens of a node; the others follow it."""

    def read_fd(self, nodeid: int, fh: int, start: int, stop: int) -> int | None:
        """A descriptor of a file, as long as the node, whose bytes [*start*, *stop*) are final, so
        that the relay may answer a READ of them by itself; or None to have pyfuse3 asked."""

    def open_here(self, nodeid: int, flags: int) -> int | None:
        """The handle of an open that is granted without asking pyfuse3 (*flags* are those of
        ``open(2)``), or None to have it asked. Called again, in the next worker, if this one dies
        before the kernel has the answer."""

    def opened_here(self, nodeid: int) -> None:
        """The kernel has the answer of :meth:`open_here`. What this does keeps nobody waiting but
        who comes next; of a worker that dies just then, it is not done."""

    def release_here(self, nodeid: int, fh: int) -> bool:
        """Whether *fh* was granted by :meth:`open_here`, of this worker or one before, so that its
        RELEASE is not pyfuse3's either. It is closed then."""


class NoBacking:
    """The policy of a filesystem without backing files."""

    def backing_fd(self, nodeid: int, fh: int) -> int | None:  # noqa: ARG002 - a protocol
        """None: no passthrough."""
        return None

    def read_fd(
        self,
        nodeid: int,  # noqa: ARG002 - a protocol
        fh: int,  # noqa: ARG002 - a protocol
        start: int,  # noqa: ARG002 - a protocol
        stop: int,  # noqa: ARG002 - a protocol
    ) -> int | None:
        """None: every READ is pyfuse3's."""
        return None

    def open_here(self, nodeid: int, flags: int) -> int | None:  # noqa: ARG002 - a protocol
        """None: every OPEN is pyfuse3's."""
        return None

    def opened_here(self, nodeid: int) -> None:
        """Nothing is opened here."""

    def release_here(self, nodeid: int, fh: int) -> bool:  # noqa: ARG002 - a protocol
        """False: every RELEASE is pyfuse3's."""
        return False


class Guarded:
    """A :class:`Backing` whose errors are logged and mean that it does not know: a bug up there
    costs speed, and never the mount."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def backing_fd(self, nodeid: int, fh: int) -> int | None:
        """See :meth:`Backing.backing_fd`."""
        return _guard(nodeid, None, lambda: self._backing.backing_fd(nodeid, fh))

    def read_fd(self, nodeid: int, fh: int, start: int, stop: int) -> int | None:
        """See :meth:`Backing.read_fd`."""
        return _guard(nodeid, None, lambda: self._backing.read_fd(nodeid, fh, start, stop))

    def open_here(self, nodeid: int, flags: int) -> int | None:
        """See :meth:`Backing.open_here`."""
        return _guard(nodeid, None, lambda: self._backing.open_here(nodeid, flags))

    def opened_here(self, nodeid: int) -> None:
        """See :meth:`Backing.opened_here`."""
        _guard(nodeid, None, lambda: self._backing.opened_here(nodeid))

    def release_here(self, nodeid: int, fh: int) -> bool:
        """See :meth:`Backing.release_here`."""
        return _guard(nodeid, False, lambda: self._backing.release_here(nodeid, fh))


def _guard(nodeid: int, otherwise: T, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception:
        log.exception("asked for the file behind node %d", nodeid)
        return otherwise

"""The files behind nodes: what a transport asks of the filesystem above it.

Owns that protocol, and what an error in its implementation means here: no answer, and so the way
through pyfuse3. Knows no message, no device and no image.

One up-call opens a file, :meth:`Backing.open`, and one gives it back, :meth:`Grant.close`. A file
answers by itself which descriptor it may be read from, as go-fuse's ``FilePassthroughFder`` does.
"""

import logging
from collections.abc import Callable
from typing import Protocol, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Grant(Protocol):
    """A file that is open under the number *handle*; one object for all opens that share it."""

    @property
    def handle(self) -> int:
        """The number by which the kernel knows it."""

    @property
    def fd(self) -> int | None:
        """A descriptor of the complete, immutable file that all reads may go to without the daemon
        from now on, or None. The transport does not keep it: the kernel has its own reference
        before the answer to the open is written. A value, not a question: to read it is no
        up-call."""

    def read_fd(self, start: int, stop: int) -> int | None:
        """A descriptor of a file, as long as the node, whose bytes [*start*, *stop*) are final, so
        that a READ of them may be answered from it; or None to have pyfuse3 asked."""

    def close(self) -> None:
        """Give one open back: once for each open that the kernel has been granted, or was to be."""


class Backing(Protocol):
    """Asked by the relay in its pump, so a look-up in memory, never a wait."""

    def open(self, nodeid: int, flags: int) -> Grant | None:
        """Open the node (*flags* are those of ``open(2)``) and count the open, or None to have
        pyfuse3 asked. Called again, in the next worker, if this one dies before the kernel has the
        answer."""

    def opened(self, handle: int) -> Grant | None:
        """The file that is open under *handle*, whether it was asked for here or by way of pyfuse3;
        None where there is none, of another worker's time for one, so that its requests are
        pyfuse3's."""


class NoBacking:
    """The policy of a filesystem without backing files."""

    def open(self, nodeid: int, flags: int) -> Grant | None:  # noqa: ARG002 - a protocol
        """None: every OPEN is pyfuse3's."""
        return None

    def opened(self, handle: int) -> Grant | None:  # noqa: ARG002 - a protocol
        """None: every READ and RELEASE is pyfuse3's."""
        return None


class Guarded:
    """A :class:`Backing` whose errors, and those of what it grants, are logged and mean that it
    does not know: a bug up there costs speed, and never the mount."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    def open(self, nodeid: int, flags: int) -> Grant | None:
        """See :meth:`Backing.open`."""
        return _guard(None, lambda: self._backing.open(nodeid, flags))

    def opened(self, handle: int) -> Grant | None:
        """See :meth:`Backing.opened`."""
        return _guard(None, lambda: self._backing.opened(handle))

    def read_fd(self, handle: int, start: int, stop: int) -> int | None:
        """See :meth:`Grant.read_fd`; None where nothing is open under *handle*."""

        def ask() -> int | None:
            grant = self._backing.opened(handle)
            return grant.read_fd(start, stop) if grant else None

        return _guard(None, ask)

    def close(self, handle: int) -> bool:
        """See :meth:`Grant.close`; False where nothing is open under *handle*."""

        def give_back() -> bool:
            grant = self._backing.opened(handle)
            if grant is not None:
                grant.close()
            return grant is not None

        return _guard(False, give_back)


def _guard(otherwise: T, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except Exception:
        log.exception("asked for the file behind a node")
        return otherwise

"""The one registry of what this worker has open, by handle number.

An open by pyfuse3 and an open by the relay are counted here alike, and so are the opens that an
earlier worker of the mount was asked for (:mod:`cachefs.vfs.takeover`). What the kernel has open is
the transport's to remember over the death of a worker (:mod:`cachefs.transport.open_table`); this
is what this worker does about it.

INVARIANT: a file is in the registry exactly while it has opens or is kept for one
(:meth:`OpenFiles.keep`), but for the moment between :meth:`OpenFiles.enter` and
:meth:`OpenFiles.grant`, in which nothing is awaited. With its last open it leaves the registry
first and is closed then. A closed file is never granted: its descriptor's number may be another
file's by then."""

from collections.abc import Callable, Iterator

from cachefs.errors import StaleError
from cachefs.vfs.handles import new_handle
from cachefs.vfs.inodes import Serials
from cachefs.vfs.nodes import OpenFile


class Grant:
    """An open file and how many opens it has; see :class:`cachefs.transport.backing.Grant`, which
    this is. *fd* is the file's :attr:`~cachefs.vfs.nodes.OpenFile.fd`."""

    __slots__ = ("_registry", "fd", "file", "handle", "kept", "opens")

    def __init__(self, registry: "OpenFiles", handle: int, file: OpenFile) -> None:
        self._registry = registry
        self.handle = handle
        self.file = file
        self.fd = file.fd
        self.opens = 0
        self.kept = 0

    def read_fd(self, start: int, stop: int) -> int | None:
        """A descriptor whose bytes [*start*, *stop*) are the file's for good, or None."""
        return self.file.read_fd(start, stop)

    def close(self) -> None:
        """One open less; the last closes the file."""
        self.opens -= 1
        self._close_if_unused()

    def let_go(self) -> None:
        """It is kept once less."""
        self.kept -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self.opens <= 0 and self.kept <= 0:
            self._registry.remove(self)


class OpenFiles:
    """Open files by handle number. For the event loop; :meth:`opened` for any thread."""

    def __init__(self, serials: Serials) -> None:
        self._serials = serials
        self._grants: dict[int, Grant] = {}

    def __len__(self) -> int:
        return len(self._grants)

    def __iter__(self) -> Iterator[Grant]:
        return iter(list(self._grants.values()))

    def opened(self, handle: int) -> Grant | None:
        """What is open under *handle*; None where that was opened through an earlier worker."""
        return self._grants.get(handle)

    def enter(self, file: OpenFile) -> None:
        """Have a file with a handle of its own seen by other threads before its open is counted."""
        self._grants.setdefault(file.handle, Grant(self, file.handle, file))

    def grant(self, file: OpenFile, inode: int, opens: int = 1) -> Grant:
        """Count *opens* opens of the file *inode*. A file with a handle of its own is shared by all
        its opens; any other gets a new one. Raises StaleError for a file that has been closed since
        it was found."""
        return self.resume(file.handle or new_handle(self._serials, inode), file, opens)

    def resume(self, handle: int, file: OpenFile, opens: int = 1) -> Grant:
        """Count *opens* opens under *handle*, by which the kernel knows the file already. Raises
        as :meth:`grant`."""
        _check_open(file)
        grant = self._grants.get(handle)
        if grant is None:
            grant = self._grants[handle] = Grant(self, handle, file)
            file.known_as(handle)
        grant.opens += opens
        return grant

    def keep(self, file: OpenFile) -> Callable[[], None]:
        """Keep a file with a handle of its own open, whatever opens it has, until the function that
        is returned is called. Raises as :meth:`grant`."""
        _check_open(file)
        grant = self._grants.setdefault(file.handle, Grant(self, file.handle, file))
        grant.kept += 1
        return grant.let_go

    def replace(self, file: OpenFile) -> None:
        """Have *file* stand for what is open under its handle, which is not closed."""
        grant = self._grants[file.handle]
        grant.file, grant.fd = file, file.fd

    def remove(self, grant: Grant) -> None:
        """Close a file that has no opens any more, or whose open came to nothing."""
        if self._grants.get(grant.handle) is grant:
            del self._grants[grant.handle]
            _close(grant.file)

    def close(self) -> None:
        """Close everything, at the end of the mount."""
        while self._grants:
            _close(self._grants.popitem()[1].file)


def _close(file: OpenFile) -> None:
    file.is_closed = bool(file.handle)
    file.close()


def _check_open(file: OpenFile) -> None:
    if file.is_closed:
        raise StaleError(f"file {file.handle} was closed while it was being opened")

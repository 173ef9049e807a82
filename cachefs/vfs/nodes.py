"""What a filesystem is made of here: nodes with attributes, directories, files, open files.

Owns the vocabulary that :mod:`cachefs.fuse` turns into FUSE's, and the defaults by which everything
is read-only. All methods run in the event loop; those that may wait are async. Names are bytes, as
the kernel gives them."""

import stat
from dataclasses import dataclass
from typing import Protocol

from cachefs.errors import (
    ImageNotFoundError,
    NotPermittedError,
    ReadOnlyError,
)
from cachefs.units import to_ns

MAX_TIMEOUT = 86400.0
"""Seconds for which the kernel may believe what never changes."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the thread's *pid* in our PID namespace (0 where it has none), and its user."""

    pid: int
    uid: int
    gid: int


NOBODY = Caller(0, 0, 0)
"""The daemon itself."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """A node's attributes. *size* is in bytes; *uid* and *gid* are None for the daemon's, times in
    nanoseconds since the epoch or None where there is none of its own; timeouts in seconds: for how
    long the kernel may believe the name and the attributes without asking again."""

    inode: int
    mode: int
    size: int = 0
    mtime_ns: int | None = None
    atime_ns: int | None = None
    uid: int | None = None
    gid: int | None = None
    entry_timeout: float = 0.0
    attr_timeout: float = 0.0

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory's."""
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose the image files are, and who may read them: *uid* and *gid* None for the daemon's,
    *mode* the permission bits. The kernel holds to it (``default_permissions``). Where the mount is
    *public*, other users can get to it, and a private image is the daemon's alone."""

    uid: int | None = None
    gid: int | None = None
    mode: int = 0o444
    public: bool = True

    def attributes(
        self,
        inode: int,
        size: int,
        *,
        private: bool,
        modified: float | None,
        accessed: float | None = None,
        entry_timeout: float = 0.0,
    ) -> Attributes:
        """Those of an image's node, which are believed for good: its bytes never change. Times in
        seconds since the epoch, None where nobody knows.

        INVARIANT: on a public mount nobody but the daemon's own user may read a *private* image,
        which others may not read at its source."""
        alone = private and self.public
        return Attributes(
            inode,
            stat.S_IFREG | (self.mode & stat.S_IRUSR if alone else self.mode),
            size,
            mtime_ns=None if modified is None else to_ns(modified),
            atime_ns=None if accessed is None else to_ns(accessed),
            uid=None if alone else self.uid,
            gid=None if alone else self.gid,
            entry_timeout=entry_timeout,
            attr_timeout=MAX_TIMEOUT,
        )


@dataclass(frozen=True, slots=True)
class StatFS:
    """The filesystem's room: *total* bytes and those still *free*, and how many *images* there
    are."""

    total: int
    free: int
    images: int


@dataclass(frozen=True, slots=True)
class Listed:
    """One name in a listing; *position* is where a listing goes on after it."""

    name: str
    attributes: Attributes
    position: int


class Listing(Protocol):
    """An open directory."""

    async def page(self, position: int, limit: int) -> list[Listed]:
        """At most *limit* names after *position* (0 is the start)."""

    def listed(self, item: Listed) -> None:
        """The kernel was told of *item*, and holds one reference more to it."""


class OpenFile:
    """An open file. *is_closed* is the registry's, of one with a handle of its own: such a file can
    be opened no more. *direct* keeps the kernel from caching its bytes; *handle* is the number by
    which the kernel knows it, 0 where any will do. *fd* is a descriptor of the whole file where it
    is complete and never changes, so that the kernel may read it without asking."""

    direct = True
    handle = 0
    fd: int | None = None
    is_closed = False

    def read_fd(self, start: int, stop: int) -> int | None:
        """A descriptor of a file, as long as this one, whose bytes [*start*, *stop*) are final; or
        None, and :meth:`read` is to be asked."""
        return None

    def known_as(self, handle: int) -> None:
        """The kernel knows it by this number, from now on or from an earlier worker."""

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """At most *size* bytes from *offset* on; fewer only at the end of the file.

        The buffer may be reused by the next read: it is to be consumed before anything is awaited.
        """
        raise NotPermittedError("this file cannot be read")

    async def write(self, offset: int, data: bytes) -> int:
        """Take *data*; the number of bytes taken, all or an error."""
        raise ReadOnlyError("this file cannot be written")

    def close(self) -> None:
        """The last open is closed."""


class Node:
    """A file or a directory that can be looked up."""

    def attributes(self) -> Attributes:
        """Its attributes now."""
        raise NotImplementedError

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        """Open it; EISDIR and the like are the kernel's to say."""
        raise NotPermittedError("this cannot be opened")

    async def xattrs(self) -> dict[str, bytes]:
        """Its extended attributes, by full name."""
        return {}

    def truncate(self) -> None:
        """The file is to be emptied, as ``echo >`` does before it writes."""
        raise ReadOnlyError("this file cannot be truncated")

    def touch(self) -> None:
        """Its times are to be set to now, as ``touch`` does; they are the cache's, so that does
        nothing."""
        raise ReadOnlyError("the times of an image are the cache's")


class Directory(Node):
    """A directory; read-only unless it says otherwise."""

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        """The node of that name, for which the kernel holds one reference more from now on.

        Raises ImageNotFoundError, and InvalidImageIDError where no such name can be.
        """
        raise ImageNotFoundError(f"no {name!r} here")

    async def open_listing(self) -> Listing:
        """Open the directory for listing."""
        raise NotImplementedError

    async def create(self, name: bytes, caller: Caller) -> tuple[Node, OpenFile]:
        """Make the file *name*, looked up and open."""
        raise ReadOnlyError("nothing can be made here")

    async def unlink(self, name: bytes) -> None:
        """Remove the file *name*."""
        raise ReadOnlyError("nothing can be removed here")


class FixedDirectory(Directory):
    """A directory whose names were decided at the start."""

    def __init__(self, inode: int, *, mode: int = 0o555, gid: int | None = None) -> None:
        self._attributes = Attributes(
            inode,
            stat.S_IFDIR | mode,
            gid=gid,
            entry_timeout=MAX_TIMEOUT,
            attr_timeout=MAX_TIMEOUT,
        )
        self._children: dict[bytes, Node] = {}

    def add(self, name: str, node: Node) -> None:
        """Add a child; only before the filesystem is mounted."""
        self._children[name.encode()] = node

    def attributes(self) -> Attributes:
        return self._attributes

    async def lookup(self, name: bytes, caller: Caller) -> Node:
        try:
            return self._children[name]
        except KeyError:
            raise ImageNotFoundError(f"no {name!r} here") from None

    async def create(self, name: bytes, caller: Caller) -> tuple[Node, OpenFile]:
        raise NotPermittedError("what stands here was decided at the start")

    async def unlink(self, name: bytes) -> None:
        raise NotPermittedError("what stands here was decided at the start")

    async def open_listing(self) -> Listing:
        return self

    async def page(self, position: int, limit: int) -> list[Listed]:
        names = list(self._children)[position : position + limit]
        return [
            Listed(name.decode(), self._children[name].attributes(), number)
            for number, name in enumerate(names, position + 1)
        ]

    def listed(self, item: Listed) -> None:
        pass  # always known

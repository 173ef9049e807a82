"""Plain control files: text that is read whole, a value that is written whole.

A file is declared (:class:`Text`, :class:`Lines`) in :mod:`cachefs.control.table`; the nodes here
are made from declarations and know no file by name. What a declaration's functions raise is what
the system call returns; they run in threads."""

import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVarTuple, Unpack

import trio

from cachefs.control.operator import Operator
from cachefs.errors import InvalidValueError, NotPermittedError
from cachefs.vfs.nodes import Attributes, Caller, Node, OpenFile
from cachefs.vfs.shown import Shown

MAX_VALUE = 4096
"""Bytes of a value: one page, as for a sysfs attribute. A write of less than a page is whole."""

MAX_CHANGES = 16
"""Changes that are made, or wait to be, at once."""

_CHANGES: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("changes")

Arguments = TypeVarTuple("Arguments")

MAX_LINE = 4096
"""Bytes of a line; no ID is nearly as long."""


@dataclass(frozen=True, slots=True)
class Text:
    """A control file. *show* gives what is read, *store* takes what is written, stripped of white
    space at its ends; without one of them the file is write-only, or read-only. *syntax* says for
    the documentation what may be written."""

    name: str
    doc: str
    show: Callable[[Operator], str] | None = None
    store: Callable[[Operator, str], None] | None = None
    syntax: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """A control file to which lines are written, any number of them; *store* takes each. All lines
    of one write are checked before the first is stored."""

    name: str
    doc: str
    show: Callable[[Operator], str]
    check: Callable[[str], object]
    store: Callable[[Operator, str], None]
    syntax: str = ""


Declared = Text | Lines


class ControlFile(Node):
    """The node of a declared file."""

    def __init__(
        self, declared: Declared, operator: Operator, inode: int, gid: int | None, shown: Shown
    ) -> None:
        self.declared = declared
        self._operator = operator
        self._shown = shown
        mode = stat.S_IFREG
        if declared.show is not None:
            mode |= 0o444
        if declared.store is not None:
            mode |= 0o200 if gid is None else 0o220
        self._attributes = Attributes(inode, mode, gid=gid, entry_timeout=60)

    def attributes(self) -> Attributes:
        return self._attributes

    async def open(self, caller: Caller, *, writing: bool) -> OpenFile:
        if isinstance(self.declared, Lines):
            return OpenLines(self.declared, self._operator, self._shown)
        return OpenText(self.declared, self._operator, self._shown)

    def truncate(self) -> None:
        """``echo >`` truncates first; there is nothing to empty."""
        if self.declared.store is None:
            raise NotPermittedError(f"{self.declared.name} is read-only")

    def touch(self) -> None:
        """Its times are not kept."""


class OpenText(OpenFile):
    """A file that shows or takes one value. What is read stays the same until it is read from the
    start again, over a new worker, too; *shown* is what keeps it for that one."""

    def __init__(self, declared: Declared, operator: Operator, shown: Shown) -> None:
        self._declared = declared
        self._operator = operator
        self._kept = shown
        self._handle = 0
        self._shown: bytes | None = None

    def known_as(self, handle: int) -> None:
        self._handle = handle

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        if self._declared.show is None:
            raise NotPermittedError(f"{self._declared.name} is write-only")
        if offset and self._shown is None:
            kept = self._kept.kept(self._handle, offset)
            if kept == b"":  # its end, and all that is known of a long one
                return kept
            self._shown = kept
        if offset == 0 or self._shown is None:
            text = await trio.to_thread.run_sync(self._declared.show, self._operator)
            self._shown = text.encode()
            self._kept.keep(self._handle, self._shown)
        return self._shown[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        if self._declared.store is None:
            raise NotPermittedError(f"{self._declared.name} is read-only")
        if offset + len(data) > MAX_VALUE:
            raise InvalidValueError(f"{self._declared.name}: over {MAX_VALUE} bytes")
        await act(self._declared.store, self._operator, decode(data).strip())
        return len(data)


class OpenLines(OpenText):
    """A file that takes lines. A line may come in several writes, when it stands where a large
    write was cut; a write of less than a page ends its last line, newline or not."""

    def __init__(self, declared: Lines, operator: Operator, shown: Shown) -> None:
        super().__init__(declared, operator, shown)
        self._lines = declared
        self._rest = b""

    async def write(self, offset: int, data: bytes) -> int:
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        if len(data) < MAX_VALUE:
            whole, rest = whole + newline + rest, b""
        if len(rest) > MAX_LINE:
            raise InvalidValueError(f"{self._declared.name}: a line of over {MAX_LINE} bytes")
        lines = [line.strip() for line in decode(whole).split("\n") if line.strip()]
        for line in lines:
            self._lines.check(line)
        self._rest = rest
        await act(self._store, lines)
        return len(data)

    def _store(self, lines: list[str]) -> None:
        for line in lines:
            self._lines.store(self._operator, line)


async def act(change: Callable[[Unpack[Arguments]], object], *arguments: *Arguments) -> None:
    """Call what changes something, in a thread. It may wait for the directory's lock for long, so
    such threads are limited by themselves: what only shows something goes on."""
    try:
        limiter = _CHANGES.get()
    except LookupError:
        limiter = trio.CapacityLimiter(MAX_CHANGES)
        _CHANGES.set(limiter)
    await trio.to_thread.run_sync(change, *arguments, limiter=limiter)


def decode(data: bytes) -> str:
    """*data* as text. Raises InvalidValueError where it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidValueError("not valid UTF-8") from None

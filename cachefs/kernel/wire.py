"""The FUSE messages that the transport must understand: parse and amend, no I/O.

Owns the numbers and layouts; must not know who sends them, nor anything of sockets, devices, trio
or pyfuse3. Everything here is the kernel's public ABI, ``include/uapi/linux/fuse.h`` (structure and
constant names are its own; protocol 7.40 brought passthrough and resending). All integers are in
the host's byte order, as there.

A message is ``fuse_in_header`` + arguments from the kernel, ``fuse_out_header`` + arguments to it.
A message to the kernel with ``unique`` 0 is a notification, whose code stands in ``error``.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

Buffer = bytes | bytearray | memoryview

IN_HEADER: Final = struct.Struct("=IIQQIIIHH")  # len opcode unique nodeid uid gid pid extlen pad
OUT_HEADER: Final = struct.Struct("=IiQ")  # len error unique
IN_HEADER_SIZE: Final = IN_HEADER.size
OUT_HEADER_SIZE: Final = OUT_HEADER.size

# fuse_init_in (major minor max_readahead flags flags2), fuse_init_out up to max_stack_depth
_INIT_IN = struct.Struct("=IIIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHII")
_OPEN_IN = struct.Struct("=II")  # flags open_flags
_OPEN_OUT = struct.Struct("=QIi")  # fh open_flags backing_id
_READ_IN = struct.Struct("=QQI")  # fh offset size ...
_RELEASE_IN = struct.Struct("=QIIQ")  # fh flags release_flags lock_owner
_U64 = struct.Struct("=Q")

ENTRY_OUT_SIZE: Final = 128
"""``sizeof(struct fuse_entry_out)`` since protocol 7.9; ``nodeid`` is its first field."""

_DIRENT = struct.Struct("=QQII")  # ino off namelen type, name follows, padded to 8
_INVAL_INODE = struct.Struct("=Qqq")  # ino off len
_INVAL_ENTRY = struct.Struct("=QII")  # parent namelen flags, name and NUL follow
_DELETE = struct.Struct("=QQII")  # parent child namelen padding, name and NUL follow

RESEND_BIT: Final = 1 << 63
"""``FUSE_UNIQUE_RESEND``: set in ``unique`` of a request that the kernel hands out again."""

OWN_BIT: Final = 1 << 62
"""Ours, not the kernel's: in ``unique`` of a request that the relay itself sends to libfuse. The
kernel counts up from 2 in steps of 2 and would need decades to arrive here."""

MIN_READ_BUFFER: Final = 8192
"""``FUSE_MIN_READ_BUFFER``."""


class Opcode(IntEnum):
    """``enum fuse_opcode``: those that the transport treats in some way of their own."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    GETXATTR = 22
    LISTXATTR = 23
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    READDIRPLUS = 44
    LSEEK = 46
    STATX = 52


class Notify(IntEnum):
    """``enum fuse_notify_code``: those that are sent."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    DELETE = 6
    RESEND = 7


class InitFlag(IntFlag):
    """Flags of INIT, both words in one: bits from 32 on stand in ``flags2``."""

    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39


class OpenFlag(IntFlag):
    """``FOPEN_*``: flags of a reply to OPEN or CREATE."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    PASSTHROUGH = 1 << 7


NO_REPLY: Final = frozenset(
    {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}
)
"""Requests that the kernel awaits no answer to."""


class WireError(Exception):
    """The message is not one that the kernel or libfuse sends."""


class Request(NamedTuple):
    """What stands in ``fuse_in_header``."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    pid: int


class ReadIn(NamedTuple):
    """``struct fuse_read_in``, the first three fields; offset and size are bytes."""

    fh: int
    offset: int
    size: int


class OpenOut(NamedTuple):
    """``struct fuse_open_out``."""

    fh: int
    flags: int
    backing_id: int


class InitOut(NamedTuple):
    """What the kernel and the daemon have agreed upon, in an answer to INIT."""

    flags: int
    max_write: int
    max_pages: int
    max_background: int
    max_stack_depth: int


def parse_request(message: Buffer) -> Request:
    """The header of a message from the kernel. Raises :class:`WireError` for less than a header."""
    try:
        length, opcode, unique, nodeid, _, _, pid, _, _ = IN_HEADER.unpack_from(message)
    except struct.error as error:
        raise WireError(f"a request of {len(message)} bytes") from error
    return Request(length, opcode, unique, nodeid, pid)


def error_reply(unique: int, error: int) -> bytes:
    """The whole answer "it failed with *error*" (an errno, positive here, negative on the wire)."""
    return OUT_HEADER.pack(OUT_HEADER_SIZE, -error, unique)


def request(opcode: int, unique: int, nodeid: int, body: bytes = b"") -> bytes:
    """A request such as the kernel would send, without a caller (uid, gid, pid 0)."""
    return IN_HEADER.pack(IN_HEADER_SIZE + len(body), opcode, unique, nodeid, 0, 0, 0, 0, 0) + body


def forget(unique: int, nodeid: int) -> bytes:
    """A FORGET of one lookup of *nodeid*."""
    return request(Opcode.FORGET, unique, nodeid, _U64.pack(1))


def release(unique: int, nodeid: int, fh: int, *, directory: bool = False) -> bytes:
    """A RELEASE (or RELEASEDIR) of the handle *fh*."""
    opcode = Opcode.RELEASEDIR if directory else Opcode.RELEASE
    return request(opcode, unique, nodeid, _RELEASE_IN.pack(fh, 0, 0, 0))


def interrupt_target(message: Buffer) -> int:
    """The unique of the request that an INTERRUPT is about."""
    return int(_U64.unpack_from(message, IN_HEADER_SIZE)[0])


def open_in_flags(message: Buffer) -> int:
    """The flags of ``open(2)`` in an OPEN or CREATE request (the first field of either)."""
    return int(_OPEN_IN.unpack_from(message, IN_HEADER_SIZE)[0])


def read_in(message: Buffer) -> ReadIn:
    """What a READ asks for."""
    return ReadIn(*_READ_IN.unpack_from(message, IN_HEADER_SIZE))


def open_out(reply: Buffer, *, create: bool = False) -> OpenOut:
    """What a successful answer to OPEN (or CREATE, where an entry stands before it) says."""
    at = OUT_HEADER_SIZE + (ENTRY_OUT_SIZE if create else 0)
    return OpenOut(*_OPEN_OUT.unpack_from(reply, at))


def open_reply(unique: int, fh: int, flags: int) -> bytearray:
    """The whole answer to an OPEN that is granted."""
    size = OUT_HEADER_SIZE + _OPEN_OUT.size
    return bytearray(OUT_HEADER.pack(size, 0, unique) + _OPEN_OUT.pack(fh, flags, 0))


def release_in_fh(message: Buffer) -> int:
    """The handle that a RELEASE is about."""
    return int(_U64.unpack_from(message, IN_HEADER_SIZE)[0])


def set_passthrough(reply: bytearray | memoryview, backing_id: int) -> None:
    """Amend a successful answer to OPEN in place: read and mmap go to the backing file.

    KEEP_CACHE is cleared: the kernel refuses it together with PASSTHROUGH
    (``fuse_file_passthrough_open``: EINVAL, seen as EIO). DIRECT_IO stays and wins for this handle:
    its reads go to the daemon.
    """
    fh, flags, _ = _OPEN_OUT.unpack_from(reply, OUT_HEADER_SIZE)
    flags &= ~OpenFlag.KEEP_CACHE
    _OPEN_OUT.pack_into(reply, OUT_HEADER_SIZE, fh, flags | OpenFlag.PASSTHROUGH, backing_id)


def entry_nodeid(reply: Buffer) -> int:
    """The node that a successful LOOKUP or CREATE found; 0 is a negative entry."""
    return int(_U64.unpack_from(reply, OUT_HEADER_SIZE)[0])


def direntplus_nodeids(reply: Buffer) -> Iterator[int]:
    """The nodes whose lookup count a successful READDIRPLUS raised: every entry that has a node,
    except ``.`` and ``..``, which the kernel does not count (``fuse_direntplus_link``)."""
    at = OUT_HEADER_SIZE
    while at + ENTRY_OUT_SIZE + _DIRENT.size <= len(reply):
        (nodeid,) = _U64.unpack_from(reply, at)
        _, _, length, _ = _DIRENT.unpack_from(reply, at + ENTRY_OUT_SIZE)
        start = at + ENTRY_OUT_SIZE + _DIRENT.size
        if nodeid and bytes(reply[start : start + length]) not in (b".", b".."):
            yield nodeid
        at += ENTRY_OUT_SIZE + (_DIRENT.size + length + 7) // 8 * 8


def init_in_flags(message: Buffer) -> int:
    """The flags that the kernel offers in INIT, 64 bits."""
    flags = int.from_bytes(message[IN_HEADER_SIZE + 12 : IN_HEADER_SIZE + 16], _BYTEORDER)
    if flags & InitFlag.INIT_EXT and len(message) >= IN_HEADER_SIZE + _INIT_IN.size:
        flags |= _INIT_IN.unpack_from(message, IN_HEADER_SIZE)[4] << 32
    return flags


def hide_splice(message: bytearray | memoryview) -> None:
    """Amend INIT in place, on its way to libfuse: do not offer to splice from the device.

    libfuse would splice each request from the socket through a pipe, for which the kernel allocates
    pages for the largest request there is (``copy_splice_read``); a plain read costs nothing.
    """
    flags = int.from_bytes(message[IN_HEADER_SIZE + 12 : IN_HEADER_SIZE + 16], _BYTEORDER)
    flags &= ~(InitFlag.SPLICE_READ | InitFlag.SPLICE_WRITE | InitFlag.SPLICE_MOVE)
    message[IN_HEADER_SIZE + 12 : IN_HEADER_SIZE + 16] = flags.to_bytes(4, _BYTEORDER)


def init_out(reply: Buffer) -> InitOut:
    """What a successful answer to INIT says (zeros for what a short, old answer does not have)."""
    body = bytes(reply[OUT_HEADER_SIZE : OUT_HEADER_SIZE + _INIT_OUT.size])
    fields = _INIT_OUT.unpack(body.ljust(_INIT_OUT.size, b"\0"))
    _, _, _, flags, background, _, max_write, _, max_pages, _, flags2, depth = fields
    if flags & InitFlag.INIT_EXT:
        flags |= flags2 << 32
    return InitOut(flags, max_write, max_pages, background, depth)


def amend_init(
    reply: bytearray | memoryview, offered: int, *, passthrough: bool, max_io: int, background: int
) -> None:
    """Amend a successful answer to INIT in place, on its way to the kernel.

    Adds HAS_RESEND, and PASSTHROUGH with a stack depth of 1 where *passthrough*, as far as the
    kernel *offered* them (64 bits); lowers the largest request to *max_io* bytes; lets *background*
    requests (readahead) be under way at once, where the kernel's own limit would be 12; and has
    PARALLEL_DIROPS, without which one lookup that waits for an origin keeps all others in its
    directory waiting (``fuse_lock_inode``), and which libfuse does not ask for. An answer
    too short to have the fields (no libfuse 3 sends one) stays as it is.
    """
    if len(reply) < OUT_HEADER_SIZE + _INIT_OUT.size:
        return
    fields = list(_INIT_OUT.unpack_from(reply, OUT_HEADER_SIZE))
    flags = fields[3] | (fields[10] << 32 if fields[3] & InitFlag.INIT_EXT else 0)
    if offered & InitFlag.INIT_EXT:
        flags |= InitFlag.INIT_EXT | offered & InitFlag.HAS_RESEND
        # The kernel takes passthrough only without the writeback cache (process_init_reply).
        if passthrough and offered & InitFlag.PASSTHROUGH and not flags & InitFlag.WRITEBACK_CACHE:
            flags |= InitFlag.PASSTHROUGH
            fields[11] = 1
    flags |= offered & InitFlag.PARALLEL_DIROPS
    fields[3], fields[10] = flags & 0xFFFFFFFF, flags >> 32
    fields[4], fields[5] = background, background * 3 // 4
    fields[6] = min(fields[6], max_io)
    if flags & InitFlag.MAX_PAGES:
        fields[8] = min(fields[8], max_io // 4096)
    _INIT_OUT.pack_into(reply, OUT_HEADER_SIZE, *fields)


def resend() -> bytes:
    """The notification that has the kernel hand out again what was read and never answered."""
    return OUT_HEADER.pack(OUT_HEADER_SIZE, Notify.RESEND, 0)


def inval_inode(nodeid: int, offset: int, length: int) -> bytes:
    """The notification to forget cached attributes, and data from *offset* on for *length* bytes
    (0: to the end; a negative offset: attributes only)."""
    size = OUT_HEADER_SIZE + _INVAL_INODE.size
    return OUT_HEADER.pack(size, Notify.INVAL_INODE, 0) + _INVAL_INODE.pack(nodeid, offset, length)


def inval_entry(parent: int, name: bytes) -> bytes:
    """The notification to forget the name *name* in *parent*."""
    body = _INVAL_ENTRY.pack(parent, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), Notify.INVAL_ENTRY, 0) + body


def delete(parent: int, child: int, name: bytes) -> bytes:
    """The notification that *name* of *parent*, the node *child*, is gone (inotify hears of it)."""
    body = _DELETE.pack(parent, child, len(name), 0) + name + b"\0"
    return OUT_HEADER.pack(OUT_HEADER_SIZE + len(body), Notify.DELETE, 0) + body


def forget_entry(parent: int, name: bytes, deleted: int = 0) -> bytes:
    """The notification to forget the name; with *deleted*, that the node is gone."""
    return delete(parent, deleted, name) if deleted else inval_entry(parent, name)


_BYTEORDER: Final = "little" if struct.pack("=H", 1) == b"\1\0" else "big"

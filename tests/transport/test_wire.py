"""The messages by themselves."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.kernel import wire
from cachefs.kernel.wire import InitFlag, Opcode, OpenFlag

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
OFFERED = InitFlag.INIT_EXT | InitFlag.PASSTHROUGH | InitFlag.HAS_RESEND
FULL = struct.Struct("=IIIIHHIIHHIIHHHHHHHHHHHH")


def init_reply(flags: int = 0, flags2: int = 0, *, pages: int = 256) -> bytearray:
    body = struct.pack(
        "=IIIIHHIIHHII24x", 7, 38, 1 << 17, flags, 0, 0, 1 << 20, 1, pages, 0, flags2, 0
    )
    return bytearray(wire.OUT_HEADER.pack(16 + len(body), 0, 2) + body)


def test_layouts_have_the_sizes_of_the_abi() -> None:
    assert (wire.IN_HEADER_SIZE, wire.OUT_HEADER_SIZE) == (40, 16)
    assert wire._OPEN_OUT.size == 16
    assert wire._INIT_OUT.size == 40
    assert wire._DIRENT.size == 24


def test_less_than_a_header_is_no_request() -> None:
    with pytest.raises(wire.WireError):
        wire.parse_request(b"x" * 39)


@given(u32, u64, u64, st.binary(max_size=64))
def test_a_request_parses_as_it_was_made(opcode: int, unique: int, node: int, body: bytes) -> None:
    message = wire.request(opcode, unique, node, body)
    assert wire.parse_request(message) == (len(message), opcode, unique, node, 0)


def test_init_gets_passthrough_and_resend_where_the_kernel_offers_them() -> None:
    reply = init_reply(InitFlag.MAX_PAGES)
    wire.amend_init(reply, OFFERED, passthrough=True, max_io=1 << 17, background=64)
    out = wire.init_out(reply)
    assert out.flags == OFFERED | InitFlag.MAX_PAGES
    assert (out.max_stack_depth, out.max_write, out.max_pages) == (1, 1 << 17, 32)
    assert out.max_background == 64


def test_init_asks_for_nothing_that_was_not_offered() -> None:
    for offered in (0, InitFlag.INIT_EXT, InitFlag.INIT_EXT | InitFlag.HAS_RESEND):
        reply = init_reply()
        wire.amend_init(reply, offered, passthrough=True, max_io=1 << 20, background=64)
        out = wire.init_out(reply)
        assert out.flags == offered
        assert out.max_stack_depth == 0


def test_init_has_no_passthrough_with_the_writeback_cache() -> None:
    reply = init_reply(InitFlag.WRITEBACK_CACHE)
    wire.amend_init(reply, OFFERED, passthrough=True, max_io=1 << 20, background=64)
    assert not wire.init_out(reply).flags & InitFlag.PASSTHROUGH


def test_an_old_short_init_is_left_alone() -> None:
    reply = init_reply()[:40]
    before = bytes(reply)
    wire.amend_init(reply, OFFERED, passthrough=True, max_io=1 << 20, background=64)
    assert bytes(reply) == before


@given(u64, u32)
def test_passthrough_clears_keep_cache_and_nothing_else(fh: int, flags: int) -> None:
    reply = bytearray(wire.OUT_HEADER.pack(32, 0, 2) + struct.pack("=QIi", fh, flags, 0))
    wire.set_passthrough(reply, 7)
    expected = flags & ~OpenFlag.KEEP_CACHE | OpenFlag.PASSTHROUGH
    assert wire.open_out(reply) == (fh, expected, 7)


def test_splice_is_hidden_from_libfuse() -> None:
    flags = InitFlag.SPLICE_READ | InitFlag.SPLICE_WRITE | InitFlag.INIT_EXT | 1
    message = bytearray(
        wire.request(Opcode.INIT, 2, 0, struct.pack("=IIIII44x", 7, 45, 0, flags, 5))
    )
    wire.hide_splice(message)
    assert wire.init_in_flags(message) == InitFlag.INIT_EXT | 1 | 5 << 32


def test_readdirplus_entries_that_count_are_found() -> None:
    def direntplus(node: int, name: bytes) -> bytes:
        entry = struct.pack("=Q", node).ljust(128, b"\0") + struct.pack("=QQII", 1, 1, len(name), 4)
        return entry + name.ljust((len(name) + 7) // 8 * 8, b"\0")

    entries = [(1, b"."), (1, b".."), (5, b"five"), (0, b"none"), (6, b"exactly8")]
    body = b"".join(direntplus(*entry) for entry in entries)
    reply = wire.OUT_HEADER.pack(16 + len(body), 0, 2) + body
    assert list(wire.direntplus_nodeids(reply)) == [5, 6]


def test_messages_of_our_own_say_how_long_they_are() -> None:
    for message in (
        wire.resend(),
        wire.inval_inode(5, 0, 0),
        wire.inval_entry(1, b"name"),
        wire.delete(1, 5, b"name"),
        wire.error_reply(2, 5),
        wire.forget(2, 5),
        wire.release(2, 5, 6),
    ):
        assert struct.unpack_from("=I", message)[0] == len(message)

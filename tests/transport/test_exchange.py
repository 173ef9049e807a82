"""What passes through the relay, with sockets for a device."""

import errno
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.kernel import wire
from cachefs.kernel.device import Connection
from cachefs.kernel.wire import InitFlag, Opcode, OpenFlag
from cachefs.transport.backing import Guarded, NoBacking
from cachefs.transport.exchange import Exchange
from cachefs.transport.open_table import OpenTable
from cachefs.transport.passthrough import Passthrough

IMAGE, HANDLE = 10, 5


class FakeConnection(Connection):
    """A socket that makes backing ids."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.ids: set[int] = set()
        self.last = 0

    def open_backing(self, fd: int) -> int:
        self.last += 1
        self.ids.add(self.last)
        return self.last

    def close_backing(self, backing_id: int) -> bool:
        self.ids.remove(backing_id)
        return True


@dataclass
class Granted:
    """A file that is open."""

    handle: int
    fd: int | None = None
    file: int | None = None
    closed: list[int] = field(default_factory=list)

    def read_fd(self, start: int, stop: int) -> int | None:
        return self.file

    def close(self) -> None:
        self.closed.append(self.handle)


class Images(NoBacking):
    """What pyfuse3 has opened as :data:`HANDLE` is an image."""

    def opened(self, handle: int) -> Granted | None:
        return Granted(handle, 1) if handle == HANDLE else None


class Bench:
    """An exchange between a socket in the kernel's place and lists in libfuse's."""

    def __init__(self, **options: Any) -> None:
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.device = device
        self.connection = FakeConnection(device.fileno())
        self.table_fd = OpenTable.create(slots=64)
        self.table = OpenTable(self.table_fd)
        backing = Guarded(options.pop("backing", None) or Images())
        self.opens = Passthrough(self.connection, self.table, passthrough=True)
        self.sent: list[bytes] = []
        self.notified: list[bytes] = []
        self.exchange = Exchange(
            self.connection,
            self.table,
            self.opens,
            backing,
            send=self.sent.append,
            notify=self.notified.append,
            passthrough=True,
            **options,
        )

    def request(self, message: bytes) -> bytes | None:
        """What libfuse gets of a message from the kernel."""
        view = memoryview(bytearray(message))
        return bytes(view) if self.exchange.request(view) else self.exchange.serve_read()

    def reply(self, message: bytes) -> bytes | None:
        """What the kernel gets of a message from libfuse."""
        self.exchange.reply(memoryview(bytearray(message)))
        return self.received()

    def received(self) -> bytes | None:
        with suppress(BlockingIOError):
            return self.kernel.recv(1 << 21)
        return None

    def close(self) -> None:
        self.kernel.close()
        self.device.close()
        self.table.close()
        os.close(self.table_fd)


@contextmanager
def bench(**options: Any) -> Iterator[Bench]:
    made = Bench(**options)
    try:
        yield made
    finally:
        made.close()


def ok(unique: int, body: bytes = b"") -> bytes:
    return wire.OUT_HEADER.pack(16 + len(body), 0, unique) + body


def open_request(unique: int, node: int = IMAGE, flags: int = os.O_RDONLY) -> bytes:
    return wire.request(Opcode.OPEN, unique, node, struct.pack("=II", flags, 0))


def opened(unique: int, fh: int = 5, flags: int = OpenFlag.KEEP_CACHE) -> bytes:
    return ok(unique, struct.pack("=QIi", fh, flags, 0))


def entry(node: int) -> bytes:
    return struct.pack("=Q", node).ljust(wire.ENTRY_OUT_SIZE, b"\0")


def interrupt(unique: int) -> bytes:
    return wire.request(Opcode.INTERRUPT, unique | 1, 0, struct.pack("=Q", unique))


# --- the fuzzer -----------------------------------------------------------------------------------

opcodes = st.one_of(st.integers(1, 60), st.sampled_from([4096, 1 << 31]))
SPECIAL = {int(o) for o in (Opcode.INIT, Opcode.INTERRUPT, Opcode.OPEN, Opcode.CREATE)}
plain_opcodes = opcodes.filter(lambda opcode: opcode not in SPECIAL)
bodies = st.binary(min_size=40, max_size=300)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("request"), plain_opcodes, bodies),
        st.tuples(st.just("open"), st.sampled_from([IMAGE, 20, 21]), st.integers(0, 3)),
        st.tuples(st.just("interrupt"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("answer"), st.integers(0, 9), st.binary(max_size=300)),
        st.tuples(st.just("fail"), st.integers(0, 9), st.integers(1, 133)),
        st.tuples(st.just("notify"), st.integers(1, 9), st.binary(max_size=100)),
        st.tuples(st.just("stray"), st.integers(1, 1 << 60), st.binary(max_size=100)),
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(actions, st.booleans())
def test_any_message_is_forwarded_unharmed(  # noqa: C901 - one branch for each kind of message
    script: list[Any], resent: bool
) -> None:
    killed: set[int] = set()
    with bench(wants_to_end=lambda _: bool(killed)) as b:
        out: dict[int, tuple[str, int, int]] = {}  # what libfuse has: kind, opcode, node
        asked: set[int] = set()  # interrupted, and of those answered EINTR:
        eintr: set[int] = set()
        unique = 0
        for kind, first, second in script:
            unique += 2
            number = unique | (wire.RESEND_BIT if resent else 0)
            if kind == "request":
                message = wire.request(first, number, 20, second)
                assert b.request(message) == message
                if first not in wire.NO_REPLY:
                    out[number] = (kind, first, 20)
            elif kind == "open":
                message = open_request(number, first, second)
                assert b.request(message) == message
                out[number] = (kind, Opcode.OPEN, first)
            elif kind == "interrupt" and out:
                target = list(out)[first % len(out)]
                killed = {1} if second else set()
                assert b.request(interrupt(target)) is None
                asked.add(target)
                while (answer := b.received()) is not None:
                    _, _, ended = wire.OUT_HEADER.unpack(answer)
                    assert answer == wire.error_reply(ended, errno.EINTR)
                    assert ended in asked - eintr
                    eintr.add(ended)
            elif kind in ("answer", "fail") and out:
                number = list(out)[first % len(out)]
                what, opcode, _ = out.pop(number)
                if kind == "fail":
                    message = wire.error_reply(number, second)
                elif what == "open":
                    message = opened(number)
                elif opcode == Opcode.LOOKUP:
                    message = ok(number, entry(20))
                elif opcode in (Opcode.OPENDIR, Opcode.READDIRPLUS):
                    message = opened(number)
                else:
                    message = ok(number, second)
                got = b.reply(message)
                if number in eintr:
                    assert got is None
                elif what == "open" and kind == "answer":
                    assert got is not None
                    assert got[:24] == message[:24]
                    assert len(got) == len(message)
                else:
                    assert got == message
            elif kind == "notify":
                message = wire.OUT_HEADER.pack(16 + len(second), first, 0) + second
                assert b.reply(message) is None
                assert b.notified.pop() == message
            elif kind == "stray" and first not in out and first not in eintr:
                message = ok(first, second)
                assert b.reply(message) == message
            assert b.received() is None, "nothing else is said to the kernel"
        assert set(b.exchange._out) == set(out) - eintr
        assert set(b.exchange._swallow) == eintr & set(out)


# --- amendments -----------------------------------------------------------------------------------


def test_concurrent_opens_share_one_backing_id_until_the_last_release() -> None:
    with bench() as b:
        for unique in (2, 4):
            b.request(open_request(unique))
            got = b.reply(opened(unique))
            assert got is not None
            assert wire.open_out(got) == (5, OpenFlag.PASSTHROUGH, 1)
        for unique, left in ((6, {1}), (8, set())):
            b.request(wire.release(unique, IMAGE, 5))
            b.reply(ok(unique))
            assert b.connection.ids == left
        assert b.opens.nodes() == {}


def test_an_open_for_writing_is_never_passed_through() -> None:
    with bench() as b:
        b.request(open_request(2, flags=os.O_RDWR))
        assert b.reply(opened(2)) == opened(2)


def test_a_backing_policy_that_raises_is_no_passthrough(caplog: Any) -> None:
    class Broken(NoBacking):
        def opened(self, handle: int) -> Granted | None:
            raise ValueError("broken")

    with bench(backing=Broken()) as b:
        b.request(open_request(2))
        assert b.reply(opened(2)) == opened(2)
    assert "broken" in caplog.text


def test_the_answer_to_init_is_amended_and_the_request_kept_for_the_next_worker() -> None:
    body = struct.pack("=IIIII44x", 7, 45, 1 << 17, InitFlag.INIT_EXT | InitFlag.SPLICE_READ, 0xA0)
    message = wire.request(Opcode.INIT, 2, 0, body)
    with bench() as b:
        forwarded = b.request(message)
        assert forwarded is not None
        assert not wire.init_in_flags(forwarded) & InitFlag.SPLICE_READ
        assert b.table.init_request == message
        answer = struct.pack("=IIIIHHIIHHII24x", 7, 38, 0, 0, 0, 0, 1 << 20, 1, 256, 0, 0, 0)
        got = b.reply(ok(2, answer))
        assert got is not None
        assert wire.init_out(got).flags & InitFlag.PASSTHROUGH
        assert b.table.init_answered


# --- interrupts -----------------------------------------------------------------------------------


def interrupted(b: Bench, message: bytes) -> None:
    unique = wire.parse_request(message).unique
    assert b.request(message) == message
    assert b.request(interrupt(unique)) is None
    assert b.received() == wire.error_reply(unique, errno.EINTR)


def given_back(b: Bench) -> list[tuple[int, int, bytes]]:
    found = []
    for message in b.sent:
        header = wire.parse_request(message)
        assert header.unique & wire.OWN_BIT
        found.append((header.opcode, header.nodeid, message[40:48]))
    return found


def test_an_open_answered_eintr_is_released_when_it_succeeds_after_all() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        interrupted(b, open_request(2))
        assert b.reply(opened(2, fh=7)) is None
        assert given_back(b) == [(Opcode.RELEASE, IMAGE, struct.pack("=Q", 7))]
        assert b.reply(ok(wire.parse_request(b.sent[0]).unique)) is None
        assert b.opens.nodes() == {}
        assert b.connection.ids == set()


def test_a_lookup_answered_eintr_is_forgotten_when_it_succeeds_after_all() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        interrupted(b, wire.request(Opcode.LOOKUP, 2, 1, b"name\0"))
        assert b.reply(ok(2, entry(33))) is None
        assert given_back(b) == [(Opcode.FORGET, 33, struct.pack("=Q", 1))]


def test_what_fails_after_eintr_leaves_nothing_to_give_back() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        interrupted(b, open_request(2))
        assert b.reply(wire.error_reply(2, errno.EIO)) is None
        assert b.sent == []


def test_a_change_is_never_answered_eintr() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        for unique, opcode in ((2, 10), (4, 16), (6, 35), (8, 18)):
            message = wire.request(opcode, unique, 1, bytes(40))
            assert b.request(message) == message
            assert b.request(interrupt(unique)) is None
            assert b.received() is None


def test_a_signal_that_does_not_end_the_caller_is_no_eintr_until_one_does() -> None:
    ends = False
    with bench(wants_to_end=lambda _: ends) as b:
        b.request(open_request(2))
        assert b.request(interrupt(2)) is None
        assert b.received() is None
        assert b.exchange.waiting
        ends = True
        b.exchange.check_interrupted()
        assert b.received() == wire.error_reply(2, errno.EINTR)


def test_a_read_behind_readahead_lets_go_of_a_caller_who_wants_to_end() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        b.request(wire.request(15, 2, 1, bytes(40)))
        for expected in (None, wire.error_reply(2, errno.EINTR)):
            b.exchange.watch_reads()
            b.exchange.check_interrupted()
            assert b.received() == expected


def test_an_interrupt_of_what_is_answered_is_dropped() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        assert b.request(interrupt(2)) is None
        assert b.received() is None


def test_in_quarantine_what_is_resent_fails_but_releases_pass() -> None:
    with bench(quarantine=True, backing=NoBacking()) as b:
        unique = 2 | wire.RESEND_BIT
        assert b.request(open_request(unique)) is None
        assert b.received() == wire.error_reply(unique, errno.EIO)
        assert b.request(open_request(4)) is not None
        assert b.request(wire.release(6 | wire.RESEND_BIT, IMAGE, 5)) is not None


# --- opens answered here --------------------------------------------------------------------------


def test_an_open_and_its_release_can_be_answered_without_libfuse() -> None:
    class Here(NoBacking):
        def __init__(self) -> None:
            self.held: list[int] = []
            self.closed: list[int] = []

        def open(self, nodeid: int, flags: int) -> Granted:
            self.held.append(nodeid)
            return Granted(77, 1, closed=self.closed)

        def opened(self, handle: int) -> Granted | None:
            return Granted(handle, 1, closed=self.closed) if handle == 77 else None

    policy = Here()
    with bench(backing=policy) as b:
        assert b.request(open_request(2)) is None
        got = b.received()
        assert got is not None
        assert wire.open_out(got) == (77, OpenFlag.PASSTHROUGH, 1)
        assert (policy.held, policy.closed) == ([IMAGE], [])
        assert b.request(wire.release(4, IMAGE, 77)) is None
        assert b.received() == ok(4)
        assert (policy.held, policy.closed) == ([IMAGE], [77])
        assert b.connection.ids == set()
        assert b.exchange.idle


# --- reads answered here --------------------------------------------------------------------------


def read(unique: int, offset: int, size: int) -> bytes:
    body = struct.pack("=QQIIQII", 5, offset, size, 0, 0, 0, 0)
    return wire.request(Opcode.READ, unique, IMAGE, body)


def test_what_comes_after_reads_goes_before_them_and_they_stay_in_order() -> None:
    with bench() as b:
        reads = [read(unique, 0, 4096) for unique in (2, 4, 6)]
        for message in reads:
            assert not b.exchange.request(memoryview(bytearray(message)))
        assert b.exchange.request(memoryview(bytearray(open_request(8))))
        assert not b.exchange.idle
        assert [b.exchange.serve_read() for _ in range(4)] == [*reads, None]
        assert [b.reply(ok(unique)) for unique in (2, 4, 6)] == [ok(2), ok(4), ok(6)]


def test_a_read_interrupted_before_its_turn_is_answered_eintr() -> None:
    with bench(wants_to_end=lambda _: True) as b:
        assert not b.exchange.request(memoryview(bytearray(read(2, 0, 4096))))
        assert b.request(interrupt(2)) == read(2, 0, 4096)
        b.exchange.check_interrupted()
        assert b.received() == wire.error_reply(2, errno.EINTR)
        assert b.reply(ok(2)) is None


def test_a_read_is_answered_from_the_file_but_never_short_before_its_end() -> None:
    class Here(NoBacking):
        def opened(self, handle: int) -> Granted | None:
            return Granted(handle, file=file.fileno())

    with tempfile.TemporaryFile() as file, bench(backing=Here()) as b:
        file.write(b"0123456789")
        file.flush()
        for unique, offset, size, data in ((2, 0, 4, b"0123"), (4, 8, 4, b"89"), (6, 10, 4, b"")):
            assert b.request(read(unique, offset, size)) is None
            assert b.received() == ok(unique, data)
        assert b.exchange.idle

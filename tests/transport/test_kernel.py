"""What the transport believes of the kernel, asked of the kernel itself."""

import errno
import fcntl
import os
import signal
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from cachefs.kernel import mounting, wire
from cachefs.kernel.wire import Opcode, OpenFlag
from tests.support.mounted import LIMIT
from tests.support.rawfuse import SIZE, open_out, raw_server, run

STAT = "print(os.stat(sys.argv[1]).st_size)"
OPEN = "fd = os.open(sys.argv[1], os.O_RDONLY); print('opened', flush=True); sys.stdin.readline()"
FUSE_DEV_IOC_CLONE = 0x8004E500
INTERRUPT_BIT = 1
"""Ordinary uniques are even; an INTERRUPT's own is that of its request plus this."""


def test_an_unanswered_request_is_resent_with_bit_63_and_answered_by_that_number() -> None:
    with raw_server() as server, run(server, STAT) as process:
        first = server.next(Opcode.LOOKUP)
        assert server.poll(0.1) is None
        server.resend()
        again = server.next(Opcode.LOOKUP)
        assert again.unique == first.unique | wire.RESEND_BIT
        assert again.body == first.body
        with pytest.raises(FileNotFoundError):
            server.fail(first, errno.EIO)
        server.answer_usual(again)
        assert server.finish(process) == str(SIZE)


def test_a_request_can_be_resent_twice() -> None:
    with raw_server() as server, run(server, STAT) as process:
        first = server.next(Opcode.LOOKUP)
        server.resend()
        server.next(Opcode.LOOKUP)
        server.resend()
        again = server.next(Opcode.LOOKUP)
        assert again.unique == first.unique | wire.RESEND_BIT
        server.answer_usual(again)
        assert server.finish(process) == str(SIZE)


def test_an_answered_request_is_not_resent_and_a_second_answer_is_enoent() -> None:
    with raw_server() as server, run(server, STAT) as process:
        first = server.next(Opcode.LOOKUP)
        server.answer_usual(first)
        with pytest.raises(FileNotFoundError):
            server.answer_usual(first)
        server.usual_until_idle()
        server.resend()
        assert server.poll(0.2) is None
        assert server.finish(process) == str(SIZE)


def test_init_itself_is_resent_before_it_is_answered() -> None:
    with raw_server(init=False) as server:
        first = server.next(Opcode.INIT)
        server.resend()
        again = server.next(Opcode.INIT)
        assert again.unique == first.unique | wire.RESEND_BIT
        assert server.answer_init(again) & wire.InitFlag.HAS_RESEND


def test_forget_is_not_resent() -> None:
    with raw_server() as server:
        with run(server, STAT) as process:
            assert server.finish(process) == str(SIZE)
        server.connection.write(wire.inval_entry(1, b"f"))
        forgotten = server.next(Opcode.FORGET, Opcode.BATCH_FORGET)
        assert forgotten.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET)
        server.resend()
        assert server.poll(0.3) is None


def test_release_is_resent() -> None:
    with raw_server() as server, run(server, OPEN) as process:
        server.answer_usual(server.next(Opcode.OPEN))
        server.finish(process, until=Opcode.RELEASE)
        first = server.kept
        assert first is not None
        server.resend()
        assert server.next(Opcode.RELEASE).unique == first.unique | wire.RESEND_BIT


def test_interrupt_comes_once_and_again_after_a_resend() -> None:
    with raw_server() as server, run(server, STAT) as process:
        first = server.next(Opcode.LOOKUP)
        process.send_signal(signal.SIGTERM)
        interrupt = server.next(Opcode.INTERRUPT)
        assert interrupt.unique == first.unique | INTERRUPT_BIT
        assert wire.interrupt_target(interrupt.data) == first.unique
        process.send_signal(signal.SIGINT)
        assert server.poll(0.2) is None, "a second signal is not told"
        server.resend()
        again = server.next(Opcode.LOOKUP)
        interrupt = server.next(Opcode.INTERRUPT)
        assert wire.interrupt_target(interrupt.data) == again.unique == first.unique | 1 << 63
        assert interrupt.unique == again.unique | INTERRUPT_BIT
        server.fail(again, errno.EINTR)
        assert process.wait(LIMIT) == -signal.SIGTERM


def test_a_killed_process_waits_for_the_answer_to_a_request_that_was_read() -> None:
    with raw_server() as server, run(server, STAT) as process:
        first = server.next(Opcode.LOOKUP)
        process.kill()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        server.next(Opcode.INTERRUPT)
        server.fail(first, errno.EINTR)
        assert process.wait(LIMIT) == -signal.SIGKILL


def test_the_death_of_a_process_that_shares_the_descriptor_ends_no_request() -> None:
    with raw_server() as server, run(server, STAT) as process:
        child = os.fork()
        if child == 0:
            server.next(Opcode.LOOKUP)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert process.poll() is None
        assert server.poll(0.2) is None
        server.resend()
        server.answer_usual(server.next(Opcode.LOOKUP))
        assert server.finish(process) == str(SIZE)


def test_closing_a_clone_aborts_what_was_read_through_it() -> None:
    with raw_server() as server, run(server, "os.stat(sys.argv[1])") as process:
        clone = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(clone, FUSE_DEV_IOC_CLONE, struct.pack("=I", server.fd))
        assert server.poll(5, fd=clone) is not None
        os.close(clone)
        assert "ConnectionAbortedError" in server.finish(process)


def test_unmounting_wakes_a_reader_of_the_device_with_enodev() -> None:
    with raw_server() as server:
        woken: list[object] = []
        os.set_blocking(server.fd, True)

        def block() -> None:
            try:
                os.readv(server.fd, [bytearray(1 << 21)])
            except OSError as error:
                woken.append(errno.errorcode[error.errno or 0])

        thread = threading.Thread(target=block)
        thread.start()
        time.sleep(0.1)
        mounting.unmount(server.mountpoint)
        thread.join(LIMIT)
        assert woken == ["ENODEV"]


def test_backing_ids_rise_and_are_not_used_again_at_once() -> None:
    with raw_server() as server, tempfile.TemporaryFile() as file:
        ids = []
        for _ in range(5):
            ids.append(server.connection.open_backing(file.fileno()))
            server.connection.close_backing(ids[-1])
        assert ids == [1, 2, 3, 4, 5]
        assert not server.connection.close_backing(6)


def test_open_modes_that_do_not_go_together_are_eio() -> None:
    passthrough, direct = OpenFlag.PASSTHROUGH, OpenFlag.DIRECT_IO
    with raw_server() as server, tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        one, other = (server.connection.open_backing(file.fileno()) for _ in range(2))

        def outcome(first: bytes, second: bytes) -> str:
            with run(server, OPEN) as holder:
                server.reply(server.next(Opcode.OPEN), first)
                server.usual_until_idle(0.2)
                with run(server, OPEN) as process:
                    server.reply(server.next(Opcode.OPEN), second)
                    server.usual_until_idle(0.2)
                    result = server.finish(process)
                server.usual_until_idle(0.2)
                server.finish(holder)
                server.usual_until_idle(0.2)
            return "EIO" if "Errno 5" in result else result

        with_one = open_out(0, passthrough, one)
        assert outcome(with_one, with_one) == "opened"
        assert outcome(with_one, open_out(0, passthrough, other)) == "EIO"
        assert outcome(with_one, open_out()) == "EIO"
        assert outcome(open_out(), with_one) == "EIO"
        assert outcome(open_out(0, direct), with_one) == "opened"
        assert outcome(with_one, open_out(0, direct)) == "EIO"
        assert outcome(with_one, open_out(0, direct | passthrough, one)) == "opened"
        keep = open_out(0, passthrough | OpenFlag.KEEP_CACHE, one)
        assert outcome(with_one, keep) == "EIO"


def test_a_short_answer_to_read_is_the_end_of_the_file() -> None:
    code = "print(len(open(sys.argv[1], 'rb').read())); print(os.stat(sys.argv[1]).st_size)"
    with raw_server() as server, run(server, code) as process:
        read = server.next(Opcode.OPEN)
        server.reply(read, open_out())
        server.reply(server.next(Opcode.READ), b"x" * 100)
        assert server.finish(process).splitlines()[0] == "100"

"""The relay with a socket for a kernel: the real transport and pyfuse3, no mount, every message in
the test's hands. How an answer that the kernel refuses is undone is tests/transport's."""

import errno
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cachefs.kernel import wire
from cachefs.kernel.wire import InitFlag, Notify, OpenFlag
from cachefs.transport.exchange import MAX_IO
from cachefs.vfs.inodes import ROOT_INODE
from tests.support.socket_kernel import OFFERED
from tests.support.socket_mount import Worker, served

PAGE = 4096
DATA = os.urandom(4 * PAGE + 77)


# --- the handshake --------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("offered", [OFFERED, OFFERED & ~InitFlag.PASSTHROUGH])
def test_init_has_passthrough_where_it_is_offered_and_asked_for(
    offered: InitFlag, asked: bool
) -> None:
    with served({}, passthrough=asked, offered=offered) as s:
        flags = wire.init_out(s.init.message).flags
        assert bool(flags & InitFlag.PASSTHROUGH) == bool(asked and offered & InitFlag.PASSTHROUGH)


def test_init_is_amended_with_what_the_relay_needs() -> None:
    with served({}) as s:
        said = wire.init_out(s.init.message)
        assert said.flags & InitFlag.HAS_RESEND
        assert said.flags & InitFlag.PARALLEL_DIROPS
        assert said.max_write == MAX_IO
        assert said.max_pages == MAX_IO // PAGE


def test_init_promises_nothing_that_an_old_kernel_does_not_offer() -> None:
    with served({}, passthrough=True, offered=InitFlag(0)) as s:
        assert not wire.init_out(s.init.message).flags & OFFERED


def test_the_next_worker_serves_without_another_init() -> None:
    with served({"file": DATA}) as s:
        s.restart()
        assert s.kernel.size(s.kernel.lookup("file")) == len(DATA)


# --- requests and answers -------------------------------------------------------------------------


def test_a_file_is_looked_up_opened_read_and_released_through_pyfuse3() -> None:
    with served({"file": DATA}) as s:
        node = s.kernel.lookup("file")
        assert s.kernel.size(node) == len(DATA)
        handle = s.kernel.open(node)
        assert s.kernel.read(handle, PAGE, 2 * PAGE) == DATA[PAGE : 3 * PAGE]
        assert s.kernel.counted() == s.kernel.opens == {node: 1}
        s.kernel.release(handle)
        assert s.kernel.counted() == {}
        seen = s.worker.stats()["seen"]
        assert [seen[name] for name in ("lookup", "open", "read", "release")] == [1, 1, 1, 1]


def test_an_error_of_a_handler_is_the_answer() -> None:
    with served({}) as s, pytest.raises(FileNotFoundError):
        s.kernel.lookup("nothing")


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 65537, MAX_IO])
def test_an_answer_of_pyfuse3_larger_than_a_page_arrives_whole(size: int) -> None:
    content = os.urandom(MAX_IO)
    with served({"file": content}) as s:
        handle = s.kernel.open(s.kernel.lookup("file"))
        assert s.kernel.read(handle, 0, size) == content[:size]


def test_many_large_answers_at_once_all_arrive() -> None:
    """The socket has room for every answer there can be."""
    content = os.urandom(MAX_IO)
    with served({"file": content}) as s:
        handle = s.kernel.open(s.kernel.lookup("file"))
        reads = [s.kernel.send_read(handle, 0, MAX_IO) for _ in range(100)]
        assert all(s.kernel.result(unique) == content for unique in reads)


def test_other_requests_go_before_reads_that_wait_and_those_stay_in_order() -> None:
    with served({"img-read": DATA, "img-other": DATA}) as s:
        other = s.kernel.lookup("img-other")
        handle = s.kernel.open(s.kernel.lookup("img-read"))
        with stopped(s.worker):
            reads = [s.kernel.send_read(handle, n * PAGE, PAGE) for n in range(4)]
            opening = s.kernel.send_open(other)
        for unique in reads:
            s.kernel.result(unique)
        assert s.kernel.order[-5:] == [opening, *reads]


@contextmanager
def stopped(worker: Worker) -> Iterator[None]:
    """What is sent meanwhile is all there when the worker goes on."""
    worker.stop()
    try:
        yield
    finally:
        worker.go_on()


# --- what the relay answers by itself -------------------------------------------------------------


def test_an_open_granted_by_the_backing_is_answered_without_pyfuse3() -> None:
    with served({"img": DATA}) as s:
        node = s.kernel.lookup("img")
        handle = s.kernel.open(node)
        stats = s.worker.stats()
        assert stats["granted"] == [[node, 1]]
        assert "open" not in stats["seen"]
        assert s.kernel.counted() == {node: 1}
        s.kernel.release(handle)
        assert "release" not in s.worker.stats()["seen"]


def test_a_release_gives_back_the_grant_of_its_own_handle_and_no_other() -> None:
    with served({"img-one": DATA, "img-two": DATA}) as s:
        one, two = s.kernel.lookup("img-one"), s.kernel.lookup("img-two")
        handles = [s.kernel.open(node) for node in (one, one, two)]
        s.kernel.release(handles[0])
        assert s.worker.stats()["granted"] == [[one, 1], [two, 1]]
        s.kernel.release(handles[2])
        assert s.worker.stats()["granted"] == [[one, 1]]
        s.kernel.release(handles[1])
        assert s.worker.stats()["granted"] == []
        assert s.kernel.counted() == {}


def test_a_file_that_pyfuse3_opened_with_a_grant_is_read_and_released_by_the_relay() -> None:
    with served({"asked": DATA}) as s:
        handle = s.kernel.open(s.kernel.lookup("asked"))
        assert s.kernel.read(handle, 0, PAGE) == DATA[:PAGE]
        s.kernel.release(handle)
        stats = s.worker.stats()
        assert stats["granted"] == []
        assert stats["reads_here"] == 1
        assert stats["seen"]["open"] == 1
        assert not {"read", "release"} & set(stats["seen"])


def test_reads_of_what_the_backing_has_are_answered_by_the_relay_and_others_by_pyfuse3() -> None:
    content = os.urandom(4 * PAGE)
    with served({"half": content}) as s:
        handle = s.kernel.open(s.kernel.lookup("half"))
        assert s.kernel.read(handle, PAGE, PAGE) == content[PAGE : 2 * PAGE]
        stats = s.worker.stats()
        assert (stats["reads_here"], stats["seen"].get("read", 0)) == (1, 0)
        assert s.kernel.read(handle, PAGE, 2 * PAGE) == content[PAGE : 3 * PAGE]
        stats = s.worker.stats()
        assert (stats["reads_here"], stats["seen"].get("read", 0)) == (1, 1)


@pytest.mark.parametrize("offset", [len(DATA) - 10, len(DATA), len(DATA) + PAGE])
def test_a_read_at_the_end_of_the_file_is_short_whoever_answers(offset: int) -> None:
    with served({"img": DATA, "file": DATA}) as s:
        for name in ("img", "file"):
            handle = s.kernel.open(s.kernel.lookup(name))
            assert s.kernel.read(handle, offset, PAGE) == DATA[offset:]


def test_a_kernel_that_refuses_the_backing_file_costs_speed_only() -> None:
    with served({"img": DATA}, passthrough=True) as s:
        assert wire.init_out(s.init.message).flags & InitFlag.PASSTHROUGH
        node = s.kernel.lookup("img")
        handles = [s.kernel.open(node) for _ in range(2)]
        for handle in handles:
            assert handle.backing_id == 0
            assert not handle.flags & OpenFlag.PASSTHROUGH
            assert s.kernel.read(handle, 0, len(DATA)) == DATA
        assert s.kernel.counted() == {node: 2}
        assert s.kernel.table.orphans() == [], "no backing id is looked for after a kill"


# --- notifications --------------------------------------------------------------------------------


def test_notifications_arrive_in_order_whoever_sends_them() -> None:
    with served({}) as s:
        s.worker.command("inode", 5, False)
        s.worker.command("entry", "one")
        s.worker.command("delete", "two", 7)
        s.worker.command("inode", 6, True)
        body = struct.Struct("=Qqq")
        assert s.kernel.wait_for_notifications(4) == [
            (Notify.INVAL_INODE, body.pack(5, 0, 0)),
            (Notify.INVAL_ENTRY, struct.pack("=QII", 1, 3, 0) + b"one\0"),
            (Notify.DELETE, struct.pack("=QQII", 1, 7, 3, 0) + b"two\0"),
            (Notify.INVAL_INODE, body.pack(6, -1, 0)),
        ]


def test_a_notification_of_pyfuse3_passes() -> None:
    with served({}) as s:
        s.worker.command("pyfuse3-inode", 5)
        (only,) = s.kernel.wait_for_notifications(1)
        assert only.code == Notify.INVAL_INODE
        assert struct.unpack_from("=Q", only.body) == (5,)


def test_requests_are_answered_between_notifications() -> None:
    with served({"file": DATA}) as s:
        for number in range(50):
            s.worker.command("inode", number, False)
            assert s.kernel.lookup("file") == 2
        told = s.kernel.wait_for_notifications(50)
        assert [struct.unpack_from("=Q", body)[0] for _, body in told] == list(range(50))


# --- interrupts -----------------------------------------------------------------------------------


class Task:
    """A process in the place of the one that waits for an answer."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["sleep", "300"])
        self.pid = self.process.pid
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def wants_to_end(self) -> None:
        """A signal that kills is pending, and stays so: the process is stopped."""
        os.kill(self.pid, signal.SIGTERM)


@pytest.fixture
def task() -> Iterator[Task]:
    made = Task()
    yield made
    made.process.kill()
    made.process.wait()


def test_an_interrupted_lookup_whose_task_ends_is_eintr_and_forgotten_when_it_succeeds(
    task: Task,
) -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one", pid=task.pid)
        s.worker.wait_for("waiting")
        task.wants_to_end()
        s.kernel.interrupt(looking)
        assert s.kernel.answer(looking).error == errno.EINTR
        s.go()
        assert s.worker.wait_for("forget")["nodes"] == [2]
        assert s.kernel.lookups == {}


@pytest.mark.parametrize("name", ["lateopen", "lateopen-asked"])
def test_an_interrupted_open_whose_task_ends_is_eintr_and_released_when_it_succeeds(
    task: Task, name: str
) -> None:
    with served({name: DATA}) as s:
        opening = s.kernel.send_open(s.kernel.lookup(name), pid=task.pid)
        s.worker.wait_for("waiting")
        task.wants_to_end()
        s.kernel.interrupt(opening)
        assert s.kernel.answer(opening).error == errno.EINTR
        s.go()
        s.worker.wait_for("release")
        assert s.worker.stats()["granted"] == []
        assert s.kernel.counted() == {}


def test_an_interrupted_request_waits_while_its_task_goes_on(task: Task) -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one", pid=task.pid)
        s.worker.wait_for("waiting")
        s.kernel.interrupt(looking)
        s.kernel.size(ROOT_INODE)  # whose answer is after the judgement of the interrupt
        assert not s.kernel.is_answered(looking)
        s.go()
        assert s.kernel.answer(looking).error == 0


def test_a_signal_that_ends_the_task_after_the_interrupt_is_seen(task: Task) -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one", pid=task.pid)
        s.worker.wait_for("waiting")
        s.kernel.interrupt(looking)
        s.kernel.size(ROOT_INODE)
        task.wants_to_end()
        assert s.kernel.answer(looking).error == errno.EINTR
        s.go()
        s.worker.wait_for("forget")

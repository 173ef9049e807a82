"""The relay with a socket for a kernel: how workers end, are killed and are followed by others."""

import errno
import hashlib
import os
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.kernel.wire import Opcode
from cachefs.vfs.inodes import ROOT_INODE
from tests.support.socket_kernel import Handle
from tests.support.socket_mount import Served, served

PAGE = 4096
DATA = os.urandom(4 * PAGE + 77)


# --- ending ---------------------------------------------------------------------------------------


def test_a_drained_worker_reads_no_more_and_answers_what_it_has() -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one")
        s.worker.wait_for("waiting")
        s.worker.command("drain", 60)
        s.worker.wait_for("draining")
        asking = s.kernel.send(Opcode.GETATTR, ROOT_INODE, bytes(16))
        s.go()
        assert s.worker.wait_for("drained")["all_answered"]
        assert s.worker.wait() == 0
        assert s.kernel.answer(looking).error == 0
        assert not s.kernel.is_answered(asking)
        s.next_worker()
        s.kernel.result(asking)
        assert s.kernel.resent == [], "it was left to the next worker"


def test_what_a_drained_worker_could_not_answer_is_answered_by_the_next() -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one")
        s.worker.wait_for("waiting")
        s.worker.command("drain", 0)
        assert not s.worker.wait_for("drained")["all_answered"]
        assert s.worker.wait() == 0
        s.next_worker()
        s.worker.wait_for("waiting")
        s.go()
        assert s.kernel.answer(looking).error == 0
        assert s.kernel.resent == [looking]


@pytest.mark.parametrize("waits", [False, True])
def test_a_worker_whose_connection_ends_ends_well(waits: bool) -> None:
    with served({"later-one": DATA}) as s:
        if waits:
            s.kernel.send_lookup("later-one")
            s.worker.wait_for("waiting")
        s.kernel.unmount()
        s.worker.wait_for("unmounted")
        assert s.worker.wait() == 0


# --- kills ----------------------------------------------------------------------------------------


def test_a_request_that_a_killed_worker_had_is_resent_and_answered_once() -> None:
    with served({"later-one": DATA}) as s:
        looking = s.kernel.send_lookup("later-one")
        s.worker.wait_for("waiting")
        s.restart()
        s.worker.wait_for("waiting")
        assert s.kernel.resent == [looking]
        s.go()
        assert s.kernel.answer(looking).error == 0
        assert s.kernel.lookups == {2: 1}
        assert s.kernel.order.count(looking) == 1


def test_a_request_that_a_killed_worker_had_not_read_is_answered_by_the_next() -> None:
    with served({"file": DATA}) as s:
        s.worker.stop()
        looking = s.kernel.send_lookup("file")
        s.restart()
        assert s.kernel.answer(looking).error == 0
        assert s.kernel.resent == []


@pytest.mark.parametrize("name", ["img", "asked", "file"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_at_the_answer_to_an_open_leaves_it_counted_and_answered_once(
    name: str, when: str
) -> None:
    with served({name: DATA}) as s:
        node = s.kernel.lookup(name)
        s.worker.die_at_next_message(when)
        opening = s.kernel.send_open(node)
        s.worker.died()
        s.start()
        handle = s.kernel.opened(opening)
        s.check_counts()
        assert s.kernel.counted() == {node: 1}
        assert s.kernel.resent == [], "the answer was in the journal"
        assert s.kernel.repeated == (when == "after")
        assert s.kernel.read(handle, 0, len(DATA)) == DATA


@pytest.mark.parametrize("name", ["img", "asked", "file"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_worker_killed_at_the_answer_to_a_release_leaves_nothing_open(
    name: str, when: str
) -> None:
    with served({name: DATA}) as s:
        handle = s.kernel.open(s.kernel.lookup(name))
        s.worker.die_at_next_message(when)
        releasing = s.kernel.send_release(handle)
        s.worker.died()
        s.start()
        s.kernel.result(releasing)
        s.check_counts()
        assert s.kernel.counted() == {}
        assert s.kernel.resent == []


def test_in_quarantine_what_is_resent_fails_and_what_is_new_is_served() -> None:
    with served({"stuckopen": DATA, "file": DATA}) as s:
        opening = s.kernel.send_open(s.kernel.lookup("stuckopen"))
        s.worker.wait_for("waiting")
        s.restart(quarantine=True)
        assert s.kernel.answer(opening).error == errno.EIO
        assert s.kernel.size(s.kernel.lookup("file")) == len(DATA)
        assert s.kernel.counted() == {}


def test_what_is_open_is_counted_alike_by_kernel_table_and_worker_after_any_kill() -> None:
    names = ("img", "half", "asked", "file")
    with served(dict.fromkeys(names, DATA)) as s:
        nodes = [s.kernel.lookup(name) for name in names]
        handles: list[Handle] = []
        for _ in range(4):
            handles += [s.kernel.open(node) for node in nodes]
            s.kernel.release(handles.pop(0))
            s.restart()
            s.check_counts()
        for handle in handles:
            s.kernel.release(handle)
        s.check_counts()
        assert s.kernel.counted() == {}


def test_a_handle_outlives_the_worker_that_gave_it() -> None:
    names = ("img", "half", "asked", "file")
    with served(dict.fromkeys(names, DATA)) as s:
        handles = [s.kernel.open(s.kernel.lookup(name)) for name in names]
        s.restart()
        for handle in handles:
            assert s.kernel.read(handle, 0, len(DATA)) == DATA


# --- any sequence ---------------------------------------------------------------------------------

FILES = {name: os.urandom(5 * PAGE + 13) for name in ("asked", "file", "half", "img", "slow")}
places = st.integers(0, 9)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("lookup"), places),
        st.tuples(st.just("open"), places),
        st.tuples(st.just("read"), places, st.integers(0, 6 * PAGE), st.integers(1, 6 * PAGE)),
        st.tuples(st.just("release"), places),
        st.tuples(st.just("wait")),
        st.tuples(st.just("kill")),
        st.tuples(st.just("die"), st.sampled_from(["before", "after"]), places),
    ),
    min_size=10,
    max_size=40,
)


class Script:
    """Requests without waiting for answers, but where the kernel would."""

    def __init__(self, s: Served) -> None:
        self.s = s
        self.contents = {s.kernel.lookup(name): data for name, data in FILES.items()}
        self.nodes = list(self.contents)
        self.opening: list[int] = []
        self.reading: list[tuple[int, Handle, bytes]] = []
        self.others: list[tuple[int, int]] = []  # with the node that a LOOKUP finds, or 0
        self.handles: list[Handle] = []
        self.kills = 0

    def lookup(self, place: int) -> None:
        place %= len(self.nodes)
        unique = self.s.kernel.send_lookup(list(FILES)[place])
        self.others.append((unique, self.nodes[place]))

    def open(self, place: int) -> None:
        self.opening.append(self.s.kernel.send_open(self.nodes[place % len(self.nodes)]))

    def read(self, place: int, offset: int, size: int) -> None:
        if self.handles:
            handle = self.handles[place % len(self.handles)]
            unique = self.s.kernel.send_read(handle, offset, size)
            want = self.contents[handle.nodeid][offset : offset + size]
            self.reading.append((unique, handle, want))

    def release(self, place: int) -> None:
        if self.handles:
            handle = self.handles.pop(place % len(self.handles))
            self.check_reads(handle)
            self.others.append((self.s.kernel.send_release(handle), 0))

    def kill(self) -> None:
        self.s.restart()
        self.kills += 1

    def die(self, when: str, place: int) -> None:
        """At the first answer from now on, which may be to an open."""
        self.s.worker.die_at_next_message(when)
        self.open(place)
        self.s.worker.died()
        self.s.start()
        self.kills += 1

    def check_reads(self, handle: Handle | None = None) -> None:
        for read in list(self.reading):
            unique, of, want = read
            if handle in (None, of):
                assert digest(self.s.kernel.result(unique)) == digest(want)
                self.reading.remove(read)

    def wait(self) -> None:
        kernel = self.s.kernel
        self.handles += [kernel.opened(unique) for unique in self.opening]
        self.opening.clear()
        self.check_reads()
        for unique, node in self.others:
            body = kernel.result(unique)
            assert not node or struct.unpack_from("=Q", body)[0] == node
        self.others.clear()

    def check(self) -> None:
        self.s.check_counts()
        assert self.s.kernel.repeated <= self.kills, "a reply from the journal for each kill"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@settings(max_examples=30, deadline=None)
@given(actions)
def test_any_sequence_of_requests_and_kills_reads_right_and_counts_right(
    script: list[tuple[Any, ...]],
) -> None:
    with served(FILES) as s:
        run = Script(s)
        for name, *arguments in script:
            getattr(run, name)(*arguments)
        run.wait()
        run.check()
        for handle in run.handles:
            s.kernel.release(handle)
        run.check()
        assert s.kernel.counted() == {}

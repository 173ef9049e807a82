"""What a killed process that cannot end has locked is not waited for; all else is."""

import fcntl
import logging
import os
import threading
from pathlib import Path

import pytest
from support.ghosts import ghost, stopped
from support.place import Place
from support.processes import wait_for

from cachefs.cache import Version
from cachefs.cache.lock import DirectoryLock, is_owned
from cachefs.drivers.index_lock import IndexLock
from cachefs.errors import ImageBusyError
from cachefs.kernel import ghosts

LOCK = """
from cachefs.cache.lock import DirectoryLock
lock = DirectoryLock(place.path / "lock")
lock.__enter__()
"""
INDEX = """
from cachefs.drivers.index_lock import IndexLock
had = IndexLock(place.path).within(0)
had.__enter__()
"""
WRITE = """
from cachefs.cache import Version
transaction = place.store().begin("a", 3, Version(3, "etag", None))
os.pwrite(transaction.fd, b"old", 0)
transaction.partial.mark_written(0, 1)
"""


@pytest.fixture
def here(place: Place) -> Place:
    place.path.mkdir(parents=True)
    return place


def in_thread(lock: DirectoryLock) -> threading.Event:
    """Set once another thread has had the lock."""
    had = threading.Event()

    def take() -> None:
        with lock:
            had.set()

    threading.Thread(target=take, daemon=True).start()
    return had


def test_the_lock_of_a_killed_process_that_cannot_end_is_taken_up(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with ghost(here, LOCK):
        lock = DirectoryLock(here.path / "lock")
        old = (here.path / "lock").stat().st_ino
        with lock:
            assert (here.path / "lock").stat().st_ino != old
        assert "cannot end" in caplog.text
        with lock:  # and again, in peace
            pass
    lock.close()


def test_two_processes_that_take_up_one_lock_have_it_one_after_the_other(here: Place) -> None:
    code = """
from cachefs.cache.lock import DirectoryLock
lock = DirectoryLock(place.path / "lock")
for _ in range(50):
    with lock:
        count = int((place.path / "count").read_text())
        time.sleep(0.001)
        (place.path / "count").write_text(str(count + 1))
"""
    (here.path / "count").write_text("0")
    with ghost(here, LOCK):
        workers = [here.start(code) for _ in range(4)]
        for worker in workers:
            worker.communicate(timeout=30)
    assert [worker.returncode for worker in workers] == [0] * 4
    assert (here.path / "count").read_text() == "200"


def test_who_waited_for_a_lock_since_before_it_was_taken_up_gets_the_new_one(here: Place) -> None:
    with ghost(here, LOCK):
        first, second = (DirectoryLock(here.path / "lock") for _ in range(2))
        with first:
            had = in_thread(second)
            assert not had.wait(0.3)
    assert had.wait(10), "the ghost is gone, and so is the lock"
    with first:
        pass


def test_the_lock_of_a_process_that_is_stopped_is_waited_for_and_its_holder_named(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with stopped(here, LOCK) as process:
        lock = DirectoryLock(here.path / "lock")
        had = in_thread(lock)
        wait_for(lambda: f"held by process {process.pid}" in caplog.text, "the holder's name")
        assert not had.is_set()
    assert had.wait(10)
    assert "got the lock" in caplog.text


def test_an_index_that_a_killed_process_was_at_is_opened_all_the_same(here: Place) -> None:
    with ghost(here, INDEX), IndexLock(here.path).within(20) as alone:
        assert alone


def test_an_index_that_a_stopped_process_is_at_is_not_waited_for_without_end(here: Place) -> None:
    with stopped(here, INDEX), IndexLock(here.path).within(0.1) as alone:
        assert not alone
    with IndexLock(here.path).within(10) as alone:
        assert alone


def test_a_description_that_a_living_process_has_too_is_no_ghosts(here: Place) -> None:
    fd = os.open(here.path / "shared", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert not ghosts.held_by_ghosts(fd)
    other = os.open(here.path / "shared", os.O_RDWR)
    with ghost(here, ""):
        assert not ghosts.held_by_ghosts(other)
    os.close(fd)
    os.close(other)


def test_an_image_whose_killed_writer_cannot_end_is_written_anew(place: Place) -> None:
    with ghost(place, WRITE), place.opened() as store:
        path = place.path / "incomplete/a"
        old = path.stat().st_ino
        wait_for(lambda: not is_owned(path), "the ghost to be noticed")
        assert not store.is_being_written("a")
        with store.begin("a", 3, Version(3, "etag", None)) as transaction:
            assert path.stat().st_ino != old
            assert transaction.partial is not None
            assert transaction.partial.present() == []
            os.pwrite(transaction.fd, b"new", 0)
            transaction.commit()
        assert (place.path / "a").read_bytes() == b"new"


def test_an_image_whose_writer_is_stopped_is_its_writers(place: Place) -> None:
    with stopped(place, WRITE), place.opened() as store:
        assert store.is_being_written("a")
        with pytest.raises(ImageBusyError):
            store.begin("a", 3, Version(3, "etag", None))


def test_a_process_is_a_ghost_only_when_it_was_killed(here: Place) -> None:
    assert not ghosts.is_ghost(os.getpid())
    with ghost(here, "") as process:
        assert ghosts.is_ghost(process.pid)
    with stopped(here, "") as process:
        assert not ghosts.is_ghost(process.pid)


def test_the_name_of_a_lock_holder_is_told(tmp_path: Path) -> None:
    assert ghosts.lock_holder(tmp_path / "none") is None
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert ghosts.lock_holder(tmp_path / "lock") is None
    fcntl.flock(fd, fcntl.LOCK_EX)
    holder = ghosts.lock_holder(tmp_path / "lock")
    assert holder is not None
    assert holder[0] == os.getpid()
    os.close(fd)

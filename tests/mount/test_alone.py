"""A worker that waits for a stranger's lock, and one whose supervisor is gone."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from support.cachefs_mount import Mounted
from support.disturb import KILLED, supervisor
from support.processes import wait_for

from cachefs.cache.lock import own
from cachefs.kernel import mounting

from .conftest import MakeMount


@contextmanager
def directory_lock(mount: Mounted) -> Iterator[None]:
    """The lock on the cache directory, held by a stranger: this process."""
    fd = os.open(mount.cache_dir / ".cachefs/lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def predecessor(mount: Mounted) -> Iterator[Callable[[], None]]:
    """The claim on the cache directory, held as by a daemon that was killed and has not quite
    ended: its mount is gone. Gives what ends it."""
    mount.stop()
    fd = os.open(mount.cache_dir / ".cachefs/daemon", os.O_RDWR)
    try:
        assert os.pread(fd, 4096, 0) == os.fsencode(mount.mountpoint)
        own(fd)
        yield lambda: os.close(fd)
    except BaseException:
        os.close(fd)
        raise


def test_a_mount_waits_for_its_predecessor_to_end(make_mount: MakeMount) -> None:
    mount = make_mount()
    data = mount.origin.put("a", 1000)
    with predecessor(mount) as end:
        waiting = threading.Timer(1.5, end)
        waiting.start()
        mount.start()
        waiting.join()
    assert mount.cat("a") == data


def test_a_predecessor_that_does_not_end_is_told_of(make_mount: MakeMount) -> None:
    mount = make_mount()
    with predecessor(mount) as end:
        refused = mount.run(*mount.command, check=False)
        end()
    assert refused.status == 1
    assert f"its mount at {mount.mountpoint} is not to be seen here" in refused.stderr
    assert "--cache-dir" in refused.stderr


def test_one_that_has_no_mount_yet_is_told_of(make_mount: MakeMount) -> None:
    mount = make_mount()
    with predecessor(mount) as end:
        (mount.cache_dir / ".cachefs/daemon").write_bytes(b"")
        refused = mount.run(*mount.command, check=False)
        end()
    assert refused.status == 1
    assert "has no mount yet" in refused.stderr


def test_a_worker_that_waits_for_a_strangers_lock_goes_on_waiting_and_names_it(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(patience=90.0)
    mount.expect(KILLED, "waiting for the lock", "got the lock")
    old = mount.worker()
    with directory_lock(mount):
        os.kill(old, signal.SIGKILL)
        holder = f"held by process {os.getpid()} "
        wait_for(lambda: holder in mount.log.read_text(), "the holder to be named", 40)
    wait_for(lambda: "got the lock" in mount.log.read_text(), "the lock", 40)
    assert mount.worker() != old
    assert "silent" not in mount.log.read_text()


def test_without_its_supervisor_a_mount_says_so_and_keeps_its_cache_directory(
    make_mount: MakeMount,
) -> None:
    mount = make_mount()
    data = mount.origin.put("a", 1000)
    assert mount.cat("a") == data
    assert supervisor(mount) > 0
    mount.expect("the supervisor is gone", "another daemon")
    worker = mount.worker()
    assert mount.process is not None
    mount.process.kill()
    mount.process.wait()
    wait_for(lambda: mount.status()["worker"]["supervisor"] is None, "status to say so")  # type: ignore[index]
    assert mount.cat("a") == data
    other = make_mount(running=False)
    other.cache_dir = mount.cache_dir
    refused = other.run(*other.command, check=False)
    assert refused.status == 1
    assert "another daemon is using the cache directory" in refused.stderr
    mount.process = None
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: mounting.is_dead(mount.mountpoint), "the worker to be gone")

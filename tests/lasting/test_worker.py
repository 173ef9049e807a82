"""What a worker's end means to everybody else: nothing."""

import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.cachefs_mount import CACHEFS, Mounted
from support.disturb import KILLED, LONG, kill_worker, queue, supervisor
from support.processes import is_alive, run, wait_for

from cachefs.kernel import mountinfo

from .conftest import MakeMount

MIB = 1 << 20


@contextmanager
def busy_readers(mount: Mounted, *names: str) -> Iterator[list[int]]:
    """Threads' worth of children that open, read whole and compare, over and over; every failure is
    raised at the end. Yields how many reads there were, of each."""
    over, counts, troubles = threading.Event(), [0] * len(names), []
    true = {name: (mount.origin.directory / name).read_bytes() for name in names}

    def read(number: int, name: str) -> None:
        try:
            while not over.is_set():
                assert mount.cat(name, timeout=30) == true[name], f"{name}: wrong bytes"
                counts[number] += 1
        except AssertionError as error:
            troubles.append(error)

    threads = [
        threading.Thread(target=read, args=(number, name), daemon=True)
        for number, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        over.set()
        for thread in threads:
            thread.join(31)
    assert not troubles, troubles


def put_slow(mount: Mounted, mib: int = 8) -> None:
    """``big``, whose fetch takes some seconds, being fetched."""
    mount.origin.put("big", mib * MIB)
    queue(mount, "big")
    mount.wait_listed("incomplete", "big")


@contextmanager
def slow_image_open(mount: Mounted, *expected: str) -> Iterator[tuple[int, bytes]]:
    """``big`` opened while it is fetched: its descriptor, and its true bytes. *expected* is what
    the log may say."""
    put_slow(mount)
    mount.expect(KILLED, *expected)
    fd = os.open(mount.image("big"), os.O_RDONLY)
    try:
        yield fd, (mount.origin.directory / "big").read_bytes()
    finally:
        os.close(fd)


def test_an_upgrade_fails_no_request(make_mount: MakeMount) -> None:
    mount = make_mount(source="nginx", limit_rate="2m")
    mount.origin.put("a", MIB)
    mount.origin.put("b", 2 * MIB)
    mount.fetch("a")
    put_slow(mount)
    with busy_readers(mount, "a", "b", "big") as counts:
        for _ in range(30 if LONG else 3):
            old, seen = mount.worker(), counts[0]
            assert "has taken over" in mount.cli("upgrade", timeout=60).text
            assert mount.worker() != old
            assert not is_alive(old)
            wait_for(lambda seen=seen: counts[0] > seen + 3, "readers to go on")
    assert min(counts) > 0


@pytest.mark.parametrize(
    "broken",
    ["import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"],
    ids=["exits", "dies"],
)
def test_an_upgrade_to_code_that_does_not_come_up_changes_nothing(
    make_mount: MakeMount, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    """The workers find a ``sitecustomize`` in their way, which has yet to be broken."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    mount = make_mount()
    mount.origin.put("a", MIB)
    mount.fetch("a")
    old = mount.worker()
    with busy_readers(mount, "a") as counts:
        custom = site / "sitecustomize.py"
        custom.write_text(f"import sys\nif 'worker' in ' '.join(sys.orig_argv):\n    {broken}\n")
        mount.expect("upgrade failed")
        os.kill(supervisor(mount), signal.SIGHUP)
        wait_for(lambda: "upgrade failed" in mount.log.read_text(), "the upgrade to fail")
        seen = counts[0]
        wait_for(lambda: counts[0] > seen + 3, "readers to go on")
        assert mount.worker() == old
        custom.unlink()
    assert "has taken over" in mount.cli("upgrade").text


def test_a_stuck_worker_is_replaced_and_readers_go_on(make_mount: MakeMount) -> None:
    """It takes the 15 s of the supervisor's Limits.beat_timeout."""
    mount = make_mount()
    data = mount.origin.put("a", MIB)
    mount.fetch("a")
    old = mount.worker()
    mount.expect("is silent for", KILLED)
    fd = os.open(mount.image("a"), os.O_RDONLY)
    os.kill(old, signal.SIGSTOP)
    try:
        assert os.pread(fd, MIB, 0) == data  # passthrough needs no daemon at all
        assert mount.cat("a", timeout=30) == data  # an open does
        assert os.pread(fd, MIB, 0) == data
    finally:
        os.close(fd)
    assert mount.worker() != old
    assert not is_alive(old)
    silent = re.search(r"is silent for (\d+) s", mount.log.read_text())
    assert silent is not None
    assert int(silent[1]) >= 15, "it was given time"


def test_hits_counted_before_a_kill_are_there_after_it(make_mount: MakeMount) -> None:
    mount = make_mount()
    mount.origin.put("a", 1000)
    mount.fetch("a")
    mount.expect(KILLED)
    for turn in range(1, 6):
        for _ in range(7):
            mount.cat("a")
        # What shows hits writes them; those of the last 2 ms before a kill are lost.
        assert mount.record("cached/a")["hits"] == 7 * turn
        kill_worker(mount)
        assert mount.record("cached/a")["hits"] == 7 * turn


def test_a_running_fetch_goes_on_after_a_kill_where_it_was(make_mount: MakeMount) -> None:
    mount = make_mount(source="nginx", limit_rate="1m")
    put_slow(mount, 24)
    data = (mount.origin.directory / "big").read_bytes()
    mount.expect(KILLED)
    with mount.start_tool("sha256sum", mount.image("big")) as reader:
        for arrived in (4 * MIB, 12 * MIB):
            wait_for(lambda: mount.record("incomplete/big")["progress"] >= arrived, "bytes")  # noqa: B023
            kill_worker(mount)
        assert reader.wait(30) == 0
    mount.wait_listed("cached", "big")
    assert mount.cat("big") == data
    # A kill costs the chunk that each connection has begun, of 1 MiB.
    assert mount.server.bytes_sent("/big") < 1.7 * len(data)


def test_a_fetch_that_nobody_reads_and_a_queued_image_are_cached_in_spite_of_kills(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(source="nginx", limit_rate="2m")
    names = [f"image-{number}" for number in range(6)]
    for name in names:
        mount.origin.put(name, 2 * MIB)
        queue(mount, name)
    mount.expect(KILLED)
    kill_worker(mount)
    wait_for(lambda: mount.listed("cached"), "one of them")
    kill_worker(mount)
    mount.wait_listed("cached", *names)
    assert mount.listed("queue") == []
    assert mount.listed("invalid") == []


def test_a_reader_of_a_cancelled_fetch_gets_no_byte_of_it_after_a_kill(
    make_mount: MakeMount,
) -> None:
    """The file that was being fetched is held for the reader, but it is full of holes."""
    mount = make_mount(source="nginx", limit_rate="500k")
    with slow_image_open(mount, "cannot be read on", "image .*was lost") as (fd, _):
        mount.remove("incomplete/big")
        kill_worker(mount)
        with pytest.raises(OSError):
            os.pread(fd, 4096, 7 * MIB)


def test_an_image_published_and_evicted_while_open_is_read_on_after_a_kill(
    make_mount: MakeMount,
) -> None:
    """Its handle is from the time when it was being fetched; nothing has its name any more."""
    mount = make_mount(source="nginx", limit_rate="2m")
    with slow_image_open(mount) as (fd, data):
        mount.wait_listed("cached", "big")
        mount.remove("cached/big")
        for _ in range(2):
            kill_worker(mount)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, MIB, 0) == data[:MIB]
            assert os.pread(fd, MIB, 7 * MIB) == data[7 * MIB :]
            assert os.fstat(fd).st_size == len(data)


def test_an_image_being_fetched_can_be_examined_and_opened_by_its_handle_after_a_kill(
    make_mount: MakeMount,
) -> None:
    """Its inode number is known from the kernel only; nothing looks its name up again."""
    mount = make_mount(source="nginx", limit_rate="1m")
    with slow_image_open(mount) as (fd, data):
        assert os.pread(fd, 4096, 0) == data[:4096]
        kill_worker(mount)
        for _ in range(3):  # each read makes the kernel ask for the time of access again
            assert os.fstat(fd).st_size == len(data)
            assert os.pread(fd, 4096, 4 * MIB) == data[4 * MIB : 4 * MIB + 4096]
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        try:
            assert os.pread(again, 4096, 5 * MIB) == data[5 * MIB : 5 * MIB + 4096]
        finally:
            os.close(again)
        assert os.pread(fd, 4096, 6 * MIB) == data[6 * MIB : 6 * MIB + 4096]


@pytest.mark.parametrize("options", [("--transport", "relay"), ("--transport", "plain")], ids=str)
def test_unmounting_after_a_kill_ends_both_processes(
    make_mount: MakeMount, options: tuple[str, ...]
) -> None:
    mount = make_mount(options=options)
    mount.expect(KILLED, "detaching")
    old = mount.worker()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: answers(mount) not in (0, old), "another worker")
    worker, parent = mount.worker(), supervisor(mount)
    run("umount", str(mount.mountpoint))
    mount.wait_ended()
    wait_for(lambda: not is_alive(worker), "the worker to end")
    assert not is_alive(parent)
    assert not mountinfo.is_mounted(mount.mountpoint)


def test_unmounting_while_no_worker_can_be_started_ends_the_daemon(make_mount: MakeMount) -> None:
    """The supervisor may open no more files than it has, so not start what is to come."""
    mount = make_mount()
    parent = supervisor(mount)
    few = len(list(Path(f"/proc/{parent}/fd").iterdir())) - 2
    _, most = resource.prlimit(parent, resource.RLIMIT_NOFILE)
    mount.expect(KILLED, "a worker cannot be started: .*Too many open files")
    resource.prlimit(parent, resource.RLIMIT_NOFILE, (few, most))
    os.kill(mount.worker(), signal.SIGKILL)
    wait_for(lambda: mount.log.read_text().count("cannot be started") > 2, "starts that fail")
    run(sys.executable, *CACHEFS[1:], "umount", str(mount.mountpoint))
    mount.wait_ended()
    assert not mountinfo.is_mounted(mount.mountpoint)


def answers(mount: Mounted) -> int:
    """The worker that answers; 0 while nobody does (plain transport: its mount is dead then)."""
    try:
        return mount.worker() if mountinfo.is_mounted(mount.mountpoint) else 0
    except OSError:
        return 0


def test_plain_transport_is_mounted_anew_after_every_kill(make_mount: MakeMount) -> None:
    mount = make_mount(options=("--transport", "plain"))
    data = mount.origin.put("a", MIB)
    mount.expect(KILLED, "detaching")
    for _ in range(5):
        assert mount.cat("a") == data
        old = mount.worker()
        os.kill(old, signal.SIGKILL)
        wait_for(lambda old=old: answers(mount) not in (0, old), "the mount to be back")
    assert mount.cat("a") == data
    mounts = Path("/proc/self/mounts").read_text().count(str(mount.mountpoint))
    assert mounts == 1


def test_a_worker_in_the_background_is_replaced_too(make_mount: MakeMount) -> None:
    mount = make_mount(running=False)
    run(*mount.command, "--log-file", str(mount.log))
    try:
        data = mount.origin.put("a", MIB)
        assert mount.cat("a") == data
        mount.expect(KILLED)
        kill_worker(mount)
        assert mount.cat("a") == data
    finally:
        run(sys.executable, *CACHEFS[1:], "umount", str(mount.mountpoint))

"""A name that means another file by now: nobody who opens, stats or reads an image is told ESTALE,
and nobody gets one version's bytes under another's size."""

import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.disturb import evict
from support.images import Images
from support.processes import run, start

from .conftest import MakeMount

READER = """
import errno, os, sys
images, rounds, size, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
for number in range(rounds):
    path = os.path.join(images, names[number % len(names)])
    os.stat(path)
    fd = os.open(path, os.O_RDONLY)
    assert os.pread(fd, 100, 0)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.fstat(again).st_size == size
    assert os.pread(again, 100, size - 100)
    try:
        os.getxattr(path, "user.cachefs.state")
    except OSError as error:
        assert error.errno == errno.ENODATA, error
    os.close(again)
    os.close(fd)
"""
ROUNDS = 100
SIZE = 200_000


@pytest.fixture(params=["relay", "plain"])
def mount(request: pytest.FixtureRequest, make_mount: MakeMount) -> Mounted:
    return make_mount(options=["--transport", request.param])


def test_readers_of_images_that_are_evicted_and_fetched_over_and_over_get_no_error(
    mount: Mounted,
) -> None:
    names = [mount.origin.new(SIZE)[0] for _ in range(3)]
    over = threading.Event()

    def evict_all() -> None:
        while not over.is_set():
            for name in names:
                evict(mount, name)

    evictor = threading.Thread(target=evict_all, daemon=True)
    evictor.start()
    arguments = [str(mount.images), str(ROUNDS), str(SIZE), *names]
    readers = [start(sys.executable, "-c", READER, *arguments) for _ in range(4)]
    try:
        for reader in readers:
            said = reader.communicate(timeout=40)[1].decode()
            assert reader.returncode == 0, said
    finally:
        over.set()
        evictor.join(10)
        for reader in readers:
            reader.kill()


def test_an_image_is_reopened_by_its_descriptor_after_its_fetch(mount: Mounted) -> None:
    name, data = mount.origin.new(SIZE)
    with open(mount.image(name), "rb") as file:
        assert file.read() == data
        mount.wait_listed("cached", name)
        assert Path(f"/proc/self/fd/{file.fileno()}").read_bytes() == data


@pytest.mark.parametrize("wait", ["", "queue", "incomplete", "cached"])
def test_a_longer_image_opened_by_a_name_known_before_is_read_to_its_end(
    mount: Mounted, wait: str
) -> None:
    """After ``stat``, replaced at the source and queued, opened at each point of its fetch."""
    name, old = mount.origin.new(SIZE)
    assert os.stat(mount.image(name)).st_size == len(old)
    fresh = mount.origin.put(name, 9 * SIZE)
    mount.touch(f"queue/{name}")
    if wait in {"queue", "incomplete"}:
        mount.listed(wait)
    elif wait:
        mount.wait_listed(wait, name)
    mount.expect("changed at the source")  # what was said of it just before is believed
    done = mount.run("cat", mount.image(name), check=False)
    assert done.stdout == fresh or (done.status, done.stdout) == (1, b"")
    mount.wait_listed("cached", name)
    assert mount.cat(name) == fresh


def test_the_date_is_the_sources_before_during_and_after_the_fetch(mount: Mounted) -> None:
    name, data = mount.origin.new(SIZE)
    when = 1_580_608_922_123_456_700
    os.utime(mount.origin.directory / name, ns=(when, when))
    expected = (mount.origin.directory / name).stat().st_mtime
    assert os.stat(mount.image(name)).st_mtime == expected
    with open(mount.image(name), "rb") as file:
        assert os.fstat(file.fileno()).st_mtime == expected
        assert file.read() == data
        assert os.fstat(file.fileno()).st_mtime == expected
        mount.wait_listed("cached", name)
        assert os.stat(mount.image(name)).st_mtime == expected
        mount.remove(f"cached/{name}")
        assert os.fstat(file.fileno()).st_mtime == expected
    assert mount.cat(name) == data
    mount.wait_listed("cached", name)
    assert os.stat(mount.image(name)).st_mtime == expected
    assert mount.record(f"cached/{name}")["last_modified"] == expected


@pytest.mark.parametrize("driver", ["sqlite", "xattr"])
@pytest.mark.parametrize("seconds", [0, 1, 1_580_608_922])
def test_a_date_is_kept_over_a_new_mount(driver: str, seconds: int, make_mount: MakeMount) -> None:
    mount = make_mount(driver=driver)
    name, _ = mount.origin.new(SIZE)
    os.utime(mount.origin.directory / name, (seconds, seconds))
    assert os.stat(mount.image(name)).st_mtime == seconds
    mount.fetch(name)
    assert os.stat(mount.image(name)).st_mtime == seconds
    mount.restart()
    assert os.stat(mount.image(name)).st_mtime == seconds


@pytest.mark.parametrize("transport", ["relay", "plain"])
def test_owner_group_and_mode_are_those_of_the_settings(
    transport: str, make_mount: MakeMount, open_home: Path
) -> None:
    words = ["--uid", "daemon", "--gid", "7", "--mode", "0440", "--transport", transport]
    mount = make_mount(options=words, images=Images(open_home))
    for_all = [mount.origin.new(SIZE)[0] for _ in range(2)]
    mount.fetch(for_all[0])
    for name in for_all:  # cached, and not yet
        status = os.stat(mount.image(name))
        assert (status.st_uid, status.st_gid) == (1, 7)
        assert stat.filemode(status.st_mode) == "-r--r-----"
        assert read_as(mount, name, 1, 1) == "read"
        assert read_as(mount, name, 65534, 7) == "read"
        assert read_as(mount, name, 65534, 65534) == "refused"


def read_as(mount: Mounted, name: str, uid: int, gid: int) -> str:
    """What becomes of a read by another user, who has been given the directory."""
    who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    done = run("env", "-C", str(mount.images), *who, "head", "-c", "10", name, check=False)
    assert done.status == 0 or "Permission denied" in done.stderr, done.stderr
    return "read" if done.status == 0 else "refused"

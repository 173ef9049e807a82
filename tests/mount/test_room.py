"""Room on a small cache: what is open takes it, whatever becomes of its name, and what is in use is
not the least recently used."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.disturb import KILLED, kill_worker
from support.processes import failure, wait_for

from cachefs import ImageCache
from cachefs.units import human_size

from .conftest import MakeMount

SIZE = 1_000_000
LIMIT = 3_500_000

relay = pytest.mark.parametrize("transport", ["relay"])


@pytest.fixture(params=["relay", "plain"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "xattr"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def small(transport: str, driver: str, make_mount: MakeMount) -> Mounted:
    """A mount with room for three images and a half."""
    options = ["--max-size", str(LIMIT), "--transport", transport, "--timeout", "1"]
    return make_mount(driver=driver, options=options)


def new(mount: Mounted, count: int) -> list[str]:
    return [mount.origin.new(SIZE)[0] for _ in range(count)]


def bytes_on_disk(mount: Mounted, worker: int) -> int:
    """What files of images have, each counted once whatever names it has, and if it has none but is
    open."""
    sizes: dict[int, int] = {}
    with (mount.cache_dir / ".cachefs" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for directory in (".", "incomplete", "invalid", ".cachefs/held"):
            for path in (mount.cache_dir / directory).iterdir():
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                if path.is_file() and not path.name.startswith("cache.db") and not path.suffix:
                    sizes[status.st_ino] = status.st_size
        sizes.update(unlinked(mount, worker))
    return sum(sizes.values())


def unlinked(mount: Mounted, worker: int) -> Iterator[tuple[int, int]]:
    """Inode and size of what the worker has open in the cache directory, and has no name."""
    for link in os.scandir(f"/proc/{worker}/fd"):
        try:
            status, target = os.stat(link.path), os.readlink(link.path)
        except FileNotFoundError:
            continue
        if target.startswith(f"{mount.cache_dir}/") and not status.st_nlink:
            yield status.st_ino, status.st_size


@contextmanager
def sampled(mount: Mounted) -> Iterator[list[int]]:
    """What is on the disk, over and over while the block runs."""
    seen: list[int] = []
    done = threading.Event()
    worker = mount.worker()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(bytes_on_disk(mount, worker))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join(10)


def test_rm_of_open_images_gives_no_room_until_they_are_closed(small: Mounted) -> None:
    names = new(small, 4)
    small.expect("no room")
    with sampled(small) as seen, ExitStack() as stack:
        files = []
        for name in names[:3]:
            files.append(stack.enter_context(open(small.image(name), "rb", buffering=0)))
            assert len(files[-1].read()) == SIZE
            small.wait_listed("cached", name)
            small.remove(f"cached/{name}")
        assert small.status()["held"] == 3 * SIZE
        assert small.status()["cached"] == 0
        assert small.status()["size"] == int(small.show("size")) == 3 * SIZE
        assert failure(os.open, small.image(names[3]), os.O_RDONLY) == "ENOSPC"
        files[0].seek(0)
        assert len(files[0].read()) == SIZE
        files[0].close()
        wait_for(lambda: small.status()["held"] == 2 * SIZE, "the room of the first")
        assert len(small.cat(names[3])) == SIZE
    assert len(seen) > 2
    assert max(seen) <= LIMIT
    wait_for(lambda: small.status()["held"] == 0, "all the room")
    assert list((small.cache_dir / ".cachefs/held").iterdir()) == []


def test_an_error_for_want_of_room_names_what_has_it(small: Mounted) -> None:
    gone, kept, opened, other = new(small, 4)
    small.fetch(gone, kept, opened)
    small.touch(f"pinned/{kept}")
    small.expect("no room")
    with open(small.image(gone), "rb"), open(small.image(opened), "rb"):
        small.remove(f"cached/{gone}")
        assert failure(os.open, small.image(other), os.O_RDONLY) == "ENOSPC"
        lines = [line for line in small.new_lines() if f"no room for image '{other}'" in line]
    size = human_size(SIZE)
    assert f"open '{opened}' ({size})" in lines[0]
    assert f"pinned '{kept}' ({size})" in lines[0]
    assert f"images removed and open still ({size})" in lines[0]


@relay
def test_what_is_held_is_counted_by_the_next_worker(small: Mounted) -> None:
    name, other = new(small, 2)
    small.fetch(name)
    with open(small.image(name), "rb", buffering=0) as file:
        small.remove(f"cached/{name}")
        small.expect(KILLED)
        kill_worker(small)
        assert small.status()["held"] == SIZE
        assert len(file.read()) == SIZE
        assert len(small.cat(other)) == SIZE
    wait_for(lambda: small.status()["held"] == 0, "the room")


def test_an_image_that_was_open_all_along_is_not_the_first_to_go(small: Mounted) -> None:
    first, *others, last = new(small, 4)
    small.fetch(first)
    with open(small.image(first), "rb"):
        small.fetch(*others)
        for name in others:
            small.cat(name)
    small.fetch(last)
    assert first in small.listed()
    assert len(small.listed()) == 3


def test_what_was_read_while_it_was_fetched_counts_from_its_close(small: Mounted) -> None:
    first, *others, last = new(small, 4)
    with open(small.image(first), "rb", buffering=0) as file:
        file.read()
        small.wait_listed("cached", first)
        small.fetch(*others)
        for name in others:
            small.cat(name)
    small.fetch(last)
    assert first in small.listed()


def test_an_image_to_be_pinned_is_pinned_though_the_worker_dies(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX, options=["--bandwidth", "1M"])
    name, _ = mount.origin.new(3 * SIZE)
    mount.touch(f"pinned/{name}")
    assert mount.listed("pinned") == [name]
    mount.expect(KILLED)
    kill_worker(mount)
    mount.wait_listed("cached", name)
    assert mount.record(f"pinned/{name}")["state"] == "cached"
    assert failure(os.unlink, f"{mount.control}/cached/{name}") == "EBUSY"


def test_an_image_cached_by_another_process_is_pinned_if_it_was_to_be(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(options=["--on-miss", "enoent"])
    mount.expect("not found")
    mount.touch("pinned/made-elsewhere")
    mount.wait_listed("invalid", "made-elsewhere")
    assert ImageCache(mount.cache_dir).cache_image_iter("made-elsewhere", [b"data"])
    assert mount.record("cached/made-elsewhere")["pinned"] is True

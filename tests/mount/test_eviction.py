"""Eviction on a small cache: the limit, the order, what is spared, what open files see."""

import fcntl
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cachefs_mount import NGINX, Mounted
from support.disks import small_disk
from support.processes import failure, run, wait_for

from .conftest import MakeMount

SIZE = 100_000
MIB = 2**20


@pytest.fixture(params=["sqlite", "xattr"])
def small(request: pytest.FixtureRequest, make_mount: MakeMount) -> Mounted:
    """A mount with room for three images of 100,000 bytes."""
    return make_mount(driver=request.param, options=["--max-size", "350000"])


def new(mount: Mounted, count: int) -> list[str]:
    return [mount.origin.new(SIZE)[0] for _ in range(count)]


def test_size_never_exceeds_max_size_while_many_images_are_fetched(small: Mounted) -> None:
    names = new(small, 30)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(int((small.control / "size").read_text()))
            seen.append(bytes_of_images(small.cache_dir))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        small.write("enqueue", "\n".join(names))
        wait_for(lambda: not small.listed("queue") + small.listed("incomplete"), "the queue")
    finally:
        done.set()
        watcher.join(10)
    assert len(seen) > 10
    assert max(seen) <= 350_000
    assert small.status()["evictions"] == 27


def bytes_of_images(cache_dir: Path) -> int:
    """What images take of the disk, complete or not. Under the directory's lock: else an image is
    counted, evicted, and what came in its place is counted too."""
    total = 0
    with (cache_dir / ".cachefs" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for directory in (cache_dir, cache_dir / "incomplete"):
            for path in directory.glob("image-*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
    return total


def test_the_least_recently_used_image_leaves_first(small: Mounted) -> None:
    a, b, c, d = new(small, 4)
    small.fetch(a)
    small.fetch(b)
    small.fetch(c)
    small.cat(a)
    small.fetch(d)
    assert small.listed() == sorted([a, c, d])
    small.cat(c)
    small.cat(a)
    small.fetch(b)
    assert small.listed() == sorted([a, b, c])


def test_lowering_max_size_evicts_in_order_of_use(small: Mounted) -> None:
    a, b, c = new(small, 3)
    for name in (a, b, c):
        small.fetch(name)
    small.cat(a)
    small.write("max_size", "150000")
    wait_for(lambda: small.listed() == [a], "the limit to be kept")


def test_a_pinned_image_is_never_evicted(small: Mounted) -> None:
    pinned, *others = new(small, 8)
    small.fetch(pinned)
    small.touch(f"pinned/{pinned}")
    for name in others:
        small.fetch(name)
    assert pinned in small.listed()


def test_an_open_image_is_never_chosen(small: Mounted) -> None:
    name, *others = new(small, 8)
    small.fetch(name)
    with open(small.image(name), "rb"):
        for other in others:
            small.fetch(other)
        assert name in small.listed()


def test_an_open_image_that_is_removed_is_read_on_to_the_end(small: Mounted) -> None:
    name, data = small.origin.new(300_000)
    small.fetch(name)
    with open(small.image(name), "rb", buffering=0) as file:
        first = file.read(1000)
        small.remove(f"cached/{name}")
        assert small.listed() == []
        assert not (small.cache_dir / name).exists()
        rest = file.read()
    assert first + rest == data


def test_the_name_of_an_evicted_image_is_gone_at_once(make_mount: MakeMount) -> None:
    mount = make_mount(options=["--on-miss", "enoent"])
    name, _ = mount.origin.new()
    mount.fetch(name)
    os.stat(mount.image(name))
    mount.remove(f"cached/{name}")
    wait_for(lambda: failure(os.stat, mount.image(name)) == "ENOENT", "the name to go", 0.5)
    assert mount.listed() == []


def test_an_image_that_changed_at_the_origin_is_new_after_eviction(small: Mounted) -> None:
    name, old = small.origin.new()
    assert small.cat(name) == old
    small.wait_listed("cached", name)
    fresh = small.origin.put(name, 120_000)
    assert small.cat(name) == old
    small.remove(f"cached/{name}")
    # The name, and what the source said of it, are believed for some seconds.
    wait_for(lambda: os.stat(small.image(name)).st_size == len(fresh), "the new size", 8)
    assert small.cat(name) == fresh


def test_one_who_reads_the_old_bytes_is_not_disturbed_by_the_new(small: Mounted) -> None:
    name = "changing"
    old = small.origin.put(name, SIZE, digest="")
    small.fetch(name)
    with open(small.image(name), "rb", buffering=0) as file:
        assert file.read(10) == old[:10]
        small.remove(f"cached/{name}")
        fresh = small.origin.put(name, SIZE, digest="")
        small.fetch(name)
        assert small.cat(name) == fresh
        assert file.read() == old[10:]


def test_an_evicted_image_is_fetched_again_when_it_is_read(make_mount: MakeMount) -> None:
    mount = make_mount(source=NGINX)
    name, data = mount.origin.new()
    mount.fetch(name)
    mount.remove(f"cached/{name}")
    assert mount.cat(name) == data
    mount.wait_listed("cached", name)
    assert mount.record(f"cached/{name}")["hits"] == 1


def test_prune_brings_the_cache_within_its_limits_before_the_write_returns(small: Mounted) -> None:
    names = new(small, 3)
    small.fetch(*names)
    small.write("max_size", "100000")
    small.write("prune", "now")
    assert int(small.show("size")) <= 100_000


def test_df_is_full_when_the_cache_is(small: Mounted) -> None:
    small.fetch(*new(small, 3))
    shown = run("df", "-B1", "--output=size,avail", str(small.mountpoint)).text.splitlines()[1]
    size, free = map(int, shown.split())
    assert size == 350_000 // 4096 * 4096
    assert free <= 50_000


def test_min_free_of_the_disk_is_kept_for_others(make_mount: MakeMount, tmp_path: Path) -> None:
    """Before a fetch, and when another program fills the disk."""
    with small_disk(tmp_path / "disk", 64) as disk, ExitStack() as stack:
        mount = make_mount(running=False, options=["--min-free", "40M", "--timeout", "1"])
        mount.cache_dir = disk / "cache"
        mount.start()
        stack.callback(mount.stop)  # before its disk goes
        for _ in range(5):
            mount.fetch(mount.origin.new(6 * MIB)[0])
            assert free(disk) >= 40 * 10**6
        assert len(mount.listed()) >= 2
        (disk / "foreign").write_bytes(bytes(20 * MIB))
        wait_for(lambda: free(disk) >= 40 * 10**6, "images to go")
        (disk / "foreign").write_bytes(bytes(30 * MIB))
        mount.expect("no room")
        name = mount.origin.new(6 * MIB)[0]
        assert failure(os.open, mount.image(name), os.O_RDONLY) == "ENOSPC"


def free(disk: Path) -> int:
    """Bytes that an ordinary user may still write."""
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize

"""After many opens, evictions and kills, everything is as it was: descriptors, held files, disk
space, backing ids."""

import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.cachefs_mount import Mounted
from support.disks import small_disk
from support.disturb import (
    KILLED,
    LONG,
    SETTLED,
    Disturbance,
    descriptors,
    evict,
    kill_worker,
    queue,
    settled,
    supervisor,
)

from .conftest import MakeMount

MIB = 1 << 20
OPENS, KILLS, LIMIT = (10_000, 100, 400) if LONG else (2_000, 10, 55)

OPEN_AND_CLOSE = """
import os, random, sys
images, opens, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
dice, held = random.Random(int(sys.argv[2])), []
for turn in range(opens):
    held.append(os.open(f"{images}/{dice.choice(names)}", os.O_RDONLY))
    os.pread(held[-1], 4096, 0)
    if len(held) > 20:
        os.close(held.pop(dice.randrange(len(held))))
"""


def held(mount: Mounted) -> list[str]:
    return sorted(path.name for path in (mount.cache_dir / ".cachefs" / "held").iterdir())


def used(disk: Path) -> int:
    """MiB in use, as df(1) counts."""
    status = os.statvfs(disk)
    return round((status.f_blocks - status.f_bfree) * status.f_frsize / MIB)


def files(pid: int, mount: Mounted) -> list[str]:
    """Open files of the cache, and how many descriptors there are of other kinds."""
    opened = descriptors(pid)
    inside = [name for name in opened if name.startswith(str(mount.cache_dir))]
    return [*inside, f"and {len(opened) - len(inside)} others"]


def no_more(now: list[str], before: list[str]) -> bool:
    """Whether the same files of the cache are open, and no more others than before: some come with
    the first use of what they are for."""
    others = [int(each[-1].split()[1]) for each in (now, before)]
    return now[:-1] == before[:-1] and others[0] <= others[1]


@pytest.mark.timeout(LIMIT + 20)
def test_many_opens_evictions_and_kills_leave_no_descriptor_and_no_held_file(
    make_mount: MakeMount,
) -> None:
    mount = make_mount(patience=LIMIT)
    names = [f"image-{number}" for number in range(8)]
    for name in names:
        mount.origin.put(name, MIB)
    mount.fetch(*names)
    mount.expect(KILLED)
    kill_worker(mount)  # a worker that took over is compared with another one that did
    kill_worker(mount)
    evict(mount, names[0])  # what tells the kernel of it is started with the first
    mount.fetch(names[0])
    parent = supervisor(mount)
    before, before_parent = files(mount.worker(), mount), files(parent, mount)
    opens = ["-c", OPEN_AND_CLOSE, str(mount.images), str(OPENS // 2), *names]
    with ExitStack() as stack:
        pair = [stack.enter_context(mount.start_tool(sys.executable, *opens)) for _ in range(2)]
        with Disturbance(mount, evict=names, interval=SETTLED) as disturbance:
            for reader in pair:
                assert reader.wait(LIMIT) == 0
    for _ in range(KILLS - disturbance.kills):
        evict(mount, names[0])
        queue(mount, names[0])
        with Path(mount.image(names[1])).open("rb") as file:
            kill_worker(mount)
            file.read(1)
        time.sleep(SETTLED)
    mount.wait_listed("cached", *names)
    settled(lambda: held(mount), [], "no file to be held")
    settled(lambda: files(parent, mount), before_parent, "the supervisor's descriptors")
    settled(lambda: no_more(files(mount.worker(), mount), before), True, "the worker's descriptors")


def test_the_room_of_an_image_evicted_while_open_is_back_once_it_is_closed(
    make_mount: MakeMount, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk, ExitStack() as stack:
        mount = make_mount(running=False)
        mount.cache_dir = disk / "cache"
        for name in ("a", "b", "c"):
            mount.origin.put(name, 8 * MIB)
        mount.start()
        stack.callback(stop, mount)  # before its disk goes
        mount.fetch("a", "b", "c")
        mount.expect(KILLED)
        full = used(disk)
        opened = {
            name: [os.open(mount.image(name), os.O_RDONLY) for _ in range(3)] for name in "ab"
        }
        try:
            evict(mount, "a")
            kill_worker(mount)  # a is read by a handle from before two workers
            evict(mount, "b")
            kill_worker(mount)
            for name, fds in opened.items():
                true = (mount.origin.directory / name).read_bytes()
                for fd in fds:
                    assert os.pread(fd, 8 * MIB, 0) == true
            assert used(disk) == full, "what is open takes its room still"
            for fd in opened["a"]:
                os.close(fd)
            opened["a"] = []
            settled(lambda: used(disk), full - 8, "the room of the first")
        finally:
            for fd in opened["a"] + opened["b"]:
                os.close(fd)
        settled(lambda: used(disk), full - 16, "the room of both")
        assert held(mount) == []


def stop(mount: Mounted) -> None:
    if mount.process is not None:
        mount.stop()


@pytest.mark.parametrize("kill", [False, True], ids=["closed by its worker", "by the next"])
def test_the_room_of_an_image_evicted_while_it_was_read_lazily_is_back_too(
    make_mount: MakeMount, tmp_path: Path, kill: bool
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk, ExitStack() as stack:
        mount = make_mount(running=False, source="nginx", limit_rate="4m")
        mount.cache_dir = disk / "cache"
        mount.origin.put("a", 8 * MIB)
        mount.start()
        stack.callback(stop, mount)
        mount.expect(KILLED)
        empty = used(disk)
        with Path(mount.image("a")).open("rb") as file:
            assert len(file.read()) == 8 * MIB
            mount.wait_listed("cached", "a")
            evict(mount, "a")
            if kill:
                kill_worker(mount)
            assert used(disk) == empty + 8
        settled(lambda: used(disk), empty, "the room")
        assert held(mount) == []


def test_a_worker_killed_between_open_and_close_leaves_no_held_file(make_mount: MakeMount) -> None:
    """What it wrote down for an open that the kernel never heard of is released by the next."""
    mount = make_mount()
    mount.origin.put("a", MIB)
    mount.fetch("a")
    directory = mount.cache_dir / ".cachefs" / "held"
    (directory / "12345").hardlink_to(mount.cache_dir / "a")
    (directory / "12345.json").write_text("{}")
    mount.expect(KILLED)
    kill_worker(mount)
    assert held(mount) == []

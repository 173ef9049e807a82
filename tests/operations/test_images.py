"""``images/``: names, attributes and listings, and what nobody may do there."""

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from support.fake_source import FakeSource
from support.images import Images
from support.requests import Requests, context

from cachefs.fetcher.answers import NEGATIVE_TTL
from cachefs.image import RESERVED_NAMES
from cachefs.sources import open_source
from cachefs.units import to_ns
from cachefs.vfs.images import ANSWER_TIMEOUT
from cachefs.vfs.inodes import CONTROL_INODE, IMAGES_INODE, NodeKind, join, split
from cachefs.vfs.names import NAME_TIMEOUT

from .conftest import DATA, Served, every_driver, refused

SMALL = b"small image"


# Looking up


@every_driver
async def test_a_cached_image_is_found_without_asking_the_source(
    served: Served, source: FakeSource, driver: str
) -> None:
    async with served(driver=driver, images={"a": SMALL}) as worker:
        entry = await worker.ask.lookup("images/a")
        assert split(entry.st_ino)[0] == NodeKind.CACHED
        assert source.stats == []


async def test_an_uncached_image_is_described_by_the_source_and_not_fetched(
    served: Served, source: FakeSource
) -> None:
    async with served() as worker:
        entry = await worker.ask.lookup("images/img")
        assert split(entry.st_ino)[0] == NodeKind.LAZY
        assert entry.st_size == len(DATA)
        assert (source.stats, source.reads) == (["img"], [])


async def test_an_image_that_is_looked_up_again_is_the_same_inode(
    served: Served, source: FakeSource
) -> None:
    async with served() as worker:
        inodes = {(await worker.ask.lookup("images/img")).st_ino for _ in range(3)}
        assert len(inodes) == 1
        assert source.stats == ["img"]


async def test_the_source_is_asked_again_once_its_answer_is_old(
    served: Served, source: FakeSource, mock_clock: trio.testing.MockClock
) -> None:
    async with served() as worker:
        await worker.ask.lookup("images/img")
        mock_clock.jump(ANSWER_TIMEOUT + 1)
        await worker.ask.lookup("images/img")
        assert source.stats == ["img", "img"]


async def test_another_version_at_the_source_is_another_inode(
    served: Served, source: FakeSource, mock_clock: trio.testing.MockClock
) -> None:
    async with served() as worker:
        before = await worker.ask.lookup("images/img")
        source.versions["img"] = '"v2"'
        mock_clock.jump(ANSWER_TIMEOUT + 1)
        after = await worker.ask.lookup("images/img")
        assert before.st_ino != after.st_ino


async def test_an_image_that_the_source_lacks_does_not_exist(served: Served) -> None:
    async with served() as worker:
        with refused(errno.ENOENT):
            await worker.ask.lookup("images/unknown")


async def test_a_no_is_believed_for_a_while_and_then_asked_for_again(
    served: Served, source: FakeSource, mock_clock: trio.testing.MockClock
) -> None:
    async with served() as worker:
        for _ in range(2):
            with refused(errno.ENOENT):
                await worker.ask.lookup("images/late")
        assert source.stats == ["late"]
        source.images["late"] = SMALL
        mock_clock.jump(NEGATIVE_TTL + 0.1)
        assert (await worker.ask.lookup("images/late")).st_size == len(SMALL)


async def test_with_on_miss_enoent_the_source_is_not_asked(
    served: Served, source: FakeSource
) -> None:
    async with served(on_miss="enoent") as worker:
        with refused(errno.ENOENT):
            await worker.ask.lookup("images/img")
        assert source.stats == []


@pytest.mark.parametrize(
    "name",
    [
        *(each.encode() for each in sorted(RESERVED_NAMES)),
        b".hidden",
        b"x" * 256,
        b"new\nline",
        b"\xff",
    ],
)
async def test_a_bad_id_is_invalid_and_never_reaches_the_source(
    served: Served, source: FakeSource, name: bytes
) -> None:
    async with served() as worker:
        with refused(errno.EINVAL):
            await worker.ask.lookup(b"images/" + name)
        assert source.stats == []


async def test_an_id_of_255_bytes_in_any_script_is_an_image(
    served: Served, source: FakeSource
) -> None:
    name = "образ ~%#" + "é" * 120
    name += "x" * (255 - len(name.encode()))
    source.images[name] = SMALL
    async with served() as worker:
        assert await worker.ask.cat(f"images/{name}") == SMALL


async def test_two_look_ups_at_once_ask_the_source_once(served: Served, source: FakeSource) -> None:
    source.answer.clear()
    inodes = set()
    async with served() as worker:

        async def look_up() -> None:
            inodes.add((await worker.ask.lookup("images/img")).st_ino)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            nursery.start_soon(look_up)
            await trio.testing.wait_all_tasks_blocked()
            source.answer.set()
        assert len(inodes) == 1
        assert source.stats == ["img"]


async def test_a_file_is_no_directory(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.ENOTDIR):
            await worker.ask.lookup("images/a/b")


async def test_a_node_that_the_kernel_forgot_is_stale(served: Served) -> None:
    async with served() as worker:
        inode = (await worker.ask.lookup("images/img")).st_ino
        await worker.ask.lookup("images/img")
        await worker.ask.forget(inode)
        with refused(errno.ESTALE):
            await worker.ask.getattr(inode)


@pytest.mark.parametrize(
    "inode",
    [
        12,
        join(NodeKind.CACHED, 99),
        join(NodeKind.LAZY, 99),
        join(NodeKind.RECORD, 99),
        join(77, 1),
    ],
)
async def test_a_number_that_means_nothing_is_stale(served: Served, inode: int) -> None:
    async with served() as worker:
        with refused(errno.ESTALE):
            await worker.ask.getattr(inode)
        with refused(errno.ESTALE):
            await worker.ask.open_inode(inode)


# Attributes


async def test_an_image_has_its_size_and_can_only_be_read(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        for name, size in (("a", len(SMALL)), ("img", len(DATA))):
            entry = await worker.ask.getattr((await worker.ask.lookup(f"images/{name}")).st_ino)
            assert oct(entry.st_mode) == oct(stat.S_IFREG | 0o444)
            assert (entry.st_size, entry.st_blocks) == (size, -(-size // 512))
            assert entry.st_nlink == 1


async def test_a_cached_image_has_the_times_of_its_record(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        record = worker.store.quick.get("a")
        assert record is not None
        entry = await worker.ask.lookup("images/a")
        assert entry.st_mtime_ns == to_ns(record.last_modified)
        assert entry.st_atime_ns == to_ns(record.last_accessed)


async def test_the_kernel_may_believe_a_name_briefly_and_attributes_long(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        for name in ("a", "img"):
            entry = await worker.ask.lookup(f"images/{name}")
            assert entry.entry_timeout == NAME_TIMEOUT
            assert entry.attr_timeout >= 3600


@every_driver
async def test_a_cached_image_shows_its_record_as_extended_attributes(
    served: Served, driver: str
) -> None:
    async with served(driver=driver, images={"a": SMALL}) as worker:
        names = await worker.ask.listxattr("images/a")
        values = {name: await worker.ask.getxattr("images/a", name) for name in names}
        assert {"state", "hits", "size", "checksum", "fetched", "last_accessed", "pinned"} == {
            name.removeprefix("user.cachefs.") for name in names
        }
        assert values["user.cachefs.state"] == b"cached"
        assert values["user.cachefs.size"] == str(len(SMALL)).encode()
        assert values["user.cachefs.hits"] == b"0"


async def test_an_uncached_image_shows_that_it_is_absent_and_then_incomplete(
    served: Served, held: FakeSource
) -> None:
    async with served() as worker:
        assert await worker.ask.getxattr("images/img", "user.cachefs.state") == b"absent"
        handle = await worker.ask.open("images/img")
        assert await worker.ask.getxattr("images/img", "user.cachefs.state") == b"incomplete"
        assert await worker.ask.getxattr("images/img", "user.cachefs.hits") == b"1"
        await worker.ask.release(handle)


@pytest.mark.parametrize("name", ["user.other", "security.selinux", "system.posix_acl_access"])
async def test_an_unknown_extended_attribute_is_not_there(served: Served, name: str) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(pyfuse3.ENOATTR):
            await worker.ask.getxattr("images/a", name)


async def test_statfs_tells_of_the_limit_and_what_is_left(served: Served) -> None:
    async with served(images={"a": bytes(8192)}) as worker:
        space = await worker.ask.statfs()
        assert space.f_blocks * space.f_bsize == 10 * 2**30
        assert (space.f_blocks - space.f_bfree) * space.f_bsize == 8192
        assert (space.f_files, space.f_namemax) == (1, 255)


# Listing


@every_driver
async def test_what_is_cached_is_listed_page_by_page_each_once(
    served: Served, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fuse.operations.PAGE", 2)
    names = [f"image-{number}" for number in range(11)]
    async with served(driver=driver, images=dict.fromkeys(names, b"")) as worker:
        ask = Requests(worker.filesystem, monkeypatch, room=3)
        assert sorted(await ask.listdir("images")) == sorted(names)


async def test_an_image_evicted_during_a_listing_hides_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(images=dict.fromkeys("abcdef", b"")) as worker:
        ask = Requests(worker.filesystem, monkeypatch, room=2)
        number = await ask.opendir(IMAGES_INODE)
        first = await ask.readdir(number, 0)
        worker.store.evict(first[-1][0])
        position, rest = first[-1][1], []
        while page := await ask.readdir(number, position):
            rest += [name for name, _ in page]
            position = page[-1][1]
        await ask.releasedir(number)
        assert sorted(name for name, _ in first) + sorted(rest) == list("abcdef")


async def test_what_is_not_cached_is_not_listed(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        await worker.ask.lookup("images/img")
        assert await worker.ask.listdir("images") == ["a"]


async def test_the_root_has_two_directories(served: Served) -> None:
    async with served() as worker:
        assert await worker.ask.listdir("") == ["images", "control"]


async def test_a_file_cannot_be_listed(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.ENOTDIR):
            await worker.ask.opendir((await worker.ask.lookup("images/a")).st_ino)


# What is refused

Change = Callable[[Any, int, int], Awaitable[object]]
"""Asks for a change by the operations: of the file, and in the directory, with these numbers."""

CHANGES: dict[str, Change] = {
    "mkdir": lambda ops, _, parent: ops.mkdir(parent, b"new", 0o755, context()),
    "rmdir": lambda ops, _, parent: ops.rmdir(parent, b"a", context()),
    "mknod": lambda ops, _, parent: ops.mknod(parent, b"new", 0o644, 0, context()),
    "symlink": lambda ops, _, parent: ops.symlink(parent, b"new", b"a", context()),
    "link": lambda ops, file, parent: ops.link(file, parent, b"new", context()),
    "rename": lambda ops, _, parent: ops.rename(parent, b"a", parent, b"b", 0, context()),
    "create": lambda ops, _, parent: ops.create(parent, b"new", 0o644, os.O_WRONLY, context()),
    "unlink": lambda ops, _, parent: ops.unlink(parent, b"a", context()),
    "setxattr": lambda ops, file, _: ops.setxattr(file, b"user.x", b"1", context()),
    "removexattr": lambda ops, file, _: ops.removexattr(file, b"user.x", context()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("name", ["a", "img"])
async def test_nothing_changes_an_image(served: Served, change: Change, name: str) -> None:
    async with served(images={"a": SMALL}) as worker:
        file = (await worker.ask.lookup(f"images/{name}")).st_ino
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await change(worker.ask.operations, file, IMAGES_INODE)
        assert caught.value.errno == errno.EROFS
        assert await worker.ask.listdir("images") == ["a"]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_nothing_changes_what_control_consists_of(served: Served, change: Change) -> None:
    async with served() as worker:
        names = await worker.ask.listdir("control")
        file = (await worker.ask.lookup("control/max_size")).st_ino
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await change(worker.ask.operations, file, CONTROL_INODE)
        assert caught.value.errno == errno.EPERM
        assert await worker.ask.listdir("control") == names


@pytest.mark.parametrize("update", ["size", "mode", "uid", "gid", "atime", "mtime"])
@pytest.mark.parametrize("name", ["a", "img"])
async def test_an_image_keeps_its_attributes(served: Served, update: str, name: str) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.EROFS):
            await worker.ask.setattr(f"images/{name}", update)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
@pytest.mark.parametrize("name", ["a", "img"])
async def test_an_image_cannot_be_opened_for_writing_and_that_is_no_hit(
    served: Served, source: FakeSource, name: str, flags: int
) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.EROFS):
            await worker.ask.open(f"images/{name}", flags)
        status = await worker.record("status")
        assert (status["hits"], status["misses"], source.reads) == (0, 0, [])


# A real directory behind it


@every_driver
async def test_a_directory_of_images_is_read_through(
    served: Served, tmp_path: Path, driver: str
) -> None:
    images = Images(tmp_path / "origin")
    data = images.put("disk", 1_500_000)
    async with served(origin=open_source(str(images.directory)), driver=driver) as worker:
        assert await worker.ask.cat("images/disk") == data
        await worker.cached("disk")
        assert await worker.ask.cat("images/disk") == data
        record = await worker.record("cached/disk")
        assert record["verified"] is True

"""From one worker of a mount to the next: what was opened through the earlier one.

The earlier worker dies: its descriptors and locks are gone, nothing that it would do at an end is
done. The next one is told what the kernel has open.
"""

import errno
import os
from collections.abc import Callable

import pytest
from support.fake_source import FakeSource
from support.requests import Handle

from cachefs.errors import ImageNotFoundError
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import CONTROL_INODE, IMAGES_INODE, NodeKind, join
from cachefs.vfs.shown import SLOT_BYTES

from .conftest import DATA, MIB, Served, every_driver, refused, until

SMALL = b"small image"


# Control files


@pytest.mark.parametrize("name", ["status", "max_size", "config", "size", "enqueue"])
async def test_a_control_file_of_an_earlier_worker_is_read_on(served: Served, name: str) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open(f"control/{name}")
        whole = await worker.ask.read(handle)
    async with served(first=False) as worker:
        again = await worker.ask.read(handle)
        assert [len(again), again[:10]] == [len(whole), whole[:10]]
        assert len(worker.filesystem.open_files) == 1
        await worker.ask.release(handle)
        assert len(worker.filesystem.open_files) == 0


async def test_a_read_in_the_middle_through_another_worker_shows_the_rest(served: Served) -> None:
    async with served(dies=True, images={"a": bytes(123456)}) as worker:
        handle = await worker.ask.open("control/size")
        assert await worker.ask.read(handle, 0, 3) == b"123"
    async with served(first=False) as worker:
        assert await worker.ask.read(handle, 3) == b"456\n"
        await worker.ask.release(handle)


@pytest.mark.parametrize("new", ["7M", "70000M"], ids=["shorter", "longer"])
async def test_a_text_is_not_two_workers_texts(served: Served, new: str) -> None:
    """As `cat` reads it: all there is, and then whether that was all."""
    async with served(dies=True) as worker:
        await worker.ask.echo("100M", "control/max_size")
        handle = await worker.ask.open("control/max_size")
        assert await worker.ask.read(handle) == b"100M\n"
        other = await worker.ask.open("control/max_size")
        assert await worker.ask.read(other, 0, 2) == b"10"
    async with served(first=False) as worker:
        await worker.ask.echo(new, "control/max_size")
        assert await worker.ask.read(handle, 5) == b""
        assert await worker.ask.read(other, 2) == b"0M\n"
        assert await worker.ask.read(handle) == f"{new}\n".encode()
        assert await worker.ask.read(handle, len(new) + 1) == b""
        for each in (handle, other):
            await worker.ask.release(each)


async def test_of_a_long_text_the_end_is_known_and_its_middle_is_stale(
    served: Served, source: FakeSource
) -> None:
    names = [f"image-{number:05}" for number in range(SLOT_BYTES // 10)]
    source.answer.clear()  # nothing leaves the queue
    async with served(dies=True) as worker:
        for name in names:
            worker.store.enqueue(name)
        whole, middle = [await worker.ask.open("control/enqueue") for _ in range(2)]
        text = await worker.ask.read(whole, 0, MIB)
        assert len(text) > SLOT_BYTES
        assert await worker.ask.read(middle, 0, 4096) == text[:4096]
        worker.store.unqueue(names[-1])
    source.answer.clear()
    async with served(first=False) as worker:
        assert await worker.ask.read(whole, len(text)) == b""
        for each in (whole, middle):
            with refused(errno.ESTALE):
                await worker.ask.read(each, 4096)
        assert len(await worker.ask.read(middle, 0, 4096)) == 4096
        for each in (whole, middle):
            await worker.ask.release(each)


async def test_a_control_file_of_an_earlier_worker_is_written_on(served: Served) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open("control/max_size", os.O_WRONLY)
    async with served(first=False) as worker:
        await worker.ask.write(handle, "77M")
        assert await worker.ask.cat("control/max_size") == b"77M\n"
        await worker.ask.release(handle)


async def test_a_control_file_of_an_earlier_worker_can_be_closed_unread(served: Served) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open("control/status")
    async with served(first=False) as worker:
        await worker.ask.release(handle)
        assert len(worker.filesystem.open_files) == 0


@pytest.mark.parametrize("directory", ["cached", "pinned", "invalid"])
async def test_a_record_of_an_earlier_worker_is_stale(served: Served, directory: str) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        worker.store.pin("a", True)
        worker.store.fail("bad", ImageNotFoundError("no such image"))
        name = "bad" if directory == "invalid" else "a"
        handle = await worker.ask.open(f"control/{directory}/{name}")
    async with served(first=False) as worker:
        with refused(errno.ESTALE):
            await worker.ask.read(handle)
        with refused(errno.ESTALE):
            await worker.ask.getattr(handle.inode)
        await worker.ask.release(handle)


async def test_a_number_that_no_worker_ever_gave_is_stale(served: Served) -> None:
    async with served() as worker:
        with refused(errno.ESTALE):
            await worker.ask.read(Handle(1, 12345, True, False))
        with refused(errno.ESTALE):
            await worker.ask.write(Handle(1, 12345, True, False), "x")


# Listings


@pytest.mark.parametrize("path", ["images", "control/cached", "control/pinned"])
@every_driver
async def test_a_listing_that_an_earlier_worker_began_goes_on(
    served: Served, driver: str, path: str
) -> None:
    images = dict.fromkeys("abcdef", SMALL)
    async with served(dies=True, driver=driver, images=images) as worker:
        for name in images:
            worker.store.pin(name, True)
        worker.ask._room = 2
        number = await worker.ask.opendir((await worker.ask.lookup(path)).st_ino)
        names = await worker.ask.readdir(number, 0)
    async with served(first=False, driver=driver) as worker:
        names += await worker.ask.readdir(number, names[-1][1])
        await worker.ask.releasedir(number)
        assert sorted(name for name, _ in names) == list("abcdef")


async def test_a_fixed_listing_that_an_earlier_worker_began_goes_on(served: Served) -> None:
    async with served(dies=True) as worker:
        worker.ask._room = 4
        number = await worker.ask.opendir(CONTROL_INODE)
        first = await worker.ask.readdir(number, 0)
    async with served(first=False) as worker:
        rest = await worker.ask.readdir(number, first[-1][1])
        await worker.ask.releasedir(number)
        assert [name for name, _ in first + rest] == await worker.ask.listdir("control")


async def test_the_numbers_of_two_workers_are_never_the_same(served: Served) -> None:
    numbers = []
    for first in (True, False):
        async with served(first=first) as worker:
            numbers += [await worker.ask.opendir(IMAGES_INODE) for _ in range(3)]
            handles = [await worker.ask.open("control/status") for _ in range(3)]
            numbers += [handle.number for handle in handles]
            for handle in handles:
                await worker.ask.release(handle)
    assert len(set(numbers)) == len(numbers)


# Images


@every_driver
async def test_a_cached_image_that_is_open_is_read_on_and_closed(
    served: Served, driver: str
) -> None:
    async with served(dies=True, driver=driver, images={"a": SMALL}) as worker:
        handles = [await worker.ask.open("images/a") for _ in range(2)]
    handle = handles[0]
    handle.fd = None
    async with served(first=False, driver=driver, open_nodes={handle.inode: 2}) as worker:
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(handle)
        assert len(worker.filesystem.open_files) == 1
        await worker.ask.release(handle)
        assert len(worker.filesystem.open_files) == 0
        assert (await worker.record("cached/a"))["hits"] == 2


async def test_an_evicted_image_that_is_open_is_read_on(served: Served) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        worker.store.evict("a")
    handle.fd = None
    async with served(first=False, open_nodes={handle.inode: 1}) as worker:
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(handle)
        assert worker.held == []


async def test_an_image_taken_up_can_be_evicted_and_is_read_on(served: Served) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
    handle.fd = None
    async with served(first=False, open_nodes={handle.inode: 1}) as worker:
        worker.store.evict("a")
        assert await worker.ask.read_all(handle) == SMALL
        assert worker.held == [str(handle.inode)]
        await worker.ask.release(handle)
        assert worker.held == []


async def test_a_fetch_that_is_read_goes_on_without_asking_the_source_again(
    served: Served, held: FakeSource
) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open("images/img")
        assert await worker.ask.read(handle, 0, 4096) == DATA[:4096]
    held.gate.clear()
    held.reads.clear()
    async with served(first=False, open_nodes={handle.inode: 1}) as worker:
        assert worker.fetching == {"img"}
        assert await worker.ask.read(handle, 0, 4096) == DATA[:4096]
        held.gate.set()
        assert await worker.ask.read_all(handle) == DATA
        assert held.stats == ["img"]
        assert all(start >= MIB for _, start, _ in held.reads)
        await worker.cached("img")
        await worker.ask.release(handle)
        assert worker.held == []


async def test_an_image_opened_while_it_was_fetched_and_published_since_is_read_on(
    served: Served, source: FakeSource
) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open("images/img")
        await worker.ask.read_all(handle)
        await worker.cached("img")
        worker.store.evict("img")
    async with served(first=False, open_nodes={handle.inode: 1}, on_miss="enoent") as worker:
        assert await worker.ask.read_all(handle) == DATA
        assert (await worker.ask.getattr(handle.inode)).st_size == len(DATA)
        with refused(errno.EROFS):
            await worker.ask.open_inode(handle.inode, os.O_WRONLY)
        await worker.ask.release(handle)
        assert worker.held == []


async def test_what_no_kernel_has_open_any_more_is_not_held(served: Served) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        worker.store.evict("a")
        assert worker.held == [str(handle.inode)]
    async with served(first=False) as worker:
        assert worker.held == []


async def test_the_first_worker_of_a_mount_holds_nothing_of_an_earlier_mount(
    served: Served,
) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        worker.store.evict("a")
    async with served(first=True, open_nodes={handle.inode: 1}) as worker:
        assert worker.held == []
        with refused(errno.EIO):
            await worker.ask.read(Handle(handle.inode, handle.number, False, True))


@pytest.mark.parametrize("kind", [NodeKind.LAZY, NodeKind.CACHED])
async def test_what_is_lost_while_it_is_open_is_an_error_and_never_stale_to_its_readers(
    served: Served, kind: NodeKind
) -> None:
    inode = join(kind, 12345)
    lost = Handle(inode, inode, False, True)
    async with served(first=False, open_nodes={inode: 1}) as worker:
        with refused(errno.EIO):
            await worker.ask.getattr(inode)
        with refused(errno.EIO):
            await worker.ask.read(lost)
        with refused(errno.ESTALE):  # upon which the kernel looks the name up
            await worker.ask.open_inode(inode)
        await worker.ask.release(lost)
        assert worker.held == []


async def test_a_cached_image_that_could_not_be_taken_up_is_opened_again_later(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(dies=True, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
    handle.fd = None
    monkeypatch.setattr(ImageFiles, "reopen", failing(OSError(errno.EMFILE, "no descriptors")))
    async with served(first=False, open_nodes={handle.inode: 1}) as worker:
        with refused(errno.EIO):
            await worker.ask.read(handle)
        again = await worker.ask.open("images/a")
        assert again.inode == handle.inode
        assert await worker.ask.read_all(again) == SMALL
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(again)
        await worker.ask.release(handle)
        await until(lambda: len(worker.filesystem.open_files) == 0)  # it is kept for a moment
        assert worker.held == []


def failing(error: OSError) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail


async def test_a_fetch_that_an_earlier_worker_had_begun_for_nobody_goes_on(
    served: Served, held: FakeSource
) -> None:
    async with served(dies=True) as worker:
        handle = await worker.ask.open("images/img")
        await worker.ask.read(handle, 0, 4096)
        await worker.ask.release(handle)
    held.reads.clear()
    async with served(first=False) as worker:
        await worker.cached("img")
        assert worker.layout.image("img").read_bytes() == DATA
        assert all(start >= MIB for _, start, _ in held.reads)

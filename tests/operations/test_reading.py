"""Reading images: opens and hits, waiting for bytes, and what changes under an open file."""

import errno
import os
import threading
from typing import Any

import pytest
import trio
from support.fake_source import MIB, FakeSource
from support.requests import Handle, context

from cachefs.cache import ImageCache
from cachefs.drivers import Entry
from cachefs.errors import CacheFSError, StaleError
from cachefs.fetcher import Fetcher, Flight
from cachefs.vfs.hits import Hits
from cachefs.vfs.inodes import IMAGES_INODE, NodeKind, join, split
from cachefs.vfs.nodes import NOBODY
from cachefs.vfs.open_files import OpenFiles

from .conftest import DATA, Served, Worker, every_driver, every_mode, refused, sha256, until

SMALL = b"small image"


async def hits(worker: Worker, image_id: str) -> int:
    """The hits of a cached image, as its record shows them."""
    shown = await worker.record(f"cached/{image_id}")
    return int(shown["hits"])


def replaced(worker: Worker) -> int:
    """The inode that image a had before it was evicted, and cached with other bytes."""
    old = join(NodeKind.CACHED, worker.put("a", b"old"))
    worker.store.evict("a")
    worker.put("a", SMALL)
    return old


# Cached


@every_driver
@every_mode
async def test_a_cached_image_is_read_whole(served: Served, mode: str, driver: str) -> None:
    async with served(mode=mode, driver=driver, images={"a": DATA}) as worker:
        assert await worker.ask.cat("images/a") == DATA


@every_mode
async def test_a_read_past_the_end_is_empty_and_one_across_it_short(
    served: Served, mode: str
) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        assert await worker.ask.read(handle, len(SMALL) + 5) == b""
        assert await worker.ask.read(handle, 6, 4096) == SMALL[6:]
        await worker.ask.release(handle)


@every_mode
async def test_the_kernel_may_cache_an_images_bytes(served: Served, mode: str) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        assert (handle.direct_io, handle.keep_cache) == (False, True)
        await worker.ask.release(handle)


async def test_an_empty_image_is_read(served: Served, source: FakeSource) -> None:
    source.images["empty"] = b""
    async with served(images={"a": b""}) as worker:
        assert await worker.ask.cat("images/a") == b""
        assert await worker.ask.cat("images/empty") == b""


@every_driver
@every_mode
async def test_every_open_is_one_hit(served: Served, mode: str, driver: str) -> None:
    async with served(mode=mode, driver=driver, images={"a": SMALL}) as worker:
        for opens in (1, 2, 3):
            await worker.ask.cat("images/a")
            assert await hits(worker, "a") == opens
        assert (await worker.record("status"))["hits"] == 3


async def test_opens_by_pyfuse3_and_by_the_transport_count_and_share_alike(
    served: Served,
) -> None:
    async with served(images={"a": SMALL}) as worker:
        inode = (await worker.ask.lookup("images/a")).st_ino
        grant = worker.filesystem.image_files.open(inode, os.O_RDONLY)
        assert grant is not None
        info = await worker.ask.operations.open(inode, os.O_RDONLY, worker.ask.context)
        assert info.fh == grant.handle
        assert len(worker.filesystem.open_files) == 1
        assert await hits(worker, "a") == 2
        await worker.ask.operations.release(info.fh)
        assert await worker.ask.read(Handle(inode, grant.handle, False, True)) == SMALL
        grant.close()
        assert len(worker.filesystem.open_files) == 0


async def test_the_transport_opens_nothing_but_cached_images_for_reading(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        cached = (await worker.ask.lookup("images/a")).st_ino
        absent = (await worker.ask.lookup("images/img")).st_ino
        control = (await worker.ask.lookup("control/status")).st_ino
        opens = worker.filesystem.image_files.open
        assert opens(absent, os.O_RDONLY) is None
        assert opens(control, os.O_RDONLY) is None
        assert opens(join(NodeKind.CACHED, 99), os.O_RDONLY) is None
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            assert opens(cached, flags) is None
        assert len(worker.filesystem.open_files) == 0


@every_mode
async def test_an_image_opened_often_has_one_descriptor(served: Served, mode: str) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        handles = [await worker.ask.open("images/a") for _ in range(5)]
        assert len(worker.descriptors) == 1
        for handle in handles[1:]:
            await worker.ask.release(handle)
        assert await worker.ask.read(handles[0]) == SMALL
        await worker.ask.release(handles[0])


# Not cached


@every_driver
@every_mode
async def test_an_uncached_image_is_read_whole_and_then_cached(
    served: Served, source: FakeSource, mode: str, driver: str
) -> None:
    async with served(mode=mode, driver=driver) as worker:
        assert await worker.ask.cat("images/img") == DATA
        await worker.cached("img")
        assert source.sent == len(DATA)
        assert (worker.layout.image("img")).read_bytes() == DATA


@every_mode
async def test_a_read_waits_for_its_own_bytes_only(
    served: Served, held: FakeSource, mode: str
) -> None:
    async with served(mode=mode) as worker:
        handle = await worker.ask.open("images/img")
        assert await worker.ask.read(handle, 0, 4096) == DATA[:4096]
        assert await worker.ask.read(handle, 4 * MIB, 4096) == DATA[4 * MIB :][:4096]
        assert not held.gate.is_set()
        await worker.ask.release(handle)


@every_mode
async def test_opening_waits_for_no_byte(served: Served, held: FakeSource, mode: str) -> None:
    held.free = 0
    async with served(mode=mode) as worker:
        handle = await worker.ask.open("images/img")
        assert held.sent == 0
        await worker.ask.release(handle)


@every_mode
async def test_two_opens_share_one_fetch(served: Served, held: FakeSource, mode: str) -> None:
    async with served(mode=mode) as worker:
        first, second = [await worker.ask.open("images/img") for _ in range(2)]
        assert worker.fetching == {"img"}
        held.gate.set()
        assert await worker.ask.read_all(first) == DATA
        assert await worker.ask.read_all(second) == DATA
        assert (held.stats, held.sent) == (["img"], len(DATA))
        await worker.ask.release(first)
        await worker.ask.release(second)


@every_mode
async def test_opens_of_an_image_under_way_are_misses_and_its_hits_once_cached(
    served: Served, held: FakeSource, mode: str
) -> None:
    async with served(mode=mode) as worker:
        handles = [await worker.ask.open("images/img") for _ in range(3)]
        assert (await worker.record("incomplete/img"))["hits"] == 3
        held.gate.set()
        await worker.cached("img")
        assert await hits(worker, "img") == 3
        assert (await worker.record("status"))["misses"] == 3
        for handle in handles:
            await worker.ask.release(handle)


@every_mode
async def test_an_image_published_while_it_is_open_is_read_on_by_the_same_handle(
    served: Served, held: FakeSource, mode: str
) -> None:
    async with served(mode=mode) as worker:
        handle = await worker.ask.open("images/img")
        held.gate.set()
        await worker.cached("img")
        held.images.clear()
        assert await worker.ask.read_all(handle) == DATA
        assert (await worker.ask.getattr(handle.inode)).st_size == len(DATA)
        await worker.ask.release(handle)


@every_mode
async def test_a_published_image_is_another_inode_and_the_kernel_hears_of_it(
    served: Served, mode: str
) -> None:
    async with served(mode=mode) as worker:
        before = (await worker.ask.lookup("images/img")).st_ino
        await worker.ask.cat("images/img")
        await worker.cached("img")
        assert (IMAGES_INODE, b"img", 0) in worker.notifier.entries
        after = (await worker.ask.lookup("images/img")).st_ino
        assert split(before)[0] == NodeKind.LAZY
        assert split(after)[0] == NodeKind.CACHED


@every_mode
async def test_opening_the_old_inode_of_a_published_image_is_stale(
    served: Served, mode: str
) -> None:
    async with served(mode=mode) as worker:
        before = (await worker.ask.lookup("images/img")).st_ino
        await worker.ask.cat("images/img")
        await worker.cached("img")
        with refused(errno.ESTALE):
            await worker.ask.open_inode(before)


@every_mode
async def test_on_last_close_cancel_ends_a_fetch_that_nobody_reads(
    served: Served, held: FakeSource, mode: str
) -> None:
    async with served(mode=mode, on_last_close="cancel") as worker:
        first, second = [await worker.ask.open("images/img") for _ in range(2)]
        await worker.ask.release(first)
        assert not worker.filesystem._fetcher.flights["img"].cancelled
        await worker.ask.release(second)
        await until(lambda: not worker.fetching)
        assert list(worker.layout.incomplete_dir.iterdir()) == []
        assert worker.store.quick.get("img") is None


@every_mode
async def test_on_last_close_keep_goes_on_with_a_fetch_that_nobody_reads(
    served: Served, held: FakeSource, mode: str
) -> None:
    async with served(mode=mode) as worker:
        await worker.ask.release(await worker.ask.open("images/img"))
        held.gate.set()
        await worker.cached("img")
        assert worker.layout.image("img").read_bytes() == DATA


async def test_an_image_whose_fetch_was_cancelled_can_be_opened_again(
    served: Served, held: FakeSource
) -> None:
    async with served(on_last_close="cancel") as worker:
        await worker.ask.release(await worker.ask.open("images/img"))
        held.gate.set()
        assert await worker.ask.cat("images/img") == DATA


# Under an open file


@every_driver
@every_mode
async def test_an_image_evicted_while_it_is_open_is_read_on(
    served: Served, mode: str, driver: str
) -> None:
    async with served(mode=mode, driver=driver, images={"a": SMALL}, on_miss="enoent") as worker:
        handle = await worker.ask.open("images/a")
        await worker.ask.unlink("control/cached/a")
        with refused(errno.ENOENT):
            await worker.ask.lookup("images/a")
        assert await worker.ask.read_all(handle) == SMALL
        assert (await worker.ask.getattr(handle.inode)).st_size == len(SMALL)
        await worker.ask.release(handle)
        with refused(errno.ESTALE):
            await worker.ask.getattr(handle.inode)


@every_mode
async def test_an_evicted_image_that_is_open_is_held_and_counted(served: Served, mode: str) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        worker.store.evict("a")
        assert worker.held == [str(handle.inode)]
        assert worker.store.usage().held == len(SMALL)
        await worker.ask.release(handle)
        assert worker.held == []
        assert worker.store.usage().held == 0


@every_mode
async def test_the_kernel_hears_of_an_eviction_before_it_returns(served: Served, mode: str) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        inode = (await worker.ask.lookup("images/a")).st_ino
        await worker.ask.unlink("control/cached/a")
        assert worker.notifier.entries == [(IMAGES_INODE, b"a", inode)]


@every_mode
async def test_an_image_fetched_anew_is_another_inode(
    served: Served, source: FakeSource, mode: str
) -> None:
    async with served(mode=mode, images={"img": DATA}) as worker:
        handle = await worker.ask.open("images/img")
        worker.store.evict("img")
        source.images["img"] = changed = bytes(reversed(DATA))
        source.digests["img"] = sha256(changed)
        assert await worker.ask.cat("images/img") == changed
        await worker.cached("img")
        assert (await worker.ask.lookup("images/img")).st_ino != handle.inode
        assert await worker.ask.read_all(handle) == DATA
        await worker.ask.release(handle)


async def test_an_image_evicted_between_look_up_and_open_is_looked_up_again(
    served: Served, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(images={"img": DATA}) as worker:
        inode = (await worker.ask.lookup("images/img")).st_ino
        worker.store.evict("img")
        with refused(errno.ESTALE):
            await worker.ask.open_inode(inode)
        assert await worker.ask.cat("images/img") == DATA


@every_mode
async def test_an_image_whose_last_other_reader_closes_it_while_it_is_opened_stays_open(
    served: Served, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """In the very turn of the event loop in which a thread has found that it is the same image."""
    async with served(mode=mode) as worker:
        await worker.ask.cat("images/img")
        await worker.cached("img")
        worker.ask.context = context(os.getpid())
        other = await worker.ask.open("images/img")
        os.utime(worker.layout.image("img"))  # so a thread compares it with its digest
        count = Hits.count

        def closed_in_the_next_turn(hits: Hits, image_id: str) -> None:
            count(hits, image_id)
            trio.lowlevel.spawn_system_task(worker.ask.release, other)

        monkeypatch.setattr(Hits, "count", closed_in_the_next_turn)
        handle = await worker.ask.open("images/img")
        await trio.testing.wait_all_tasks_blocked()
        assert len(worker.filesystem.open_files) == 1
        worker.filesystem.image_files.idle.close()
        assert await worker.ask.read_all(handle) == DATA
        await worker.ask.release(handle)
        assert len(worker.filesystem.open_files) == 0


async def test_an_image_closed_while_its_number_is_looked_up_in_a_thread_is_stale(
    served: Served,
) -> None:
    """It had lost its record, so all that is known of it is its open file."""
    async with served(dies=True) as worker:
        earlier = await worker.ask.open("images/img")
        await worker.ask.read_all(earlier)
        await worker.cached("img")
        worker.store.evict("img")
    async with served(first=False, open_nodes={earlier.inode: 1}, on_miss="enoent") as worker:
        node = worker.filesystem.image_files.nameless(earlier.inode)
        assert node is not None
        await worker.ask.release(earlier)
        with pytest.raises(StaleError):
            await node.open(NOBODY, writing=False)


@every_driver
async def test_what_is_looked_up_after_a_refusal_is_opened_though_its_worker_dies_and_it_is_evicted(
    served: Served, driver: str
) -> None:
    """The kernel asks no third time: so the reader had ESTALE."""
    async with served(driver=driver, on_miss="enoent", dies=True) as worker:
        old = replaced(worker)
        with refused(errno.ESTALE):
            await worker.ask.open_inode(old)
        new = (await worker.ask.lookup("images/a")).st_ino
        worker.store.evict("a")
    async with served(driver=driver, on_miss="enoent", first=False) as worker:
        handle = await worker.ask.open_inode(new)
        await until(lambda: worker.filesystem._images.expected.idle)
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(handle)
        assert worker.held == []


@every_mode
async def test_an_image_is_kept_for_its_open_when_its_attributes_were_refused(
    served: Served, mode: str
) -> None:
    """The kernel asks for attributes that it does not believe any more before it opens."""
    async with served(mode=mode, on_miss="enoent") as worker:
        old = replaced(worker)
        with refused(errno.ESTALE):
            await worker.ask.getattr(old)
        new = (await worker.ask.lookup("images/a")).st_ino
        worker.store.evict("a")
        assert (await worker.ask.getattr(new)).st_size == len(SMALL)
        handle = await worker.ask.open_inode(new)
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(handle)


async def test_what_is_kept_for_an_open_that_never_comes_is_released_by_the_next_worker(
    served: Served,
) -> None:
    async with served(on_miss="enoent", dies=True) as worker:
        worker.put("a", SMALL)
        worker.filesystem._images.expected.refused("a")
        inode = (await worker.ask.lookup("images/a")).st_ino
        worker.store.evict("a")
    async with served(on_miss="enoent", first=False) as worker:
        assert worker.held == [str(inode)]
        await until(lambda: worker.filesystem._images.expected.idle)
        assert worker.held == []
        assert len(worker.filesystem.open_files) == 0
    async with served(on_miss="enoent", first=False) as worker:
        assert worker.filesystem._images.expected.idle


@pytest.mark.parametrize("cached", [False, True])
async def test_a_fetch_begun_after_a_refusal_is_opened_though_its_worker_dies(
    served: Served, source: FakeSource, cached: bool
) -> None:
    async with served(dies=True) as worker:
        old = (await worker.ask.lookup("images/img")).st_ino
        await worker.ask.cat("images/img")
        await worker.cached("img")
        worker.store.evict("img")
        with refused(errno.ESTALE):
            await worker.ask.open_inode(old)
        source.gate.clear()
        source.free = 0
        new = (await worker.ask.lookup("images/img")).st_ino
        assert split(new)[0] == NodeKind.LAZY
    source.gate.set()
    if cached:  # by another, a Glance say, while nobody serves
        ImageCache(worker.layout.base).cache_image_iter("img", [DATA])
    async with served(first=False) as worker:
        handle = await worker.ask.open_inode(new)
        assert await worker.ask.read_all(handle) == DATA
        await worker.ask.release(handle)
        await worker.cached("img")
        assert worker.held == []


async def test_what_the_kernel_forgets_of_an_earlier_worker_costs_no_reader_its_open(
    served: Served, source: FakeSource
) -> None:
    """The number that the next worker had again for an open was given to look-ups, too."""
    async with served(dies=True) as worker:
        worker.filesystem._images.expected.refused("img")
        source.gate.clear()
        source.free = 0
        for _ in range(5):
            before = (await worker.ask.lookup("images/img")).st_ino
    async with served(first=False) as worker:
        source.gate.clear()
        inode = (await worker.ask.lookup("images/img")).st_ino
        await worker.ask.operations.forget([(before, 5)])
        source.gate.set()
        handles = [await worker.ask.open_inode(each) for each in (inode, before)]
        for handle in handles:
            assert await worker.ask.read_all(handle) == DATA
            await worker.ask.release(handle)
        await until(lambda: worker.filesystem._images.expected.idle)
        with refused(errno.ESTALE):
            await worker.ask.open_inode(before)


async def test_what_is_open_is_known_before_the_next_worker_fetches_or_evicts(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what a queued image needs room for could be what a reader has open."""
    async with served(images={"a": SMALL}, dies=True) as worker:
        handle = await worker.ask.open("images/a")
    order = []
    run, grant = Fetcher.run, OpenFiles.grant

    def granting(self: OpenFiles, *arguments: Any, **rest: Any) -> Any:
        order.append("open")
        return grant(self, *arguments, **rest)

    async def running(self: Fetcher, *arguments: Any, **rest: Any) -> None:
        order.append("fetch")
        await run(self, *arguments, **rest)

    monkeypatch.setattr(OpenFiles, "grant", granting)
    monkeypatch.setattr(Fetcher, "run", running)
    async with served(first=False, open_nodes={handle.inode: 1}) as worker:
        assert order == ["open", "fetch"]
        await worker.ask.release(handle)


async def test_a_closed_image_is_never_granted(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        grant = worker.filesystem.open_files.opened(handle.number)
        assert grant is not None
        await worker.ask.release(handle)
        with pytest.raises(StaleError):
            worker.filesystem.open_files.grant(grant.file, handle.inode)
        with pytest.raises(StaleError):
            worker.filesystem.open_files.keep(grant.file)


async def test_a_read_whose_fetch_starts_over_as_its_wait_ends_waits_for_the_new_file(
    served: Served, held: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program takes the incomplete file away; the new one is full of holes."""
    wait, start_over = Flight.wait, Flight._start_over
    over = trio.Event()

    async def wait_a_little_longer(flight: Flight, start: int, stop: int) -> None:
        await wait(flight, start, stop)
        await over.wait()
        await until(lambda: flight.fd >= 0)

    def hold_back_again(flight: Flight) -> None:
        start_over(flight)
        held.gate.clear()
        held.free = 0
        over.set()

    monkeypatch.setattr(Flight, "wait", wait_a_little_longer)
    monkeypatch.setattr(Flight, "_start_over", hold_back_again)
    async with served(mode="plain") as worker:
        handle = await worker.ask.open("images/img")
        read: list[bytes] = []

        async def read_some() -> None:
            read.append(await worker.ask.read(handle, 2 * MIB + 5, 4096))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_some)
            worker.layout.incomplete("img").unlink()
            held.gate.set()
            await over.wait()
            await until(lambda: worker.filesystem._fetcher.flights["img"].fd >= 0)
            await trio.testing.wait_all_tasks_blocked(0.01)
            held.gate.set()
        assert read == [DATA[2 * MIB + 5 :][:4096]]
        await worker.cached("img")
        await worker.ask.release(handle)


def hold_back_ends(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Flights that have been cancelled end once this is set."""
    end, run = trio.Event(), Flight.run

    async def end_later(flight: Flight, after: trio.Event | None = None) -> Entry | None:
        entry = await run(flight, after)
        if flight.cancelled:
            await end.wait()
        return entry

    monkeypatch.setattr(Flight, "run", end_later)
    return end


@every_mode
async def test_an_image_whose_fetch_is_cancelled_while_it_is_read_is_fetched_anew_for_the_next(
    served: Served, held: FakeSource, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Before the cancelled fetch has ended; the reader of that one gets its error."""
    end = hold_back_ends(monkeypatch)
    async with served(mode=mode) as worker:
        first = await worker.ask.open("images/img")
        worker.filesystem._fetcher.flights["img"].cancel(CacheFSError("cancelled"))
        held.gate.set()
        second = await worker.ask.open("images/img")
        assert await worker.ask.read_all(second) == DATA
        assert second.inode != first.inode
        with refused(errno.EIO):
            await worker.ask.read(first)
        end.set()
        await worker.cached("img")
        await worker.ask.release(first)
        await worker.ask.release(second)
        assert len(worker.filesystem.open_files) == 0


async def test_the_end_of_a_cancelled_fetch_takes_no_name_from_the_next(
    served: Served, held: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = hold_back_ends(monkeypatch)
    async with served() as worker:
        first = await worker.ask.open("images/img")
        worker.filesystem._fetcher.flights["img"].cancel(CacheFSError("cancelled"))
        earlier, held.gate = held.gate, threading.Event()
        earlier.set()
        second = await worker.ask.open("images/img")
        end.set()
        await until(lambda: (IMAGES_INODE, b"img", 0) in worker.notifier.entries)
        assert (await worker.ask.lookup("images/img")).st_ino == second.inode
        held.gate.set()
        await worker.ask.release(first)
        await worker.ask.release(second)

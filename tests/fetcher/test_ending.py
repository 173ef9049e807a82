"""Flights of images in memory that end early, are gone on with, break, or wait for others."""

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.cache import Layout, Store
from cachefs.drivers import Entry
from cachefs.errors import (
    CacheFSError,
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
)
from cachefs.fetcher import Flight
from cachefs.sources import SourceImage

from .conftest import (
    DATA,
    MIB,
    PATIENCE,
    FakeSource,
    Running,
    cached,
    failure_of,
    fetch,
    read,
    until,
)

pytestmark = pytest.mark.usefixtures("quick_retries")


async def end_unread(flight: Flight, held: FakeSource) -> None:
    """The image is opened and closed before its bytes come; return once the flight has ended."""
    flight.add_reader()
    flight.drop_reader()
    held.gate.set()
    await flight.finished.wait()


# Cancelling and ending


async def test_a_cancelled_fetch_leaves_nothing(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        store.enqueue("img")
        flight = fetcher.start(await fetcher.stat("img"))
        await read(flight, 0, 1)
        await fetcher.cancel("img")
        assert flight.finished.is_set()
        assert "cancelled" in str(await failure_of(flight, 8 * MIB, 9 * MIB))
        assert store.usage().reserved == 0
        assert store.queued_ids() == store.failed_ids() == []
        held.gate.set()
    assert list(Layout(store.cache_dir).incomplete_dir.iterdir()) == []
    assert list(Layout(store.cache_dir).maps_dir.iterdir()) == []


async def test_what_is_not_being_fetched_cannot_be_cancelled(
    running: Running, source: FakeSource
) -> None:
    async with running(source) as fetcher:
        with pytest.raises(ImageNotFoundError):
            await fetcher.cancel("img")


async def test_who_opens_an_image_whose_fetch_is_being_cancelled_gets_a_new_fetch(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        image = await fetcher.stat("img")
        flight = fetcher.start(image)
        await read(flight, 0, 1)
        flight.cancel(CacheFSError("enough"))
        again = fetcher.start(image)
        assert again is not flight
        assert fetcher.start(image) is again
        held.gate.set()
        await again.finished.wait()
        assert again.error is None
        assert not fetcher.flights
    assert cached(store) == DATA


async def test_with_cancel_the_last_close_ends_the_fetch(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held, keep=False) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        flight.add_reader()
        flight.drop_reader()
        await read(flight, 0, 1)
        assert not flight.cancelled
        flight.drop_reader()
        await flight.finished.wait()
        held.gate.set()
    assert list(Layout(store.cache_dir).incomplete_dir.iterdir()) == []
    assert store.failed_ids() == []


async def test_with_cancel_the_last_close_does_not_end_what_is_queued(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held, keep=False) as fetcher:
        store.enqueue("img")
        fetcher.wake()
        await until(lambda: fetcher.flights)
        flight = fetcher.flights["img"]
        await end_unread(flight, held)
    assert cached(store) == DATA


async def test_without_cancel_a_fetch_outlives_its_readers(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await end_unread(flight, held)
    assert cached(store) == DATA


async def test_the_daemons_end_keeps_what_has_come_and_the_next_goes_on(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held, connections=4, span=2 * MIB) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived == 4 * MIB)
    assert isinstance(await failure_of(flight, 0, len(DATA)), SourceError)
    held.gate.set()
    before = held.sent
    async with running(held):  # by itself
        await until(lambda: store.quick.get("img"))
    assert cached(store) == DATA
    # What the left behind threads still got was not written; at most a piece for each.
    assert held.sent - before <= len(DATA) - 4 * MIB + 4 * MIB


async def test_a_partial_image_of_another_version_is_started_afresh(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    fresh = Random(5).randbytes(len(DATA))
    held.gate.set()
    held.images["img"], held.versions["img"], held.digests["img"] = fresh, '"v2"', None
    async with running(held):
        await until(lambda: store.quick.get("img"))
    assert cached(store) == fresh


@pytest.mark.parametrize("version", ['W/"v1"', None])
async def test_a_version_that_may_be_another_tomorrow_is_started_afresh(
    running: Running, held: FakeSource, store: Store, version: str | None
) -> None:
    held.versions["img"], held.digests["img"] = version, None
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    fresh = Random(5).randbytes(len(DATA))
    held.gate.set()
    held.images["img"] = fresh
    async with running(held):
        await until(lambda: store.quick.get("img"))
    assert cached(store) == fresh


async def test_a_version_with_a_very_long_name_is_gone_on_with(
    running: Running, held: FakeSource, store: Store
) -> None:
    held.versions["img"], held.digests["img"] = '"' + "x" * 10_000 + '"', None
    async with running(held, connections=1, urgent=0) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    held.gate.set()
    async with running(held):
        await until(lambda: store.quick.get("img"))
    assert min(start for _, start, _ in held.reads[1:]) == MIB


async def test_what_a_thread_left_behind_gets_later_hurts_nobody(
    running: Running, held: FakeSource, store: Store
) -> None:
    """Its source has turned into another meanwhile, and sends that."""
    async with running(held, connections=1, urgent=0) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    true, held.images["img"] = held.images["img"], bytes(len(DATA))
    other = FakeSource({"img": true}, digests=dict(held.digests))
    other.url = held.url
    async with running(other):
        await until(lambda: store.quick.get("img"))
        sent = held.sent
        held.gate.set()  # now it wakes up, and has bytes for the very same file
        await until(lambda: held.sent > sent)
    assert cached(store) == DATA


# Sources without ranges


async def test_a_source_without_ranges_is_one_stream_and_readers_wait_for_it(
    running: Running, held: FakeSource, store: Store
) -> None:
    held.ranges = False
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        assert await read(flight, 0, 10) == DATA[:10]
        with trio.move_on_after(0.05) as scope:
            await flight.wait(5 * MIB, 6 * MIB)
        assert scope.cancelled_caught
        held.gate.set()
        await flight.finished.wait()
    assert held.reads == [("img", 0, len(DATA))]
    assert cached(store) == DATA


async def test_parts_that_nothing_could_tell_apart_are_not_asked_for(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.versions["img"], source.digests = None, {}
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
    assert source.reads == [("img", 0, len(DATA))]
    assert cached(store) == DATA


BrokenStream = Callable[[bytes], FakeSource]


@pytest.fixture
def broken_stream(source: FakeSource, monkeypatch: pytest.MonkeyPatch) -> BrokenStream:
    """A source of one stream that breaks half way, and sends *again* from the start after it."""

    def make(again: bytes) -> FakeSource:
        source.ranges = False

        def send(image: SourceImage, start: int, stop: int) -> Generator[bytes]:
            source.reads.append((image.image_id, start, stop))
            if len(source.reads) == 1:
                yield from (DATA[at : at + MIB] for at in range(0, 4 * MIB, MIB))
                raise SourceError("broken")
            yield from (again[at : at + MIB] for at in range(0, len(again), MIB))

        monkeypatch.setattr(source, "read", send)
        return source

    return make


async def test_a_stream_that_breaks_starts_over(
    running: Running, broken_stream: BrokenStream, store: Store
) -> None:
    async with running(broken_stream(DATA)) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == DATA


async def test_a_stream_that_is_another_after_it_broke_is_never_mixed(
    running: Running, broken_stream: BrokenStream, store: Store
) -> None:
    """The bytes hashed before are not those of the file, unless somebody looks."""
    other = b"?" + DATA[1:]
    async with running(broken_stream(other), tries=1) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ImageChangedError)
        await until(lambda: not fetcher.under_way())
    assert store.quick.get("img") is None


# Who goes first


async def test_queued_images_are_fetched_by_priority_then_in_order(
    running: Running, store: Store
) -> None:
    source = FakeSource(dict.fromkeys("abcd", b"x"))
    for name in "abcd":
        store.enqueue(name)
    store.set_priority("c", 5)
    store.set_priority("a", -1)
    async with running(source, fetches=1):
        await until(lambda: store.quick.totals().images == 4)
    assert [name for name, _, _ in source.reads] == ["c", "b", "d", "a"]


async def test_a_fetch_that_is_read_goes_before_queued_ones(running: Running, store: Store) -> None:
    source = FakeSource({"queued": bytes(20 * MIB), "read": bytes(5 * MIB)})
    source.gate.clear()
    source.free = MIB
    async with running(source, span=2 * MIB, connections=1, urgent=0) as fetcher:
        store.enqueue("queued")
        fetcher.wake()
        await until(lambda: source.reads)
        flight = fetcher.start(await fetcher.stat("read"))
        flight.add_reader()
        await until(lambda: len(source.reads) == 2)
        source.gate.set()
        await flight.finished.wait()
        flight.drop_reader()
        await until(lambda: store.quick.get("queued"))
    order = [name for name, _, _ in source.reads]
    assert order[:4] == ["queued", "read", "read", "read"]


async def test_a_fetch_is_published_though_others_go_first(running: Running, store: Store) -> None:
    source = FakeSource({"done": bytes(3 * MIB), "stalled": bytes(3 * MIB)})
    source.gate.clear()
    source.free = MIB
    async with running(source, span=2 * MIB, connections=2, urgent=2) as fetcher:
        done = fetcher.start(await fetcher.stat("done"))
        await until(lambda: source.waiting == 1)
        stalled = fetcher.start(await fetcher.stat("stalled"))
        stalled.add_reader()
        await until(lambda: source.waiting == 2)
        source.gate.set()
        source.gate = threading.Event()  # whoever comes now waits
        await done.finished.wait()
        assert done.error is None
        stalled.drop_reader()
        source.gate.set()


async def test_a_stalled_source_keeps_no_thread_from_others(running: Running, store: Store) -> None:
    source = FakeSource({f"stalled{n}": bytes(4 * MIB) for n in range(12)})
    source.gate.clear()
    source.free = 0
    async with running(source, fetches=12, span=MIB) as fetcher:
        for name in source.images:
            store.enqueue(name)
        fetcher.wake()
        await until(lambda: len(source.reads) == 48)
        # The default limiter has forty; who uses it must not notice.
        with trio.fail_after(PATIENCE):
            assert await trio.to_thread.run_sync(store.usage)
        source.gate.set()
        await until(lambda: store.quick.totals().images == 12)


async def test_a_limit_holds_for_all_connections_together(running: Running, store: Store) -> None:
    source = FakeSource({"img": bytes(4 * MIB)})
    began = time.monotonic()
    async with running(source, bandwidth=8 * MIB, span=MIB) as fetcher:
        await fetch(fetcher, "img")
    # Four pieces at 8 MiB a second: but for the burst, the wait for each is a lower bound.
    assert time.monotonic() - began >= (4 / 8) - 0.1 - 0.05


async def test_the_prefetch_limit_is_not_for_who_is_read(running: Running, store: Store) -> None:
    source = FakeSource({"img": bytes(8 * MIB)})
    async with running(source, prefetch_bandwidth=MIB // 64, limit=10) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        await flight.finished.wait()
        flight.drop_reader()
    assert store.quick.get("img")


async def test_what_is_incomplete_and_nobodys_is_queued_at_start(
    running: Running, held: FakeSource, store: Store, cache_dir: Path
) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    assert store.abandoned() == ["img"]
    held.gate.set()
    async with running(held):
        await until(lambda: store.quick.get("img"))
        await until(lambda: not store.queued_ids())  # it leaves the queue with its publication


async def test_an_image_evicted_while_its_fetch_winds_up_can_be_queued_at_once(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = store._publishing.publish

    async with running(source) as fetcher:

        def evicted_just_then(entry: Entry, path: Path, fd: int) -> Entry:
            monkeypatch.setattr(store._publishing, "publish", really)
            published = really(entry, path, fd)
            store.evict("img")
            trio.from_thread.run_sync(fetcher.image_wanted, "img")
            assert store.enqueue("img")
            return published

        monkeypatch.setattr(store._publishing, "publish", evicted_just_then)
        flight = await fetch(fetcher, "img")
        assert flight.error is None
        await until(lambda: store.is_cached("img"))
        assert cached(store) == DATA

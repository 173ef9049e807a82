"""Flights of images in memory: one for all, readers, failures, cancelling, ending, resuming."""

import errno
import os
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from random import Random

import pytest
import trio

from cachefs.cache import Hasher, Store
from cachefs.errors import (
    CacheFSError,
    ImageBusyError,
    ImageChangedError,
    ImageExistsError,
    ImageNotFoundError,
    NoRoomError,
    SourceError,
)
from cachefs.fetcher import transfer
from cachefs.fetcher.flight import FlightState
from cachefs.image import Digest
from cachefs.sources import SourceImage

from .conftest import MIB, FakeSource, Running, failure_of, fetch, read, until

DATA = Random(3).randbytes(9 * MIB + 17)


def sha256(data: bytes) -> Digest:
    hasher = Hasher(None, "sha256")
    hasher.update(data)
    return hasher.finish()


def cached(store: Store, image_id: str = "img") -> bytes:
    return (store.layout.base / image_id).read_bytes()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def source() -> FakeSource:
    return FakeSource({"img": DATA}, digests={"img": sha256(DATA)})


@pytest.fixture
def held(source: FakeSource) -> FakeSource:
    """The source, which sends a chunk of each read and then waits for its gate."""
    source.gate.clear()
    source.free = MIB
    return source


@pytest.fixture
def silent(held: FakeSource) -> FakeSource:
    """The source, which sends nothing until its gate is set."""
    held.free = 0
    return held


# One flight


async def test_a_fetch_publishes_what_the_source_has(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
    assert flight.state is FlightState.PUBLISHED
    assert cached(store) == DATA
    entry = store.get("img")
    assert entry is not None
    assert entry.verified
    assert entry.checksum == str(sha256(DATA))
    assert list(store.layout.maps_dir.iterdir()) == []


async def test_without_a_digest_the_one_found_is_recorded_as_not_verified(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests = {}
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
    entry = store.get("img")
    assert entry is not None
    assert not entry.verified
    assert entry.checksum == str(sha256(DATA))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB])
@pytest.mark.parametrize("ranges", [True, False])
async def test_every_size_is_fetched_once(
    running: Running, store: Store, size: int, ranges: bool
) -> None:
    data = Random(size).randbytes(size)
    source = FakeSource({"img": data}, ranges=ranges, digests={"img": sha256(data)})
    async with running(source, span=2 * MIB) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == data
    assert source.sent == size


async def test_no_byte_is_asked_for_twice(running: Running, source: FakeSource) -> None:
    async with running(source, span=MIB, connections=4) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        async with trio.open_nursery() as readers:
            for number in range(32):
                readers.start_soon(read, flight, number * MIB // 4, number * MIB // 4 + 10)
        await flight.finished.wait()
    assert source.sent == len(DATA)


async def test_there_is_one_flight_for_readers_and_queue(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        image = await fetcher.stat("img")
        flight = fetcher.start(image)
        store.queue.add("img")
        fetcher.wake()
        assert fetcher.start(image) is flight
        held.gate.set()
        await flight.finished.wait()
        await until(lambda: not fetcher.flights)
        assert "img" not in store.queue
    assert held.sent == len(DATA)


# Readers


async def test_a_reader_waits_for_its_own_bytes_alone(running: Running, held: FakeSource) -> None:
    async with running(held, connections=1, urgent=1, span=MIB, urgent_span=MIB) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        assert await read(flight, 0, 10) == DATA[:10]
        assert await read(flight, len(DATA) - 17, len(DATA)) == DATA[-17:]
        assert flight.progress().arrived < len(DATA)
        held.gate.set()


async def test_bytes_beyond_the_end_are_there(running: Running, held: FakeSource) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await flight.wait(len(DATA), len(DATA) + 10)
        held.gate.set()


async def test_a_reader_who_is_cancelled_disturbs_nobody(
    running: Running, silent: FakeSource, store: Store
) -> None:
    async with running(silent) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        with trio.move_on_after(0.05) as scope:
            await flight.wait(5 * MIB, 6 * MIB)
        assert scope.cancelled_caught
        silent.gate.set()
        await flight.finished.wait()
    assert cached(store) == DATA


async def test_what_arrives_last_is_shown_only_when_it_is_verified(
    running: Running, source: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = threading.Event()

    def slow(hasher: Hasher, *rest: object) -> None:
        compare.wait(10)
        true(hasher, *rest)  # type: ignore[arg-type]

    from cachefs.fetcher import flight as module  # noqa: PLC0415 - to be patched

    true = module._hash_range
    monkeypatch.setattr(module, "_hash_range", slow)
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived == len(DATA))
        withheld = [n for n in range(10) if not flight.has(n * MIB, n * MIB + 1)]
        assert len(withheld) == 1
        compare.set()
        assert await read(flight, 0, len(DATA)) == DATA


async def test_readers_of_an_image_read_on_after_it_was_published_and_evicted(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        await flight.finished.wait()
        store.evict("img")
        assert await read(flight, 0, len(DATA)) == DATA
        flight.drop_reader()
        assert flight.fd == -1


async def test_readers_hold_a_published_image_as_any_other(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        await flight.finished.wait()
        store.limits = type(store.limits)(type(store.limits.max_size)(size=0))
        assert store.prune() == (0, 0)
        flight.drop_reader()
        assert store.prune() == (1, len(DATA))


async def test_hits_while_it_was_incomplete_are_recorded(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.count_hit()
        flight.count_hit()
        await flight.finished.wait()
        flight.count_hit()
    entry = store.get("img")
    assert entry is not None
    assert entry.hits == 3


# Failures


async def test_an_error_reaches_all_who_wait(
    running: Running, silent: FakeSource, store: Store
) -> None:
    heard = []
    silent.read_errors = [ImageNotFoundError("gone")]
    async with running(silent, connections=1, urgent=0) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))

        async def reader(number: int) -> None:
            heard.append(await failure_of(flight, number * MIB, number * MIB + 1))

        async with trio.open_nursery() as readers:
            for number in range(9):
                readers.start_soon(reader, number)
        assert {str(error) for error in heard} == {"gone"}
        assert len({id(error) for error in heard}) == 9
        assert (await failure_of(flight)).errno == errno.ENOENT
    failure = store.failures.get("img")
    assert failure is not None
    assert failure.errno == errno.ENOENT


async def test_a_passing_failure_is_passed_over(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [SourceError("broken")] * 3
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == DATA


async def test_an_outage_costs_one_try_and_not_one_for_each_connection(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [SourceError("down")] * 8  # all four connections, twice
    async with running(source, connections=4, urgent=0, span=2 * MIB, tries=2) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == DATA


async def test_a_failure_that_does_not_pass_is_given_up(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [SourceError("down")] * 100
    async with running(source, connections=1, urgent=0, tries=3) as fetcher:
        flight = await fetch(fetcher, "img")
    assert str(flight.error) == "down"
    assert len(source.reads) == 4
    assert store.get("img") is None


async def test_a_span_is_nobody_elses_while_its_worker_sleeps_after_a_failure(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.05)
    source.read_errors = [SourceError("x")] * 4
    async with running(source, connections=4, urgent=2, span=MIB) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        async with trio.open_nursery() as readers:
            for number in range(9):
                readers.start_soon(read, flight, number * MIB, number * MIB + 1)
        await flight.finished.wait()
    assert cached(store) == DATA
    assert source.sent == len(DATA)


async def test_wrong_bytes_go_to_invalid_and_are_fetched_once_more(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        store.enqueue("img")
        fetcher.wake()
        await until(lambda: source.sent >= 2 * len(DATA) and not fetcher.under_way())
        assert store.queue.ids() == []
    assert source.sent == 2 * len(DATA)
    assert source.stats == ["img"] * 2
    assert (store.layout.invalid_dir / "img").read_bytes() == DATA
    failure = store.failures.get("img")
    assert failure is not None
    assert "sha256" in failure.error
    assert store.get("img") is None


async def test_an_image_that_is_right_the_second_time_is_cached(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
        source.digests["img"] = sha256(DATA)
        assert flight.error is not None
        await until(lambda: store.get("img"))
        await until(lambda: not fetcher.under_way())
    assert cached(store) == DATA
    assert store.failures.ids() == []


async def test_an_image_that_changed_is_fetched_afresh_once(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [ImageChangedError("changed")]
    async with running(source, connections=1, urgent=0) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ImageChangedError)
        await until(lambda: store.get("img"))
    assert cached(store) == DATA


async def test_a_second_try_can_be_cancelled(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        source.answer.clear()
        await flight.finished.wait()
        await until(lambda: len(source.stats) == 2)
        assert fetcher.under_way() == {"img"}
        await fetcher.cancel("img")
        await until(lambda: not fetcher.under_way())
        source.answer.set()
    assert source.sent == len(DATA)


async def test_a_short_answer_is_an_error_and_no_image(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(image: SourceImage, start: int, stop: int) -> Generator[bytes]:
        yield DATA[start : stop - 5]

    monkeypatch.setattr(source, "read", short)
    async with running(source, tries=1) as fetcher:
        flight = await fetch(fetcher, "img")
    assert "bytes" in str(flight.error)
    assert store.get("img") is None


async def test_a_full_disk_is_ENOSPC_and_leaves_nothing(  # noqa: N802 - an errno's name
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cachefs.fetcher.sink.os", type("os", (), {"pwrite": full}))
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
    assert isinstance(flight.error, NoRoomError)
    assert list(store.layout.incomplete_dir.iterdir()) == []
    assert list(store.layout.maps_dir.iterdir()) == []


async def test_lost_writes_that_the_kernel_tells_of_but_once_end_the_fetch(
    running: Running, held: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(transfer, "SYNC_EVERY", 0.01)
    monkeypatch.setattr(os, "fdatasync", lost)
    async with running(held) as fetcher:
        flight = await fetch(fetcher, "img")
        held.gate.set()
    assert "lost" in str(flight.error)
    assert store.get("img") is None


async def test_an_unforeseen_error_ends_one_fetch_and_not_the_daemon(
    running: Running, source: FakeSource, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    source.images["other"] = b"other"
    source.read_errors = [ZeroDivisionError("a bug")]
    async with running(source, connections=1, urgent=0) as fetcher:
        flight = await fetch(fetcher, "img")
        assert "a bug" in str(flight.error)
        await fetch(fetcher, "other")
    assert cached(store, "other") == b"other"
    assert "nobody foresaw" in caplog.text


async def test_an_image_that_does_not_fit_is_NoRoomError_and_asks_for_no_byte(  # noqa: N802
    running: Running, source: FakeSource, store: Store
) -> None:
    store.limits = type(store.limits)(type(store.limits.max_size)(size=MIB))
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
    assert isinstance(flight.error, NoRoomError)
    assert source.reads == []


async def test_a_loser_against_another_process_has_not_failed(
    running: Running, source: FakeSource, store: Store
) -> None:
    with store.begin("img", 3) as other:
        async with running(source) as fetcher:
            flight = await fetch(fetcher, "img")
            assert isinstance(flight.error, ImageBusyError)
            other.write(b"abc")
            other.commit()
            flight = await fetch(fetcher, "img")
            assert isinstance(flight.error, ImageExistsError)
            assert not fetcher.under_way()
    assert store.failures.ids() == []
    assert cached(store) == b"abc"


async def test_a_queued_image_that_another_process_is_caching_is_looked_at_again(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetcher.fetcher.POLL", 0.02)
    store.enqueue("img")
    with store.begin("img", 3):
        async with running(source) as fetcher:
            await until(lambda: len(source.stats) > 2)
            assert not fetcher.flights or store.failures.ids() == []
    async with running(source):
        await until(lambda: store.get("img"))
    assert cached(store) == DATA


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
        assert store.queue.ids() == store.failures.ids() == []
        held.gate.set()
    assert list(store.layout.incomplete_dir.iterdir()) == []
    assert list(store.layout.maps_dir.iterdir()) == []


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
    assert list(store.layout.incomplete_dir.iterdir()) == []
    assert store.failures.ids() == []


async def test_with_cancel_the_last_close_does_not_end_what_is_queued(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held, keep=False) as fetcher:
        store.enqueue("img")
        fetcher.wake()
        await until(lambda: fetcher.flights)
        flight = fetcher.flights["img"]
        flight.add_reader()
        flight.drop_reader()
        held.gate.set()
        await flight.finished.wait()
    assert cached(store) == DATA


async def test_without_cancel_a_fetch_outlives_its_readers(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        flight.drop_reader()
        held.gate.set()
        await flight.finished.wait()
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
        await until(lambda: store.get("img"))
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
        await until(lambda: store.get("img"))
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
        await until(lambda: store.get("img"))
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
        await until(lambda: store.get("img"))
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
        await until(lambda: store.get("img"))
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
    assert store.get("img") is None


# Who goes first


async def test_queued_images_are_fetched_by_priority_then_in_order(
    running: Running, store: Store
) -> None:
    source = FakeSource(dict.fromkeys("abcd", b"x"))
    for name in "abcd":
        store.enqueue(name)
    store.queue.set_priority("c", 5)
    store.queue.set_priority("a", -1)
    async with running(source, fetches=1):
        await until(lambda: store.totals().images == 4)
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
        await until(lambda: store.get("queued"))
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
        with trio.fail_after(5):
            assert await trio.to_thread.run_sync(store.usage)
        source.gate.set()
        await until(lambda: store.totals().images == 12)


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
    assert store.get("img")


async def test_what_is_incomplete_and_nobodys_is_queued_at_start(
    running: Running, held: FakeSource, store: Store, cache_dir: Path
) -> None:
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
    assert store.abandoned() == ["img"]
    held.gate.set()
    async with running(held):
        await until(lambda: store.get("img"))
        assert store.queue.ids() == []

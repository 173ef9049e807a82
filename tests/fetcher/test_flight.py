"""Flights of images in memory: one for all, readers, failures."""

import errno
import os
import threading
from collections.abc import Generator
from random import Random

import pytest
import trio

from cachefs.cache import Hasher, Layout, Store, Transaction, Version
from cachefs.cache.queue import Queue
from cachefs.errors import (
    DriverError,
    ImageBusyError,
    ImageChangedError,
    ImageExistsError,
    ImageNotFoundError,
    NoRoomError,
    SourceError,
    SourceUnreachableError,
)
from cachefs.fetcher import Fetcher, Flight, transfer
from cachefs.fetcher.flight import FlightState
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
    sha256,
    until,
)

pytestmark = pytest.mark.usefixtures("quick_retries")


async def fetched_while_open(fetcher: Fetcher) -> Flight:
    """The flight of an image that somebody has open, once it has ended."""
    flight = fetcher.start(await fetcher.stat("img"))
    flight.add_reader()
    await flight.finished.wait()
    return flight


# One flight


async def test_a_fetch_publishes_what_the_source_has(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
    assert flight.state is FlightState.PUBLISHED
    assert cached(store) == DATA
    entry = store.quick.get("img")
    assert entry is not None
    assert entry.verified
    assert entry.checksum == str(sha256(DATA))
    assert list(Layout(store.cache_dir).maps_dir.iterdir()) == []


async def test_without_a_digest_the_one_found_is_recorded_as_not_verified(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests = {}
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
    entry = store.quick.get("img")
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
        Queue(Layout(store.cache_dir)).add("img")  # as another process does
        fetcher.wake()
        assert fetcher.start(image) is flight
        held.gate.set()
        await flight.finished.wait()
        await until(lambda: not fetcher.flights)
        assert not store.quick.is_queued("img")
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
        flight = await fetched_while_open(fetcher)
        store.evict("img")
        assert await read(flight, 0, len(DATA)) == DATA
        flight.drop_reader()
        assert flight.fd == -1


async def test_readers_hold_a_published_image_as_any_other(
    running: Running, source: FakeSource, store: Store
) -> None:
    async with running(source) as fetcher:
        flight = await fetched_while_open(fetcher)
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
    entry = store.quick.get("img")
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
    failure = store.failure("img")
    assert failure is not None
    assert failure.error == "gone"


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
    assert store.quick.get("img") is None


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
        assert store.queued_ids() == []
    assert source.sent == 2 * len(DATA)
    assert source.stats == ["img"] * 2
    assert (Layout(store.cache_dir).invalid_dir / "img").read_bytes() == DATA
    failure = store.failure("img")
    assert failure is not None
    assert "sha256" in failure.error
    assert store.quick.get("img") is None


async def test_an_image_that_is_right_the_second_time_is_cached(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
        source.digests["img"] = sha256(DATA)
        assert flight.error is not None
        await until(lambda: store.quick.get("img"))
        await until(lambda: not fetcher.under_way())
    assert source.forgotten == ["img"]
    assert cached(store) == DATA
    assert store.failed_ids() == []


class Turning(FakeSource):
    """The source, where something else comes true once a digest was found wrong."""

    turn = ""

    def forget_digest(self, image_id: str) -> None:
        super().forget_digest(image_id)
        if self.turn == "away":
            self.errors = [SourceUnreachableError("away")] * 1000
        elif self.turn == "right":
            self.digests["img"] = sha256(DATA)


@pytest.mark.parametrize("turn", ["away", "right", "wrong"])
async def test_a_queued_image_stays_queued_until_it_is_wrong_twice(
    running: Running, store: Store, turn: str
) -> None:
    source = Turning({"img": DATA}, digests={"img": sha256(b"other")})
    source.turn = turn
    store.enqueue("img")
    store.set_priority("img", 7)
    async with running(source, keep=False) as fetcher:
        await until(lambda: len(source.stats) > 1 and not fetcher.under_way())
        assert store.quick.is_queued("img") == (turn == "away")
        assert store.priority("img") == (7 if turn == "away" else 0)
        assert store.is_cached("img") == (turn == "right")
        assert (store.failure("img") is not None) == (turn == "wrong")


async def test_what_is_cancelled_while_its_wrong_bytes_are_put_away_is_not_tried_again(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.digests["img"] = sha256(b"other")
    rejecting, go_on = threading.Event(), threading.Event()
    reject = Transaction.reject

    def slowly(transaction: Transaction, **values: object) -> None:
        rejecting.set()
        assert go_on.wait(PATIENCE)
        reject(transaction, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(Transaction, "reject", slowly)
    store.enqueue("img")
    async with running(source) as fetcher, trio.open_nursery() as nursery:
        await until(rejecting.is_set)
        nursery.start_soon(fetcher.cancel, "img")
        await until(lambda: not store.quick.is_queued("img"))
        go_on.set()
        await until(lambda: not fetcher.under_way())
        assert not store.quick.is_queued("img")
    assert source.stats == ["img"]


async def test_an_image_that_changed_is_fetched_afresh_once(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [ImageChangedError("changed")]
    async with running(source, connections=1, urgent=0) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ImageChangedError)
        await until(lambda: store.quick.get("img"))
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
    assert store.quick.get("img") is None


async def test_a_full_disk_is_ENOSPC_and_leaves_nothing(  # noqa: N802 - an errno's name
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    broken = type("os", (), {"pwrite": full, "fstat": os.fstat})
    monkeypatch.setattr("cachefs.fetcher.sink.os", broken)
    async with running(source) as fetcher:
        flight = await fetch(fetcher, "img")
    assert isinstance(flight.error, NoRoomError)
    assert list(Layout(store.cache_dir).incomplete_dir.iterdir()) == []
    assert list(Layout(store.cache_dir).maps_dir.iterdir()) == []


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
    assert store.quick.get("img") is None


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
    assert store.failed_ids() == []
    assert cached(store) == b"abc"


async def test_a_queued_image_that_another_process_is_caching_is_looked_at_again(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetcher.prefetch.POLL", 0.02)
    store.enqueue("img")
    with store.begin("img", 3):
        async with running(source) as fetcher:
            await until(lambda: len(source.stats) > 2)
            assert not fetcher.flights or store.failed_ids() == []
    async with running(source):
        await until(lambda: store.quick.get("img"))
    assert cached(store) == DATA


async def test_what_cannot_be_written_down_ends_no_fetcher(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, an index that cannot be used: the queue is worked off once they are mended."""
    store.begin("img", len(DATA), Version(len(DATA), None, str(sha256(DATA)))).keep()
    faults: list[Exception] = [OSError(errno.EDQUOT, "Disk quota exceeded"), DriverError("index")]
    requeue = Store.requeue_abandoned

    def failing(store: Store) -> None:
        if faults:
            raise faults.pop(0)
        requeue(store)

    def fail(*values: object, **rest: object) -> None:
        raise DriverError("index")

    monkeypatch.setattr(Store, "requeue_abandoned", failing)
    monkeypatch.setattr(Store, "fail", fail)
    monkeypatch.setattr("cachefs.fetcher.fetcher.PATIENCE", 0.01)
    async with running(source) as fetcher:
        with pytest.raises(ImageNotFoundError):
            await fetcher.stat("missing")
        (store.cache_dir / "queue" / "missing").touch()
        await until(lambda: store.is_cached("img"))
        fetcher.wake()
        await until(lambda: source.stats.count("missing") > 1)
    assert not faults

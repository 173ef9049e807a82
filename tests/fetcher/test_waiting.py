"""The queue waits for what passes, and readers wait for room, while everything else goes on."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cachefs.cache import Layout, Limits, Store
from cachefs.errors import (
    ChecksumError,
    ImageNotFoundError,
    NoRoomError,
    SourceError,
    SourceRefusedError,
    SourceUnreachableError,
)
from cachefs.fetcher import Fetcher, Flight
from cachefs.sources import ChainSource
from cachefs.sources.health import FAILURES
from cachefs.units import Amount

from .conftest import DATA, MIB, FakeSource, Running, cached, failure_of, fetch, read, sha256, until

pytestmark = pytest.mark.usefixtures("quick_retries", "quick_queue")


@pytest.fixture
def quick_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in the queue is looked at often, and sources are left alone for moments."""
    monkeypatch.setattr("cachefs.fetcher.waits.LEAST_PAUSE", 0.01)
    monkeypatch.setattr("cachefs.fetcher.prefetch.POLL", 0.01)
    monkeypatch.setattr("cachefs.sources.health.FIRST_REST", 0.05)


def too_many_requests(seconds: float) -> SourceError:
    error = SourceError("too many requests")
    error.retry_after = seconds
    return error


def limit(store: Store, size: int) -> None:
    store.limits = Limits(Amount(size=size))


def queue(store: Store, fetcher: Fetcher, *names: str) -> None:
    for name in names:
        store.enqueue(name)
    fetcher.wake()


async def start_reading(fetcher: Fetcher, image_id: str) -> Flight:
    """An image's flight, which has a reader from its first moment on, as an open file's has."""
    flight = fetcher.start(await fetcher.stat(image_id))
    flight.add_reader()
    return flight


@contextlib.contextmanager
def open_by_another(store: Store, image_id: str, data: bytes = DATA) -> Iterator[None]:
    """An image that is cached, and open for as long as the block runs."""
    with store.begin(image_id, len(data)) as transaction:
        transaction.write(data)
        transaction.commit()
    image = store.quick.open_image(image_id)
    try:
        yield
    finally:
        image.close()


# What passes


@pytest.mark.parametrize(
    "error",
    [SourceError("503"), SourceUnreachableError("away"), SourceRefusedError("no"), ValueError()],
)
async def test_what_passes_leaves_an_image_in_the_queue_until_it_is_had(
    running: Running, source: FakeSource, store: Store, error: Exception
) -> None:
    source.errors = [error] * 8
    async with running(source) as fetcher:
        queue(store, fetcher, "img")
        await until(lambda: fetcher.waiting("img"))
        assert store.queued_ids() == ["img"]
        await until(lambda: store.quick.get("img"))
    assert cached(store) == DATA
    assert store.failed_ids() == []


async def test_a_fetch_that_breaks_again_and_again_goes_on_where_it_was(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.read_errors = [None, None, *[SourceError("broken")] * 2] * 3
    # One connection: what another had in hand when the fetch broke would be asked for again.
    async with running(source, tries=1, connections=1, urgent=0, span=MIB) as fetcher:
        queue(store, fetcher, "img")
        await until(lambda: store.quick.get("img"))
        await until(lambda: fetcher.waiting("img") is None)
    assert cached(store) == DATA
    assert source.sent == len(DATA)
    assert store.failed_ids() == []


async def test_retry_after_is_waited_for_and_the_record_says_so(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.errors = [too_many_requests(0.3)]
    async with running(source) as fetcher:
        queue(store, fetcher, "img")
        began = trio.current_time()
        await until(lambda: fetcher.waiting("img"))
        waiting = fetcher.waiting("img")
        assert waiting is not None
        assert (waiting.waits_for, waiting.error) == ("source", "too many requests")
        assert 0 < waiting.seconds <= 0.5
        await until(lambda: store.quick.get("img"))
        assert trio.current_time() - began >= 0.3


async def test_an_authoritative_no_ends_in_invalid_and_is_logged_once_with_its_source(
    running: Running, source: FakeSource, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(source) as fetcher:
        queue(store, fetcher, "missing")
        await until(lambda: store.failed_ids() == ["missing"] and not store.queued_ids())
        await until(lambda: not fetcher._prefetcher._fetching)
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert warnings == [f"could not fetch 'missing' from {source.url}: missing"]


async def test_an_image_that_can_never_fit_fails_at_once(
    running: Running, source: FakeSource, store: Store
) -> None:
    limit(store, MIB)
    async with running(source) as fetcher:
        queue(store, fetcher, "img")
        await until(lambda: store.failed_ids() == ["img"] and not store.queued_ids())
    assert source.reads == []


async def test_others_go_on_while_an_image_waits_and_it_takes_no_place(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.images |= {"b": b"bb", "c": b"cc"}
    source.errors = [too_many_requests(0.0), too_many_requests(0.0)]
    source.read_errors = [SourceRefusedError("no")] * 10**6
    async with running(source, fetches=1, connections=1, urgent=0) as fetcher:
        queue(store, fetcher, "img")
        await until(lambda: fetcher.waiting("img"))
        source.read_errors.clear()
        source.images.pop("img")
        source.errors = []
        queue(store, fetcher, "b", "c")
        await until(lambda: store.quick.get("b") and store.quick.get("c"))


async def test_a_source_that_is_down_is_asked_by_a_probe_and_not_by_every_image(
    running: Running, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.sources.health.FIRST_REST", 50.0)
    names = [f"image-{number}" for number in range(50)]
    source = FakeSource(dict.fromkeys(names, b"x"))
    source.errors = [SourceUnreachableError("away")] * 1000
    async with running(source) as fetcher:
        queue(store, fetcher, *names)
        await until(lambda: fetcher.source.rest() > 0)
        await until(lambda: not fetcher._prefetcher._fetching)
        asked = len(source.stats)
        waiting = fetcher.waiting(names[-1])
        assert waiting is not None
        assert (waiting.waits_for, waiting.error) == ("source", "away")
        source.errors.clear()
        await trio.to_thread.run_sync(fetcher.source.check)  # as a probe
        await until(lambda: store.quick.totals().images == 50)
    assert asked <= 3 * FAILURES  # as many at a time
    assert len(source.stats) <= 50 + asked


async def test_what_was_asked_for_anew_is_tried_at_once(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.errors = [SourceRefusedError("no")] * 5
    async with running(source) as fetcher:
        fetcher._prefetcher._waits.put("img", too_many_requests(1000))
        store.enqueue("img")
        assert not fetcher._prefetcher._waits.is_due("img")
        fetcher.image_wanted("img")
        fetcher.wake()
        await until(lambda: source.stats)


async def test_what_is_queued_while_a_no_is_written_down_does_not_wait_for_it(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 1000)
    fail = store.fail

    def fail_and_queue(image_id: str, *arguments: object, **options: object) -> None:
        fail(image_id, *arguments, **options)  # type: ignore[arg-type]
        source.images["late"] = DATA
        store.enqueue(image_id)

    monkeypatch.setattr(store, "fail", fail_and_queue)
    async with running(source) as fetcher:
        queue(store, fetcher, "late")
        await until(lambda: store.quick.get("late"))


async def test_a_fetch_that_readers_began_goes_on_in_the_queue_after_an_outage(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held, tries=0, connections=1, urgent=0, span=MIB) as fetcher:
        flight = await start_reading(fetcher, "img")
        await read(flight, 0, 1)
        held.read_errors = [SourceUnreachableError("away")]
        held.gate.set()
        await flight.finished.wait()
        assert (await failure_of(flight, 8 * MIB, 9 * MIB)).errno
        flight.drop_reader()
        await until(lambda: store.quick.get("img"))
    assert cached(store) == DATA
    assert held.sent == len(DATA)


# Room


async def test_ten_images_under_a_limit_of_two_are_each_fetched_once_and_none_fails(
    running: Running, store: Store
) -> None:
    source = FakeSource({f"image-{number}": bytes([number]) * MIB for number in range(10)})
    limit(store, 5 * MIB // 2)
    async with running(source) as fetcher:
        queue(store, fetcher, *source.images)
        await until(lambda: not store.queued_ids() and not fetcher.under_way())
    assert store.failed_ids() == []
    assert source.sent == 10 * MIB
    assert store.quick.totals().images == 2
    assert store.quick.evictions == 8


async def test_a_queued_image_waits_for_room_and_is_fetched_when_it_is_there(
    running: Running, source: FakeSource, store: Store
) -> None:
    limit(store, len(DATA) + MIB)
    source.images["small"] = bytes(MIB)
    async with running(source) as fetcher:
        with open_by_another(store, "large"):
            queue(store, fetcher, "img", "small")
            await until(lambda: fetcher.waiting("img"))
            waiting = fetcher.waiting("img")
            assert waiting is not None
            assert waiting.waits_for == "room"
            assert "open 'large' (9.0 MiB)" in waiting.error
            await until(lambda: store.quick.get("small"))  # others go on
            assert source.stats.count("img") == 1  # room is looked for here, not at the source
        fetcher.room_changed()
        await until(lambda: store.quick.get("img"))
    assert store.failed_ids() == []


async def test_readers_of_what_fits_one_after_another_wait_for_each_other(
    running: Running, store: Store
) -> None:
    source = FakeSource({name: bytes(2 * MIB) for name in "abcd"})
    limit(store, 3 * MIB)
    errors: list[object] = []

    async def reader(fetcher: Fetcher, name: str) -> None:
        flight = await start_reading(fetcher, name)
        try:
            await flight.begin()
            await flight.wait(0, 2 * MIB)
        finally:
            errors.append(flight.error)
            flight.drop_reader()

    async with running(source) as fetcher, trio.open_nursery() as readers:
        for name in source.images:
            readers.start_soon(reader, fetcher, name)
    assert errors == [None] * 4


async def test_a_reader_waits_for_room_so_long_and_hears_what_holds_it(
    running: Running, source: FakeSource, store: Store
) -> None:
    limit(store, len(DATA) + MIB)
    with open_by_another(store, "large"):
        async with running(source, room_timeout=0.1) as fetcher:
            began = trio.current_time()
            flight = await start_reading(fetcher, "img")
            with pytest.raises(NoRoomError, match=r"no room for image 'img' .*open 'large'"):
                await flight.begin()
            assert trio.current_time() - began >= 0.1
            flight.drop_reader()
    assert source.reads == []
    assert store.queued_ids() == store.failed_ids() == []


async def test_a_reader_that_goes_while_it_waits_for_room_ends_the_wait(
    running: Running, source: FakeSource, store: Store
) -> None:
    limit(store, len(DATA) + MIB)
    with open_by_another(store, "large"):
        async with running(source) as fetcher:
            flight = await start_reading(fetcher, "img")
            await until(lambda: flight.waits_for_room)
            flight.drop_reader()
            await flight.finished.wait()
            assert not fetcher.under_way()


async def test_a_reader_that_waits_for_room_holds_up_no_fetch_that_has_it(
    running: Running, held: FakeSource, store: Store
) -> None:
    held.images["queued"] = bytes(len(DATA))
    limit(store, len(DATA) + MIB)
    async with running(held, connections=1, urgent=0, span=MIB) as fetcher:
        queue(store, fetcher, "queued")
        await until(lambda: held.waiting or held.reads)
        flight = await start_reading(fetcher, "img")
        await until(lambda: flight.waits_for_room)
        held.gate.set()
        await flight.begin()
        await flight.wait(0, len(DATA))
        flight.drop_reader()
    assert store.failed_ids() == []


async def test_a_full_disk_is_tried_with_pauses_and_said_once(
    running: Running,
    source: FakeSource,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = 0

    def full(*_: object) -> int:
        nonlocal tries
        tries += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cachefs.fetcher.waits.LEAST_PAUSE", 0.1)
    monkeypatch.setattr(
        "cachefs.fetcher.sink.os", type("os", (), {"pwrite": full, "fstat": os.fstat})
    )
    caplog.set_level(logging.INFO)
    async with running(source, connections=1, urgent=0) as fetcher:
        queue(store, fetcher, "img")
        with trio.move_on_after(1):
            await until(lambda: False)
        assert store.queued_ids() == ["img"]
    said = [each for each in caplog.records if "No space left" in each.getMessage()]
    assert len(said) == 1
    assert 2 <= tries <= 11


# Wrong bytes


async def test_wrong_bytes_are_not_fetched_again_for_a_reader(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
        await until(lambda: not fetcher.under_way())
        sent = source.sent
        for _ in range(5):
            with pytest.raises(ChecksumError, match=r"'img' at fake:///.*sha256"):
                fetcher.start(await fetcher.stat("img"))
        assert source.sent == sent == 2 * len(DATA)
    async with running(source) as fetcher:  # nor by the next daemon
        with pytest.raises(ChecksumError):
            fetcher.start(await fetcher.stat("img"))
        fetcher.forget_rejected("img")
        await fetcher.start(await fetcher.stat("img")).finished.wait()
        await until(lambda: not fetcher.under_way())
    assert source.sent == 4 * len(DATA)


@pytest.mark.parametrize("what", ["version", "digest"])
async def test_another_version_of_wrong_bytes_is_fetched(
    running: Running, source: FakeSource, store: Store, what: str
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
        await until(lambda: not fetcher.under_way())
        source.digests["img"] = sha256(DATA)
        if what == "version":
            source.versions["img"] = '"v2"'
        await fetcher.start(await fetcher.stat("img")).finished.wait()
    assert cached(store) == DATA


async def test_wrong_bytes_are_fetched_again_when_they_are_queued(
    running: Running, source: FakeSource, store: Store
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        await fetch(fetcher, "img")
        await until(lambda: not fetcher.under_way())
        fetcher.image_wanted("img")
        queue(store, fetcher, "img")
        await until(lambda: source.sent == 4 * len(DATA) and not fetcher.under_way())


# Fallbacks


async def test_a_fallback_goes_on_at_the_same_byte(
    running: Running, held: FakeSource, store: Store
) -> None:
    other = FakeSource(dict(held.images), url="other:///", digests=dict(held.digests))
    chain = ChainSource([held, other])
    async with running(chain, connections=1, urgent=0, span=4 * MIB) as fetcher:
        flight = await start_reading(fetcher, "img")
        await read(flight, 0, MIB)
        held.read_errors = [SourceUnreachableError("away")] * 100
        held.gate.set()
        assert await read(flight, 0, len(DATA)) == DATA
        flight.drop_reader()
        await flight.finished.wait()
        healths = {url: health.healthy for url, health in fetcher.sources()}
    assert cached(store) == DATA
    assert held.sent + other.sent == len(DATA)
    assert 0 < held.sent < len(DATA)
    assert healths == {held.url: False, other.url: True}


async def test_a_fallback_of_another_version_starts_afresh_and_is_never_mixed(
    running: Running, held: FakeSource, store: Store
) -> None:
    fresh = os.urandom(len(DATA))
    other = FakeSource({"img": fresh}, url="other:///", digests={"img": sha256(fresh)})
    async with running(
        ChainSource([held, other]), connections=1, urgent=0, span=MIB, tries=2
    ) as fetcher:
        queue(store, fetcher, "img")
        await until(lambda: held.sent)
        held.read_errors = [SourceUnreachableError("away")] * 100
        held.errors = [SourceUnreachableError("away")] * 100
        held.gate.set()
        await until(lambda: store.quick.get("img"))
    assert cached(store) == fresh
    assert other.sent == len(fresh)


async def test_an_image_that_no_source_has_is_final(
    running: Running, source: FakeSource, store: Store, tmp_path: Path
) -> None:
    other = FakeSource({}, url="other:///")
    async with running(ChainSource([source, other])) as fetcher:
        with pytest.raises(ImageNotFoundError):
            await fetcher.stat("missing")
    assert list(Layout(store.cache_dir).maps_dir.iterdir()) == []

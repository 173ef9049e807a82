"""The fetcher as threads see it: by its portal, answered in the event loop."""

import threading

import pytest
import trio

from cachefs.cache import Store
from cachefs.errors import ImageExistsError, ImageNotFoundError
from cachefs.fetcher import FetcherPortal, Progress
from cachefs.fetcher.flight import FlightState

from .conftest import DATA, MIB, FakeSource, Running, sha256, until

in_thread = trio.to_thread.run_sync


async def test_a_thread_sees_what_is_under_way_and_how_far_it_is(
    running: Running, held: FakeSource
) -> None:
    async with running(held, connections=1, urgent=0, span=len(DATA) * 2) as fetcher:
        portal = FetcherPortal(fetcher)
        flight = fetcher.start(await fetcher.stat("img"))
        flight.count_hit()
        await until(lambda: flight.progress().arrived == MIB)
        assert await in_thread(portal.under_way) == {"img"}
        assert await in_thread(portal.is_under_way, "img")
        assert await in_thread(portal.progress, "img") == Progress(
            FlightState.FILLING, len(DATA), MIB, 1, held.url, sha256(DATA)
        )
        held.gate.set()
        await flight.finished.wait()
        await until(lambda: not fetcher.flights)
        assert await in_thread(portal.under_way) == set()
        assert await in_thread(portal.progress, "img") is None


async def test_an_image_between_two_tries_is_under_way_without_bytes(
    running: Running, source: FakeSource
) -> None:
    source.digests["img"] = sha256(b"other")
    async with running(source) as fetcher:
        portal = FetcherPortal(fetcher)
        image = await fetcher.stat("img")
        source.answer.clear()
        flight = fetcher.start(image)
        await flight.finished.wait()
        await until(lambda: not fetcher.flights)
        assert await in_thread(portal.progress, "img") == Progress(FlightState.STARTING)
        source.answer.set()


async def test_a_thread_cancels_a_fetch_and_returns_when_it_has_ended(
    running: Running, held: FakeSource
) -> None:
    async with running(held) as fetcher:
        portal = FetcherPortal(fetcher)
        flight = fetcher.start(await fetcher.stat("img"))
        await flight.begun.wait()
        await in_thread(portal.cancel, "img")
        assert flight.finished.is_set()
        with pytest.raises(ImageNotFoundError):
            await in_thread(portal.cancel, "img")
        held.gate.set()


async def test_a_wanted_image_is_asked_for_whatever_was_answered(
    running: Running, source: FakeSource, store: Store
) -> None:
    data, source.images = source.images, {}
    async with running(source) as fetcher:
        portal = FetcherPortal(fetcher)
        with pytest.raises(ImageNotFoundError):
            await fetcher.stat("img")
        source.images = data
        await in_thread(portal.image_wanted, "img")
        await in_thread(store.enqueue, "img")
        await in_thread(portal.wake)
        await until(lambda: store.quick.get("img"))


async def test_an_image_under_way_is_not_wanted_once_more(
    running: Running, held: FakeSource
) -> None:
    async with running(held) as fetcher:
        fetcher.start(await fetcher.stat("img"))
        with pytest.raises(ImageExistsError):
            await in_thread(FetcherPortal(fetcher).image_wanted, "img")
        held.gate.set()


async def test_the_sources_are_told_with_their_health(running: Running, source: FakeSource) -> None:
    async with running(source) as fetcher:
        portal = FetcherPortal(fetcher)
        ((url, health),) = await in_thread(portal.sources)
        assert (url, health.healthy, health.error) == (source.url, None, None)
        await fetcher.stat("img")
        ((url, health),) = await in_thread(portal.sources)
        assert (url, health.healthy, health.error) == (source.url, True, None)
        assert portal.source_url == source.url


async def test_a_thread_that_trio_has_not_started_is_refused(
    running: Running, source: FakeSource
) -> None:
    errors: list[Exception] = []

    async with running(source) as fetcher:
        portal = FetcherPortal(fetcher)

        def ask() -> None:
            try:
                portal.under_way()
            except RuntimeError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        await in_thread(thread.join)
        with pytest.raises(RuntimeError):
            portal.under_way()  # and so is the event loop itself
    assert len(errors) == 1

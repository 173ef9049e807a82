"""Flights against real servers: nginx, and servers that lie, change their minds, stall."""

import hashlib
import os
import threading
from collections.abc import Callable
from random import Random

import pytest
import trio
from support.images import Images
from support.misbehaving import Exchange
from support.origin import Origin

from cachefs.cache import Layout, Store
from cachefs.errors import CacheFSError, ChecksumError, ImageChangedError

from .conftest import MIB, PATIENCE, MakeMisbehaving, MakeOrigin, Running, fetch, read, until

pytestmark = pytest.mark.usefixtures("quick_retries")

OLD = Random(1).randbytes(6 * MIB + 5)
NEW = Random(2).randbytes(6 * MIB + 5)
SLOW = "700k"
"""A ``limit_rate`` at which nginx takes half a second for a MiB: of each answer it sends what the
first second allows at once."""


def cached(store: Store) -> bytes:
    return (store.cache_dir / "img").read_bytes()


@pytest.fixture(params=[None, ""], ids=["summed", "unsummed"])
def digest(request: pytest.FixtureRequest) -> str | None:
    """Whether SHA256SUMS has the image: see :meth:`Images.put`."""
    return request.param


@pytest.fixture
def slow_old(images: Images, make_origin: MakeOrigin, digest: str | None) -> Origin:
    """An origin of the old image, of long ago: what nginx calls an ETag is the second and the size,
    and the new one comes at once. It takes half a second for a MiB."""
    images.put("img", OLD, digest=digest)
    for name in ("img", "SHA256SUMS"):
        os.utime(images.directory / name, (1, 1))
    return make_origin(limit_rate=SLOW)


ONE_BY_ONE = {"connections": 1, "urgent": 1, "span": MIB}
"""Settings with which the first MiB has come long before the last."""


def serving(image: Callable[[Exchange], None], digest_of: bytes = b"") -> Callable[..., None]:
    """A server of ``/img``, with a SHA256SUMS of *digest_of*, if it is anything."""

    def answer(exchange: Exchange) -> None:
        if exchange.uri == "/img":
            image(exchange)
        elif exchange.uri == "/SHA256SUMS" and digest_of:
            digest = hashlib.sha256(digest_of).hexdigest()
            exchange.send_file(f"{digest}  img\n".encode())
        else:
            exchange.send_head(404, {"Content-Length": 0})

    return answer


# nginx


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
@pytest.mark.parametrize("ranges", [True, False])
async def test_nginx_sends_no_byte_twice(
    running: Running,
    store: Store,
    images: Images,
    make_origin: MakeOrigin,
    size: int,
    ranges: bool,
) -> None:
    data = images.put("img", size)
    origin = make_origin(ranges=ranges)
    async with running(origin.url, span=MIB) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == data
    gets = [request for request in origin.requests("/img") if request.bytes_sent > 1]
    if ranges:
        assert sum(request.bytes_sent for request in gets) in (0, size)
    else:  # the question whether ranges are served may be answered with all
        assert len(gets) <= 2


async def test_the_next_daemon_asks_only_for_what_is_missing(
    running: Running, store: Store, images: Images, make_origin: MakeOrigin
) -> None:
    data = images.put("img", 24 * MIB)
    # Not in bursts of a MiB, which is a chunk: a daemon's end is to meet half of one.
    origin = make_origin(extra="location / { limit_rate 8m; sendfile_max_chunk 300k; }")
    for part in (1, 2):
        async with running(origin.url) as fetcher:
            flight = fetcher.start(await fetcher.stat("img"))
            await until(lambda: flight.progress().arrived >= part * 8 * MIB)  # noqa: B023
    async with running(origin.url):
        await until(lambda: store.quick.get("img"))
    assert cached(store) == data
    # What had come of a chunk when its daemon ended is lost: up to a chunk for each connection.
    await until(lambda: origin.bytes_sent("/img") >= len(data))
    assert origin.bytes_sent("/img") <= len(data) + 2 * 6 * 1.3 * MIB


async def test_an_image_replaced_half_way_is_fetched_afresh_and_never_mixed(
    running: Running, store: Store, images: Images, slow_old: Origin, digest: str | None
) -> None:
    async with running(slow_old.url, **ONE_BY_ONE) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await read(flight, 0, MIB)
        images.put("img", NEW, digest=digest)
        await flight.finished.wait()
        assert isinstance(flight.error, ImageChangedError)
        await until(lambda: store.quick.get("img"))
    assert cached(store) == NEW
    assert store.failed_ids() == []


async def test_an_image_replaced_while_no_daemon_runs_is_never_mixed(
    running: Running, store: Store, images: Images, slow_old: Origin, digest: str | None
) -> None:
    async with running(slow_old.url, **ONE_BY_ONE) as fetcher:
        await read(fetcher.start(await fetcher.stat("img")), 0, MIB)
    images.put("img", NEW, digest=digest)
    async with running(slow_old.url):
        await until(lambda: store.quick.get("img"))
    assert cached(store) == NEW


async def test_a_short_outage_is_passed_over(
    running: Running,
    store: Store,
    images: Images,
    make_origin: MakeOrigin,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.1)
    data = images.put("img", 8 * MIB)
    origin = make_origin(limit_rate="2m")
    async with running(origin.url) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await read(flight, 0, MIB)
        await trio.to_thread.run_sync(origin.stop)
        await trio.to_thread.run_sync(origin.start)
        await flight.finished.wait()
    assert cached(store) == data


async def test_wrong_bytes_are_asked_for_twice_and_no_more(
    running: Running, store: Store, images: Images, make_origin: MakeOrigin
) -> None:
    images.put("img", OLD, digest="0" * 64)
    origin = make_origin()
    async with running(origin.url) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ChecksumError)
        await until(lambda: not fetcher.under_way())
    assert len(OLD) * 2 <= origin.bytes_sent("/img") <= len(OLD) * 2 + 10
    assert (Layout(store.cache_dir).invalid_dir / "img").read_bytes() == OLD
    assert store.quick.get("img") is None


# Liars


class Changing:
    """The image, which becomes another after so many answers, and keeps its ETag unless it is
    *honest*. It looks at no If-Match."""

    def __init__(self, answers: int, *, honest: bool) -> None:
        self._answers = answers
        self._honest = honest
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        with self._lock:
            self._answers -= 1
            old = self._answers >= 0
        tag = '"old"' if old or not self._honest else '"new"'
        exchange.send_file(OLD if old else NEW, {"ETag": tag})


async def test_a_source_that_ignores_if_match_is_seen_through_by_its_etag(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving
) -> None:
    server = make_misbehaving(serving(Changing(4, honest=True)))
    async with running(server.url, span=MIB) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ImageChangedError)
        await until(lambda: not fetcher.under_way())
    assert cached(store) == NEW


@pytest.mark.parametrize("digest_of", [OLD, NEW], ids=["old", "new"])
async def test_a_source_that_changes_under_the_same_etag_is_seen_through_by_the_digest(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving, digest_of: bytes
) -> None:
    server = make_misbehaving(serving(Changing(4, honest=False), digest_of))
    async with running(server.url, span=MIB) as fetcher:
        flight = await fetch(fetcher, "img")
        assert isinstance(flight.error, ChecksumError)
        await until(lambda: not fetcher.under_way())
    if digest_of == NEW:
        assert cached(store) == NEW
    else:
        assert store.quick.get("img") is None


async def test_without_etag_date_and_digest_it_is_one_stream(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving
) -> None:
    """There would be no telling the parts of two versions from each other."""
    server = make_misbehaving(serving(lambda exchange: exchange.send_file(OLD)))
    async with running(server.url, span=MIB) as fetcher:
        await fetch(fetcher, "img")
    assert server.requests.count("GET /img") == 2
    assert cached(store) == OLD


@pytest.mark.parametrize("size", [len(OLD) - 1, len(OLD) + 1, 1])
async def test_another_length_is_an_image_that_changed(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving, size: int
) -> None:
    first = threading.Event()

    def image(exchange: Exchange) -> None:
        if not first.is_set():
            first.set()
            exchange.send_file(OLD, {"ETag": '"same"'})
        else:
            exchange.send_file(OLD, {"ETag": '"same"'}, size=size)

    server = make_misbehaving(serving(image))
    async with running(server.url, tries=1) as fetcher:
        flight = await fetch(fetcher, "img")
        await until(lambda: not fetcher.under_way())
    assert isinstance(flight.error, CacheFSError)
    assert store.quick.get("img") is None or len(cached(store)) == size


async def test_an_answer_with_another_range_is_no_part_of_the_image(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving
) -> None:
    def image(exchange: Exchange) -> None:
        start, stop = exchange.wanted or (0, len(OLD))
        if stop > 1:
            start, stop = 5, 5 + stop - start
        head = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(OLD)}",
            "Content-Length": stop - start,
            "ETag": '"same"',
        }
        exchange.send_head(206, head)
        exchange.send(OLD[start:stop])

    server = make_misbehaving(serving(image))
    async with running(server.url, tries=1, span=MIB) as fetcher:
        flight = await fetch(fetcher, "img")
    assert flight.error is not None
    assert store.quick.get("img") is None


async def test_an_etag_of_ten_thousand_characters_is_no_trouble(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving
) -> None:
    tag = '"' + "x" * 10_000 + '"'
    server = make_misbehaving(serving(lambda exchange: exchange.send_file(OLD, {"ETag": tag})))
    async with running(server.url) as fetcher:
        await fetch(fetcher, "img")
    assert cached(store) == OLD


# Stalls


async def test_a_fetch_that_stalls_can_be_cancelled_and_begun_again(
    running: Running, store: Store, make_misbehaving: MakeMisbehaving
) -> None:
    stalling = threading.Event()
    stalling.set()

    def image(exchange: Exchange) -> None:
        if exchange.wanted is None or exchange.wanted == (0, 1) or not stalling.is_set():
            exchange.send_file(OLD, {"ETag": '"same"'})
            return
        start, stop = exchange.wanted
        head = {
            "Content-Range": f"bytes {start}-{stop - 1}/{len(OLD)}",
            "Content-Length": stop - start,
            "ETag": '"same"',
        }
        exchange.send_head(206, head)
        exchange.send(bytes(stop - start - 1))  # wrong, and never all of it
        exchange.stall()

    server = make_misbehaving(serving(image))
    async with running(server.url, span=2 * MIB) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await until(lambda: flight.progress().arrived)
        await fetcher.cancel("img")
        stalling.clear()
        await fetch(fetcher, "img")
        assert cached(store) == OLD
        server.ended.set()  # what stalled ends now
        await until(lambda: threading.active_count() < 60)
    assert cached(store) == OLD


async def test_the_daemon_ends_while_the_origin_stalls(
    running: Running, store: Store, images: Images, make_origin: MakeOrigin
) -> None:
    images.put("img", OLD)
    origin = make_origin(limit_rate="2m")
    async with running(origin.url) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await read(flight, 0, 1)
        origin.freeze()
    with trio.fail_after(PATIENCE):
        await flight.finished.wait()
    assert store.abandoned() == ["img"]
    origin.thaw()

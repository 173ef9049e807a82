"""The files of images under way that are open, as the next worker finds them."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
from support.fake_source import MIB, PATIENCE, FakeSource
from support.place import content

from cachefs.cache import Held, Layout, Limits, Store
from cachefs.fetcher import Fetcher, FetchSettings, Flight
from cachefs.units import Amount
from cachefs.vfs.expected import Expected
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import NodeKind, Serials, join
from cachefs.vfs.nodes import NOBODY
from cachefs.vfs.open_files import OpenFiles
from cachefs.vfs.open_images import LazyFile
from cachefs.vfs.takeover import Takeover

NUMBER = join(NodeKind.LAZY, 5)
LIMITS = Limits(Amount(2**30))
DATA = content("img", 3 * MIB)


@dataclass
class Worker:
    """What a worker makes of a cache directory."""

    cache_dir: Path
    source: FakeSource

    def __post_init__(self) -> None:
        self.store = Store(self.cache_dir, LIMITS)
        self.held = Held(Layout(self.cache_dir))
        self.registry = OpenFiles(Serials())
        hits = Hits(self.store.quick)
        self.files = ImageFiles(self.store.quick, self.held, self.registry, hits, lasting=True)
        self.fetcher = Fetcher(self.store, self.source, FetchSettings(connections=1))
        self.fetcher.on_ended(self.files.flight_ended)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Until the block ends; what is open stays so."""
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.fetcher.run)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()

    async def open(self) -> Flight:
        """The fetch of the image, which is open."""
        flight = self.fetcher.start(await self.fetcher.stat("img"))
        self.registry.grant(await self.files.lazy(5, flight, NOBODY), NUMBER, 1)
        return flight


MakeWorker = Callable[[], Worker]


@pytest.fixture
def source() -> FakeSource:
    """Sends one MiB of each read before its gate is set."""
    source = FakeSource({"img": DATA}, free=MIB)
    source.gate.clear()
    return source


@pytest.fixture
def make_worker(tmp_path: Path, source: FakeSource) -> Iterator[MakeWorker]:
    with ExitStack() as stack:

        def make() -> Worker:
            worker = Worker(tmp_path, source)
            stack.callback(worker.store.close)
            stack.callback(worker.registry.close)
            return worker

        yield make


@contextmanager
def glance(cache_dir: Path) -> Iterator[BinaryIO]:
    """A Glance has the image's incomplete file open, as it does until it publishes it."""
    with (cache_dir / "incomplete" / "img").open("wb") as file:
        file.write(b"theirs")
        file.flush()
        yield file


async def test_what_is_held_is_the_file_that_is_read_though_a_glance_took_the_first(
    make_worker: MakeWorker, source: FakeSource
) -> None:
    worker, under_way = make_worker(), []
    async with worker.serving():
        flight = await worker.open()
        await flight.wait(0, MIB)
        flight.file.on_another[0] = lambda: under_way.append(
            worker.held.is_incomplete(NUMBER, "img")
        )
        with glance(worker.cache_dir):
            source.gate.set()
            await flight.finished.wait()
        assert flight.error is None
        assert under_way == [True]
        worker.store.evict("img")
        assert held_bytes(worker.held) == DATA
        note = worker.held.noted(NUMBER)
        assert note is not None
        assert note["complete"]


async def test_who_reads_reads_on_through_the_next_worker_though_a_glance_was_faster(
    make_worker: MakeWorker, source: FakeSource
) -> None:
    before = make_worker()
    with glance(before.cache_dir) as theirs:
        async with before.serving():
            flight = await before.open()
            await flight.wait(0, MIB)
        theirs.write(DATA[theirs.tell() :])
    (before.cache_dir / "incomplete" / "img").rename(before.cache_dir / "img")
    worker = make_worker()
    async with worker.serving():
        takeover = Takeover(
            worker.registry,
            worker.files,
            worker.store.quick,
            worker.held,
            worker.fetcher,
            expected=Expected(),
            keep_for_open=lambda _serial, _image: None,
        )
        await takeover.run({NUMBER: 1}, first=False)
        await takeover.go_on()
        grant = worker.registry.opened(NUMBER)
        assert grant is not None
        assert isinstance(grant.file, LazyFile)
        source.gate.set()
        await grant.file.flight.finished.wait()
        assert held_bytes(worker.held) == DATA


def held_bytes(held: Held) -> bytes:
    fd = held.open(NUMBER)
    assert fd is not None
    try:
        return os.pread(fd, 2 * len(DATA), 0)
    finally:
        os.close(fd)

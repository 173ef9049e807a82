"""The files of images under way that are open, as the next worker finds them."""

import os
from pathlib import Path

import trio
from support.fake_source import MIB, PATIENCE, FakeSource
from support.place import content

from cachefs.cache import Held, Layout, Limits, Store
from cachefs.fetcher import Fetcher, FetchSettings
from cachefs.units import Amount
from cachefs.vfs.hits import Hits
from cachefs.vfs.image_files import ImageFiles
from cachefs.vfs.inodes import NodeKind, Serials, join
from cachefs.vfs.nodes import NOBODY
from cachefs.vfs.open_files import OpenFiles

LIMITS = Limits(Amount(2**30))
DATA = content("img", 3 * MIB)


async def test_what_is_held_is_the_file_that_is_read_though_a_glance_took_the_first(
    tmp_path: Path,
) -> None:
    """It opens ``incomplete/ID`` for writing, and the fetch goes on beside it."""
    layout, number = Layout(tmp_path), join(NodeKind.LAZY, 5)
    source = FakeSource({"img": DATA}, free=MIB)
    source.gate.clear()
    store, registry, held = Store(tmp_path, LIMITS), OpenFiles(Serials()), Held(layout)
    files = ImageFiles(store.quick, held, registry, Hits(store.quick), lasting=True)
    fetcher = Fetcher(store, source, FetchSettings(connections=1))
    under_way = []
    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                await nursery.start(fetcher.run)
                fetcher.on_ended(files.flight_ended)
                flight = fetcher.start(await fetcher.stat("img"))
                registry.grant(await files.lazy(5, flight, NOBODY), number, 1)
                await flight.wait(0, MIB)
                flight.on_another_file[0] = lambda: under_way.append(
                    held.is_incomplete(number, "img")
                )
                with layout.incomplete("img").open("wb") as theirs:
                    theirs.write(b"theirs")
                    theirs.flush()
                    source.gate.set()
                    await flight.finished.wait()
                assert flight.error is None
                assert under_way == [True]
                store.evict("img")
                assert held_bytes(held, number) == DATA
                note = held.noted(number)
                assert note is not None
                assert note["complete"]
                nursery.cancel_scope.cancel()
    finally:
        registry.close()
        store.close()


def held_bytes(held: Held, number: int) -> bytes:
    fd = held.open(number)
    assert fd is not None
    try:
        return os.pread(fd, 2 * len(DATA), 0)
    finally:
        os.close(fd)

"""Readers of an image that another program caches at the same time: a Glance, which writes to
``incomplete/ID`` without a lock and renames it."""

import os
from pathlib import Path
from typing import BinaryIO

import pytest
import trio

from cachefs.cache import Layout, Store, Transaction
from cachefs.errors import ChecksumError, ImageBusyError
from cachefs.fetcher.flight import FlightState

from .conftest import DATA, MIB, FakeSource, Running, cached, read

pytestmark = pytest.mark.usefixtures("quick_retries")


def glance(cache_dir: Path) -> BinaryIO:
    """Glance has begun to cache the image; closed, it is dead."""
    file = (cache_dir / "incomplete" / "img").open("wb")
    file.write(DATA[:1000])
    file.flush()
    return file


def publish(cache_dir: Path, file: BinaryIO) -> None:
    """Glance has got the rest."""
    file.write(DATA[file.tell() :])
    file.close()
    (cache_dir / "incomplete" / "img").rename(cache_dir / "img")


def left(store: Store) -> list[str]:
    """What is left of an image's writing."""
    layout = Layout(store.cache_dir)
    places = (layout.incomplete_dir, layout.maps_dir, layout.beside_dir, layout.beside_maps_dir)
    return [str(each) for place in places for each in place.iterdir()]


async def test_a_reader_is_served_while_another_program_caches_the_image(
    running: Running, source: FakeSource, store: Store
) -> None:
    with glance(store.cache_dir) as other:
        async with running(source) as fetcher:
            flight = fetcher.start(await fetcher.stat("img"))
            flight.add_reader()
            assert await read(flight, 0, len(DATA)) == DATA
            await flight.finished.wait()
            assert flight.state is FlightState.PUBLISHED
            flight.drop_reader()
        publish(store.cache_dir, other)
    assert cached(store) == DATA
    assert left(store) == []


async def test_a_reader_reads_on_when_another_program_publishes_first(
    running: Running, held: FakeSource, store: Store
) -> None:
    with glance(store.cache_dir) as other:
        async with running(held) as fetcher:
            flight = fetcher.start(await fetcher.stat("img"))
            flight.add_reader()
            assert await read(flight, 0, MIB) == DATA[:MIB]
            publish(store.cache_dir, other)
            theirs = (store.cache_dir / "img").stat().st_ino
            held.gate.set()
            assert await read(flight, MIB, len(DATA)) == DATA[MIB:]
            await flight.finished.wait()
            assert flight.error is None
            flight.drop_reader()
    assert (store.cache_dir / "img").stat().st_ino == theirs
    assert left(store) == []


async def test_a_reader_reads_on_when_the_other_program_is_killed(
    running: Running, held: FakeSource, store: Store
) -> None:
    other = glance(store.cache_dir)
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        await read(flight, 0, MIB)
        other.close()
        held.gate.set()
        assert await read(flight, 0, len(DATA)) == DATA
        await flight.finished.wait()
        flight.drop_reader()
    assert cached(store) == DATA


async def test_a_reader_reads_on_when_another_program_empties_our_file(
    running: Running, held: FakeSource, store: Store
) -> None:
    """It looked whether the image is being cached before we began, and opened the file after."""
    async with running(held) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        await read(flight, 0, MIB)
        with glance(store.cache_dir) as other:
            assert not flight.has(0, MIB)
            held.gate.set()
            await flight.finished.wait()
            assert flight.error is None
            assert await read(flight, 0, len(DATA)) == DATA
            flight.drop_reader()
            publish(store.cache_dir, other)
    assert cached(store) == DATA


async def test_nobody_reads_all_of_a_second_try_before_it_is_verified(
    running: Running, source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was right, and taken away as it was published."""
    commit, others = Transaction.commit, []

    def taken_away(transaction: Transaction, **values: object) -> object:
        if not others:
            others.append(glance(store.cache_dir))
            source.images["img"] = bytes(len(DATA))
        return commit(transaction, **values)  # type: ignore[arg-type]

    monkeypatch.setattr(Transaction, "commit", taken_away)
    second = trio.Event()
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        flight.file.on_another[0] = second.set
        await second.wait()
        with pytest.raises(ChecksumError):
            await flight.wait(0, len(DATA))
        await flight.finished.wait()
        flight.drop_reader()
    others[0].close()


async def test_a_fetch_that_is_about_to_be_opened_goes_on_though_another_was_faster(
    running: Running, held: FakeSource, store: Store
) -> None:
    async with running(held) as fetcher:
        image = await fetcher.stat("img")
        with glance(store.cache_dir) as other:
            publish(store.cache_dir, other)
        assert store.is_cached("img")
        flight = fetcher.start(image)
        flight.insist()
        flight.add_reader()
        held.gate.set()
        assert await read(flight, 0, len(DATA)) == DATA
        await flight.finished.wait()
        assert flight.error is None
        flight.drop_reader()
    assert cached(store) == DATA


async def test_what_is_only_queued_waits_for_the_other_program(
    running: Running, source: FakeSource, store: Store
) -> None:
    with glance(store.cache_dir):
        (store.cache_dir / "queue" / "img").touch()
        async with running(source) as fetcher:
            flight = fetcher.start(await fetcher.stat("img"))
            await flight.finished.wait()
            assert isinstance(flight.error, ImageBusyError)
            assert source.reads == []
            assert store.failure("img") is None
            assert store.quick.is_queued("img")


async def test_a_reader_who_comes_to_a_flight_that_nobody_read_is_served(
    running: Running, source: FakeSource, store: Store
) -> None:
    with glance(store.cache_dir):
        async with running(source) as fetcher:
            flight = fetcher.start(await fetcher.stat("img"))
            await trio.lowlevel.checkpoint()  # it has begun, and will find the other one
            flight.add_reader()
            assert await read(flight, 0, len(DATA)) == DATA
            await flight.finished.wait()
            flight.drop_reader()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "map"])
async def test_what_cannot_be_written_to_is_written_beside(
    running: Running, source: FakeSource, store: Store, kind: str
) -> None:
    layout = Layout(store.cache_dir)
    path = layout.map("img") if kind == "map" else layout.incomplete("img")
    if kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        await flight.finished.wait()
    assert flight.error is None
    assert cached(store) == DATA
    if kind != "map":
        path.lstat()


@pytest.mark.parametrize("kind", ["directory", "link", "fifo", "stranger"])
async def test_what_stands_in_an_images_place_stays_and_its_readers_are_served(
    running: Running, source: FakeSource, store: Store, kind: str
) -> None:
    path = store.cache_dir / "img"
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"theirs")
        os.chown(path, 12345, 12345)
    before = path.lstat()
    async with running(source) as fetcher:
        flight = fetcher.start(await fetcher.stat("img"))
        flight.add_reader()
        assert await read(flight, 0, len(DATA)) == DATA
        await flight.finished.wait()
        assert await read(flight, 0, len(DATA)) == DATA
        flight.drop_reader()
    assert os.path.samestat(path.lstat(), before)
    failure = store.failure("img")
    assert failure is not None
    assert str(path) in failure.error
    assert left(store) == []

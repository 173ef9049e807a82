"""What another process locks, or changes, beside a filesystem that answers."""

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing
from support.fake_source import FakeSource
from support.strangers import FLOCK, PATIENCE, READ_TRANSACTION, WRITE_LOCK, another_holds

from cachefs.drivers import Entry, connections, file_id
from cachefs.vfs import hits as vfs_hits

from .conftest import DATA, Served, Worker, every_driver, every_mode, sha256, until

SMALL = b"small image"
OTHER = b"wrong image"


def put_verified(worker: Worker, data: bytes) -> None:
    """Cache the image ``a`` with its digest."""
    with worker.store.begin("a", len(data)) as transaction:
        transaction.write(data)
        transaction.commit(checksum=sha256(data), verified=True)


def in_the_index(worker: Worker, image_id: str = "a") -> int:
    """The hits that stand in the index, for another process to see."""
    path = worker.layout.image(image_id)
    if worker.store.driver_name == "xattr":
        return int(os.getxattr(path, "user.hits"))
    with closing(sqlite3.connect(path.parent / "cache.db")) as connection:
        [(hits,)] = connection.execute(
            "SELECT hits FROM cached_images WHERE image_id = ?", (image_id,)
        )
    return int(hits)


def index_lock(worker: Worker) -> tuple[Path, str]:
    """What another process locks so that nothing can be written to the index."""
    base = worker.layout.base
    if worker.store.driver_name == "xattr":
        return base / ".cachefs/inodes", FLOCK
    return base / "cache.db", WRITE_LOCK


@every_driver
@every_mode
async def test_all_is_answered_while_another_process_holds_the_directorys_lock(
    served: Served, mode: str, driver: str
) -> None:
    async with served(mode=mode, driver=driver, images={"a": SMALL}) as worker:
        with another_holds(worker.layout.lock_file, FLOCK):
            assert (await worker.record("status"))["images"] == 1
            assert await worker.ask.cat("images/a") == SMALL
            assert await worker.ask.listdir("images") == ["a"]
            assert await worker.ask.listdir("control/cached") == ["a"]
            assert (await worker.record("cached/a"))["hits"] == 1
            assert await worker.ask.getxattr("images/a", "user.cachefs.hits") == b"1"
            assert (await worker.ask.statfs()).f_files == 1
            assert int(await worker.ask.cat("control/size")) == len(SMALL)


async def test_many_who_wait_for_the_directorys_lock_keep_nobody_from_the_status(
    served: Served,
) -> None:
    async with served(images={"a": SMALL}) as worker, trio.open_nursery() as nursery:
        with another_holds(worker.layout.lock_file, FLOCK):
            for number in range(50):
                nursery.start_soon(worker.ask.touch, f"control/queue/{number}")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (await worker.record("status"))["images"] == 1
            assert await worker.ask.cat("images/a") == SMALL


@every_driver
@every_mode
async def test_opens_are_answered_and_their_hits_kept_while_another_process_locks_the_index(
    served: Served, mode: str, driver: str
) -> None:
    async with served(mode=mode, driver=driver, images={"a": SMALL}) as worker:
        with another_holds(*index_lock(worker)):
            for opens in range(1, 6):
                assert await worker.ask.cat("images/a") == SMALL
                assert await worker.ask.getxattr("images/a", "user.cachefs.hits") == b"%d" % opens
                assert (await worker.record("cached/a"))["hits"] == opens
            assert (await worker.record("status"))["hits"] == 5
            assert in_the_index(worker) == 0
        await until(lambda: in_the_index(worker) == 5)
        assert (await worker.record("cached/a"))["hits"] == 5


@every_driver
async def test_hits_that_wait_are_written_by_a_worker_that_leaves(
    served: Served, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vfs_hits, "PAUSE", 60)
    async with served(driver=driver, images={"a": SMALL}) as worker:
        for _ in range(3):
            await worker.ask.cat("images/a")
        await until(lambda: in_the_index(worker) > 0)
        await worker.ask.cat("images/a")
    assert in_the_index(worker) == 4


async def test_the_index_takes_no_more_room_though_another_process_reads_on_and_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("WAL_BYTES", 100_000), ("UNTIDY_BYTES", 50_000)):
        monkeypatch.setattr(connections, name, size)
    async with served(images={"a": SMALL}) as worker:
        path = worker.layout.base / "cache.db"
        with another_holds(path, READ_TRANSACTION):
            hits = worker.filesystem._hits
            sizes = set()
            for _ in range(400):
                hits.count("a")
                hits._write_at_once()
                sizes.add((await worker.record("status"))["index_size"])
            assert in_the_index(worker) < 400
            assert 100_000 < max(sizes) < 300_000
            assert await worker.ask.cat("images/a") == SMALL
            assert (await worker.record("cached/a"))["hits"] == 401
        await until(lambda: in_the_index(worker) == 401)
        await until(lambda: worker.store.index_bytes() < 100_000)


@every_driver
@every_mode
@pytest.mark.parametrize("opened", [False, True])
async def test_wrong_bytes_are_never_read_under_the_name_of_an_image(
    served: Served, source: FakeSource, mode: str, driver: str, opened: bool
) -> None:
    source.images["a"] = SMALL
    async with served(mode=mode, driver=driver) as worker:
        put_verified(worker, SMALL)
        handle = await worker.ask.open("images/a") if opened else None
        (worker.layout.base / "a").write_bytes(OTHER)
        assert await worker.ask.cat("images/a") == SMALL
        await worker.cached("a")
        if handle is not None:
            await worker.ask.release(handle)
    assert (worker.layout.base / "a").read_bytes() == SMALL


@every_driver
@every_mode
@pytest.mark.parametrize("opened", [False, True])
async def test_an_image_that_was_only_touched_is_read_and_compared_but_once(
    served: Served, mode: str, driver: str, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    async with served(mode=mode, driver=driver) as worker:
        put_verified(worker, SMALL)
        handle = await worker.ask.open("images/a") if opened else None
        checker = worker.store._checker
        really = checker._check
        monkeypatch.setattr(checker, "_check", lambda entry: compared.append(1) or really(entry))
        (worker.layout.base / "a").touch()
        for _ in range(3):
            assert await worker.ask.cat("images/a") == SMALL
        if handle is not None:
            assert await worker.ask.read(handle) == SMALL
            await worker.ask.release(handle)
    assert len(compared) == 1


async def test_who_stops_waiting_for_a_comparison_leaves_no_descriptor(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as worker:
        put_verified(worker, DATA)
        checker = worker.store._checker
        really, go_on = checker._check, threading.Event()
        begun = trio.Event()

        def slowly(entry: Entry) -> None:
            trio.from_thread.run_sync(begun.set)
            go_on.wait(PATIENCE)
            really(entry)

        monkeypatch.setattr(checker, "_check", slowly)
        (worker.layout.base / "a").touch()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.ask.cat, "images/a")
            await begun.wait()
            nursery.cancel_scope.cancel()
        before = worker.descriptors
        go_on.set()
        await until(lambda: is_compared(worker))
        await until(lambda: worker.descriptors == before)


def is_compared(worker: Worker) -> bool:
    entry = worker.store.get("a")
    return entry is not None and entry.file == file_id((worker.layout.base / "a").stat())

"""The limits, kept in the background: what changes without anybody asking is noticed soon."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_source import FakeSource

from cachefs.cache import Limits
from cachefs.units import Amount
from cachefs.vfs.inodes import IMAGES_INODE

from .conftest import Served, Worker, every_driver, until

IMAGES = {name: bytes(1000) for name in "abc"}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evictor looks all the time."""
    monkeypatch.setattr("cachefs.evictor.PRUNE_EVERY", 0.01)
    monkeypatch.setattr("cachefs.evictor.CLEAN_EVERY", 0.01)


def lower(worker: Worker, size: int) -> None:
    """The limit is another by now, and nobody prunes: as when a share of the disk is meant, and the
    disk is another by now."""
    worker.store.limits = Limits(Amount(size=size))


def names(worker: Worker) -> list[str]:
    return sorted(entry.image_id for entry in worker.store.entries())


def failing_times(count: int, really: Callable[..., object]) -> Callable[..., object]:
    """*really*, which the disk refuses so many times first."""
    left = [OSError(5, "the disk failed") for _ in range(count)]

    def call(*args: object) -> object:
        if left:
            raise left.pop()
        return really(*args)

    return call


@every_driver
async def test_what_is_over_a_limit_goes_without_anybody_asking(
    served: Served, driver: str
) -> None:
    async with served(driver=driver, images=IMAGES) as worker:
        lower(worker, 1000)
        await until(lambda: names(worker) == ["c"])
        await until(lambda: worker.filesystem._evictor.last_pruned)
        assert await worker.record("prune") == {"files": 2, "bytes": 2000}
        assert (await worker.record("status"))["evictions"] == 2


async def test_the_kernel_hears_of_what_the_evictor_drops(served: Served) -> None:
    async with served(images=IMAGES) as worker:
        inode = (await worker.ask.lookup("images/a")).st_ino
        lower(worker, 2000)
        await until(lambda: worker.notifier.entries)
        assert worker.notifier.entries == [(IMAGES_INODE, b"a", inode)]


@every_driver
async def test_the_least_recently_used_goes_first(served: Served, driver: str) -> None:
    async with served(driver=driver, images=IMAGES) as worker:
        await worker.ask.cat("images/a")
        await worker.ask.cat("control/cached/a")  # which waits for the hit to be written
        lower(worker, 1000)
        await until(lambda: names(worker) == ["a"])


async def test_pinned_and_open_images_stay_though_they_are_over_the_limit(served: Served) -> None:
    async with served(images=IMAGES) as worker:
        await worker.ask.touch("control/pinned/a")
        handle = await worker.ask.open("images/b")
        lower(worker, 0)
        await until(lambda: names(worker) == ["a", "b"])
        assert await worker.ask.read(handle, 0, 10) == bytes(10)
        await worker.ask.release(handle)
        await until(lambda: names(worker) == ["a"])


async def test_a_look_that_fails_is_logged_once_and_made_again(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(images=IMAGES) as worker:
        monkeypatch.setattr(worker.store, "prune", failing_times(2, worker.store.prune))
        lower(worker, 1000)
        await until(lambda: names(worker) == ["c"])
        assert caplog.text.count("cannot keep the limits: [Errno 5] the disk failed") == 1


async def test_what_cannot_be_removed_is_logged_and_the_next_goes_instead(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(path: Path) -> None:
        if path.name == "a":
            raise OSError(1, "immutable")

    async with served(images=IMAGES) as worker:
        monkeypatch.setattr("cachefs.cache.eviction.check_removable", stuck)
        lower(worker, 2000)
        await until(lambda: names(worker) == ["a", "c"])
        assert f"cannot remove {worker.layout.image('a')}" in caplog.text


async def test_what_could_not_be_removed_is_tried_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = threading.Event()
    freed = threading.Event()

    def stuck(path: Path) -> None:
        tries.set()
        if not freed.is_set():
            raise OSError(1, "immutable")

    async with served(images=IMAGES) as worker:
        monkeypatch.setattr("cachefs.cache.eviction.check_removable", stuck)
        lower(worker, 0)
        await until(tries.is_set)
        assert names(worker) == ["a", "b", "c"]
        freed.set()
        await until(lambda: names(worker) == [])


async def test_a_stalled_partial_file_is_removed_and_a_fresh_one_is_not(served: Served) -> None:
    async with served(stall_time=60.0) as worker:
        for name in ("fresh", "old"):
            worker.layout.incomplete(name).write_bytes(b"partial")
        os.utime(worker.layout.incomplete("old"), (1, 1))
        await until(lambda: not worker.layout.incomplete("old").exists())
        assert worker.layout.incomplete("fresh").exists()


async def test_a_stall_time_written_to_control_counts_from_then_on(served: Served) -> None:
    async with served() as worker:
        worker.layout.incomplete("left").write_bytes(b"partial")
        os.utime(worker.layout.incomplete("left"), (0, worker.store.now() - 3600))
        await worker.ask.echo("2h", "control/stall_time")
        assert worker.layout.incomplete("left").exists()
        await worker.ask.echo("30s", "control/stall_time")
        await until(lambda: not worker.layout.incomplete("left").exists())


async def test_a_fetch_under_way_is_not_stalled_however_old(
    served: Served, held: FakeSource
) -> None:
    async with served(stall_time=60.0) as worker:
        handle = await worker.ask.open("images/img")
        partial, left = worker.layout.incomplete("img"), worker.layout.incomplete("left")
        left.write_bytes(b"partial")
        for path in (partial, left):
            os.utime(path, (1, 1))
        await until(lambda: not left.exists())
        assert partial.exists()
        await worker.ask.release(handle)

"""After the last release nothing is left: no open file, no descriptor, no hold, no reservation."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.fake_source import FakeSource

from cachefs.cache import Held
from cachefs.errors import ImageNotFoundError
from cachefs.fuse.listings import LISTINGS

from .conftest import DATA, Served, Worker, every_driver, every_mode, refused, until

SMALL = b"small image"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle files are closed soon, and a failing source is tried again at once."""
    monkeypatch.setattr("cachefs.vfs.idle.IDLE_SECONDS", 0.02)
    monkeypatch.setattr("cachefs.fetcher.retry.FIRST_PAUSE", 0.001)


async def nothing_is_left(worker: Worker) -> None:
    """Return once what may take a moment has gone, and see that the rest has gone at once."""
    assert len(worker.filesystem.open_files) == 0
    assert worker.held == []
    await worker.ask.forget()
    await until(lambda: not worker.fetching)
    await until(lambda: worker.descriptors == [])
    assert worker.store.usage().reserved == 0
    assert len(worker.ask.operations._listings) == 0
    assert worker.filesystem._images._lazy == {}
    assert worker.filesystem._images._lazy_by_id == {}


@pytest.mark.parametrize("method", ["note", "keep_open"])
async def test_an_open_that_fails_for_want_of_room_for_its_link_or_note_leaves_nothing(
    served: Served, source: FakeSource, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also where the error comes when half of it is done."""
    really = getattr(Held, method)

    def fail(held: Held, *arguments: object, **rest: object) -> None:
        really(held, *arguments, **rest)
        raise OSError(errno.ENOSPC, "no room")

    async with served() as worker:
        with monkeypatch.context() as patch:
            patch.setattr(Held, method, fail)
            with refused(errno.ENOSPC):
                await worker.ask.open("images/img")
        await worker.cached("img")
        await nothing_is_left(worker)


async def test_a_note_that_cannot_be_made_complete_ends_no_fetch(
    served: Served, held: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as worker:
        handle = await worker.ask.open("images/img")
        monkeypatch.setattr(Held, "note", failing(OSError(errno.ENOSPC, "no room")))
        held.gate.set()
        await worker.cached("img")
        assert await worker.ask.read_all(handle) == DATA
        await worker.ask.release(handle)
        await nothing_is_left(worker)


async def test_an_eviction_that_cannot_hold_an_open_image_leaves_it_cached(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        monkeypatch.setattr(Held, "keep", failing(OSError(errno.EMLINK, "too many links")))
        with refused(errno.EMLINK):
            await worker.ask.unlink("control/cached/a")
        assert await worker.ask.read_all(handle) == SMALL
        await worker.ask.release(handle)
        assert await worker.ask.cat("images/a") == SMALL
        await nothing_is_left(worker)


async def test_the_close_of_an_image_that_could_not_be_evicted_is_a_use_of_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.open("images/a")
        with monkeypatch.context() as patch:
            patch.setattr(Held, "keep", failing(OSError(errno.EMLINK, "too many links")))
            with refused(errno.EMLINK):
                await worker.ask.unlink("control/cached/a")
        opened = (await worker.record("cached/a"))["last_accessed"]
        await worker.ask.release(handle)
        assert (await worker.record("cached/a"))["last_accessed"] > opened


def failing(error: OSError) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


async def test_directories_that_are_never_closed_cost_nothing_or_little(served: Served) -> None:
    async with served(images=dict.fromkeys("abc", SMALL)) as worker:
        inode = (await worker.ask.lookup("control/cached")).st_ino
        numbers = [await worker.ask.opendir(inode) for _ in range(2 * LISTINGS)]
        listings = worker.ask.operations._listings
        assert len(listings) == 0
        worker.ask._room = 1
        first = await worker.ask.readdir(numbers[0], 0)
        for number in numbers:
            await worker.ask.readdir(number, 0)
        assert len(listings) == LISTINGS
        rest = await worker.ask.readdir(numbers[0], first[0][1])  # forgotten by now
        assert [first[0][0], rest[0][0]] == ["a", "b"]


Use = Callable[[Worker, FakeSource], Awaitable[None]]


async def read_cached(worker: Worker, _: FakeSource) -> None:
    await worker.ask.cat("images/a")


async def read_fetching(worker: Worker, _: FakeSource) -> None:
    await worker.ask.cat("images/img")
    await worker.cached("img")


async def open_and_close_before_a_byte(worker: Worker, source: FakeSource) -> None:
    source.gate.clear()
    source.free = 0
    first = await worker.ask.open("images/img")
    second = await worker.ask.open("images/img")
    await worker.ask.release(second)
    await worker.ask.release(first)
    source.gate.set()


async def publish_while_open(worker: Worker, source: FakeSource) -> None:
    handle = await worker.ask.open("images/img")
    await worker.cached("img")
    cached = await worker.ask.open("images/img")
    await worker.ask.read(handle)
    await worker.ask.release(cached)
    await worker.ask.release(handle)


async def evict_while_open(worker: Worker, _: FakeSource) -> None:
    handle = await worker.ask.open("images/a")
    await worker.ask.unlink("control/cached/a")
    await worker.ask.release(handle)


async def evict_while_idle(worker: Worker, _: FakeSource) -> None:
    await worker.ask.cat("images/a")
    await worker.ask.unlink("control/cached/a")


async def cancel_while_open(worker: Worker, source: FakeSource) -> None:
    source.gate.clear()
    source.free = 0
    handle = await worker.ask.open("images/img")
    await worker.ask.unlink("control/incomplete/img")
    await worker.ask.release(handle)
    source.gate.set()


async def fail_while_open(worker: Worker, source: FakeSource) -> None:
    source.read_errors.extend([ImageNotFoundError("gone")] * 100)
    handle = await worker.ask.open("images/img")
    await worker.failed("img")
    await worker.ask.release(handle)


async def give_up_opening(worker: Worker, source: FakeSource) -> None:
    source.answer.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.ask.open, "images/img")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    source.answer.set()


async def give_up_reading(worker: Worker, source: FakeSource) -> None:
    source.gate.clear()
    source.free = 0
    handle = await worker.ask.open("images/img")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.ask.read, handle)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    source.gate.set()
    await worker.ask.release(handle)


async def use_control(worker: Worker, _: FakeSource) -> None:
    for name in ("status", "config", "cached/a", "prune"):
        await worker.ask.cat(f"control/{name}")
    await worker.ask.echo("1", "control/prune")
    await worker.ask.touch("control/pinned/a")
    for name in ("", "control", "images", "control/cached", "control/pinned"):
        await worker.ask.listdir(name)


async def write_to_an_image(worker: Worker, _: FakeSource) -> None:
    with pytest.raises(OSError, match="Read-only"):
        await worker.ask.open("images/a", 1)


USES: list[Use] = [
    read_cached,
    read_fetching,
    open_and_close_before_a_byte,
    publish_while_open,
    evict_while_open,
    evict_while_idle,
    cancel_while_open,
    fail_while_open,
    give_up_opening,
    give_up_reading,
    use_control,
    write_to_an_image,
]


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@every_mode
async def test_nothing_is_left_after_use(
    served: Served, source: FakeSource, mode: str, use: Use
) -> None:
    async with served(mode=mode, images={"a": SMALL}) as worker:
        await use(worker, source)
        await nothing_is_left(worker)


@every_driver
async def test_nothing_is_left_after_many_uses_at_once(
    served: Served, source: FakeSource, driver: str
) -> None:
    images = {f"image-{number}": SMALL for number in range(20)}
    async with served(driver=driver, images=images) as worker:
        async with trio.open_nursery() as nursery:
            for name in [*images, "img"] * 3:
                nursery.start_soon(worker.ask.cat, f"images/{name}")
            for name in images:
                nursery.start_soon(worker.ask.unlink, f"control/cached/{name}")
                source.images[name] = SMALL
        await nothing_is_left(worker)


async def test_the_end_of_a_mount_closes_what_is_open_and_what_is_idle(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.vfs.idle.IDLE_SECONDS", 3600.0)
    async with served(images={"a": SMALL, "b": SMALL}, dies=True) as worker:
        await worker.ask.cat("images/a")
        await worker.ask.open("images/b")
        await worker.ask.open("images/img")
        worker.store.evict("b")
        await worker.ask.open("control/status")
        await worker.cached("img")
        worker.filesystem.end()
        assert len(worker.filesystem.open_files) == 0
        assert worker.descriptors == []
        assert worker.held == []


async def test_an_image_is_cached_whole_after_its_last_reader_left_early(
    served: Served, source: FakeSource
) -> None:
    async with served() as worker:
        await worker.ask.release(await worker.ask.open("images/img"))
        await worker.cached("img")
        await nothing_is_left(worker)
        assert worker.layout.image("img").read_bytes() == DATA

"""What goes wrong at the source, in the cache or in a handler, as the errno that a reader sees."""

import errno
from collections.abc import Callable

import pytest
from support.fake_source import FakeSource

from cachefs.errors import (
    ImageChangedError,
    ImageNotFoundError,
    SourceError,
    SourceRefusedError,
    SourceTimeoutError,
    SourceUnreachableError,
)
from cachefs.units import Amount

from .conftest import DATA, Served, every_mode, refused, sha256

SMALL = b"small image"
Fail = Callable[[FakeSource], None]


def with_error(error: Exception) -> Fail:
    return lambda source: source.read_errors.extend([error] * 200)


def with_wrong_bytes(source: FakeSource) -> None:
    source.digests["img"] = sha256(b"something else")


FINAL = {"gone", "checksum"}
FAILURES: list[tuple[str, Fail, int]] = [
    ("gone", with_error(ImageNotFoundError("gone")), errno.ENOENT),
    ("refused", with_error(SourceRefusedError("no")), errno.EACCES),
    ("unreachable", with_error(SourceUnreachableError("away")), errno.EHOSTUNREACH),
    ("timeout", with_error(SourceTimeoutError("slow")), errno.ETIMEDOUT),
    ("broken", with_error(SourceError("broken")), errno.EIO),
    ("changed", with_error(ImageChangedError("another")), errno.EIO),
    ("unforeseen", with_error(ValueError("a bug")), errno.EIO),
    ("checksum", with_wrong_bytes, errno.EIO),
]


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(("name", "fail", "number"), FAILURES, ids=[each[0] for each in FAILURES])
@every_mode
async def test_a_reader_gets_the_errno_of_what_its_fetch_failed_of(
    served: Served, source: FakeSource, mode: str, name: str, fail: Fail, number: int
) -> None:
    """What passes leaves the image in the queue, an authoritative no in invalid/."""
    fail(source)
    async with served(mode=mode) as worker:
        handle = await worker.ask.open("images/img")
        with refused(number):
            await worker.ask.read_all(handle)
        await worker.ask.release(handle)
        record = await (worker.failed("img") if name in FINAL else worker.waits("img"))
        assert record["state"] == ("invalid" if name in FINAL else "queued")
        assert worker.store.quick.get("img") is None


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SourceRefusedError("no"), errno.EACCES),
        (SourceUnreachableError("away"), errno.EHOSTUNREACH),
        (SourceTimeoutError("slow"), errno.ETIMEDOUT),
        (SourceError("broken"), errno.EIO),
        (ValueError("a bug"), errno.EIO),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_a_look_up_gets_the_errno_of_the_sources_answer(
    served: Served, source: FakeSource, error: Exception, number: int
) -> None:
    source.errors.append(error)
    async with served() as worker:
        with refused(number):
            await worker.ask.lookup("images/img")


async def test_a_failed_fetch_has_the_kernel_forget_the_bytes_that_came(
    served: Served, held: FakeSource
) -> None:
    with_wrong_bytes(held)
    async with served() as worker:
        handle = await worker.ask.open("images/img")
        await worker.ask.read(handle, 0, 4096)
        held.gate.set()
        await worker.failed("img")
        assert worker.notifier.inodes == [handle.inode]
        with refused(errno.EIO):
            await worker.ask.read(handle, 0, 4096)
        await worker.ask.release(handle)


@every_mode
async def test_an_image_larger_than_the_cache_is_no_room_and_evicts_nothing(
    served: Served, mode: str
) -> None:
    size = Amount(size=len(DATA) - 1)
    async with served(mode=mode, images={"a": SMALL}, max_size=size) as worker:
        with refused(errno.ENOSPC):
            await worker.ask.open("images/img")
        assert "max_size" in (await worker.failed("img"))["error"]
        assert await worker.ask.listdir("images") == ["a"]


@every_mode
async def test_no_room_beside_what_is_open_is_no_space_left(served: Served, mode: str) -> None:
    size = Amount(size=len(DATA) + 5)
    async with served(mode=mode, images={"a": SMALL}, max_size=size, timeout=0.2) as worker:
        handle = await worker.ask.open("images/a")
        with refused(errno.ENOSPC):
            await worker.ask.open("images/img")
        assert await worker.ask.listdir("control/invalid") == []
        await worker.ask.release(handle)
        assert await worker.ask.cat("images/img") == DATA


async def test_a_handler_with_a_bug_answers_an_io_error_and_logs_it(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.open("control/status")
        monkeypatch.setattr(worker.store, "usage", lambda: 1 / 0)
        with refused(errno.EIO):
            await worker.ask.read(handle)
        await worker.ask.release(handle)
        assert "read failed" in caplog.text


async def test_a_reader_with_a_signal_to_take_is_interrupted(
    served: Served, held: FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.free = 0
    monkeypatch.setattr("cachefs.vfs.waiting.POLL", 0.01)
    monkeypatch.setattr("cachefs.vfs.waiting.process_wants_to_end", lambda pid: pid == 4711)
    async with served(mode="plain") as worker:
        inode = (await worker.ask.lookup("images/img")).st_ino
        worker.ask.context.pid = 4711
        handle = await worker.ask.open_inode(inode)
        with refused(errno.EINTR):
            await worker.ask.read(handle)
        await worker.ask.release(handle)
        assert worker.fetching == {"img"}


async def test_an_image_whose_fetch_failed_is_fetched_by_the_next_open(
    served: Served, source: FakeSource
) -> None:
    with_error(ImageNotFoundError("gone"))(source)
    async with served() as worker:
        handle = await worker.ask.open("images/img")
        with refused(errno.ENOENT):
            await worker.ask.read_all(handle)
        await worker.failed("img")
        source.read_errors.clear()
        assert await worker.ask.cat("images/img") == DATA
        await worker.ask.release(handle)
        await worker.cached("img")
        assert await worker.ask.listdir("control/invalid") == []

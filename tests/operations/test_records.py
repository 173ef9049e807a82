"""The directories of ``control/``: what ``touch``, ``rm`` and ``cat`` of a record do."""

import errno
import json
import os
from collections.abc import Iterator

import pytest
from support.fake_source import MIB, FakeSource

from cachefs.control import TABLE
from cachefs.control.files import MAX_VALUE
from cachefs.control.records import Records

from .conftest import Served, every_driver, refused, until

SMALL = b"small image"
RECORD_KEYS = {
    *("image_id", "size", "hits", "last_accessed", "last_modified", "checksum"),  # Glance's
    *("state", "pinned", "fetched", "source", "error", "verified"),
}
DIRECTORIES = [each for each in TABLE if isinstance(each, Records)]

every_directory = pytest.mark.parametrize("declared", DIRECTORIES, ids=lambda each: each.name)


@pytest.fixture
def busy(held: FakeSource) -> Iterator[FakeSource]:
    """A source whose fetches stay under way: it sends nothing until its gate is set."""
    held.free = 0
    return held


@every_driver
async def test_touching_the_queue_fetches(served: Served, driver: str) -> None:
    async with served(driver=driver) as worker:
        await worker.ask.touch("control/queue/img")
        await worker.cached("img")
        assert await worker.ask.listdir("control/queue") == []
        record = await worker.record("cached/img")
        assert record.keys() >= RECORD_KEYS
        assert (record["state"], record["verified"], record["hits"]) == ("cached", True, 0)


async def test_queueing_what_is_cached_or_under_way_exists_already(
    served: Served, busy: FakeSource
) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.EEXIST):
            await worker.ask.touch("control/queue/a")
        handle = await worker.ask.open("images/img")
        with refused(errno.EEXIST):
            await worker.ask.touch("control/queue/img")
        await worker.ask.release(handle)


async def test_what_the_source_lacks_is_decided_by_no_touch_and_ends_in_invalid(
    served: Served,
) -> None:
    async with served() as worker:
        await worker.ask.touch("control/queue/unknown")
        record = await worker.failed("unknown")
        assert (record["state"], record["image_id"]) == ("invalid", "unknown")
        assert record["error"]
        assert await worker.ask.listdir("control/queue") == []


async def test_a_queued_image_waits_in_order_and_can_be_taken_out(
    served: Served, busy: FakeSource
) -> None:
    busy.images |= {"b": SMALL, "c": SMALL, "d": SMALL}
    async with served(max_fetches=1) as worker:
        await worker.ask.touch("control/queue/img")
        await until(lambda: worker.fetching == {"img"})
        await worker.ask.echo("b\nc\n\nd\nb\n", "control/enqueue")
        assert await worker.ask.cat("control/enqueue") == b"b\nc\nd\n"
        assert (await worker.record("queue/c"))["state"] == "queued"
        await worker.ask.unlink("control/queue/c")
        await worker.ask.echo("7", "control/queue/d")
        assert await worker.ask.listdir("control/queue") == ["d", "b"]
        assert (await worker.record("queue/d"))["priority"] == 7


@pytest.mark.parametrize("text", ["high", "1.5", "12345678"])
async def test_a_bad_priority_is_invalid(served: Served, busy: FakeSource, text: str) -> None:
    async with served(max_fetches=1) as worker:
        await worker.ask.touch("control/queue/img")
        await until(lambda: worker.fetching == {"img"})
        busy.images["b"] = SMALL
        handle = await worker.ask.create("control/queue/b")
        with refused(errno.EINVAL):
            await worker.ask.write(handle, text)
        await worker.ask.release(handle)
        assert (await worker.record("queue/b"))["priority"] == 0


async def test_a_bad_line_of_enqueue_queues_none_of_its_write(
    served: Served, busy: FakeSource
) -> None:
    async with served() as worker:
        with refused(errno.EINVAL):
            await worker.ask.echo("img\n.bad\n", "control/enqueue")
        assert await worker.ask.listdir("control/queue") == []
        assert worker.fetching == set()


async def test_enqueue_takes_a_list_that_is_cut_anywhere(served: Served, busy: FakeSource) -> None:
    names = [f"image-{number:04}" for number in range(600)]
    text = "".join(f"{name}\n" for name in names).encode()
    busy.answer.clear()
    async with served(max_fetches=1) as worker:
        handle = await worker.ask.open("control/enqueue", os.O_WRONLY)
        for start in range(0, len(text), MAX_VALUE):
            await worker.ask.write(handle, text[start : start + MAX_VALUE], start)
        await worker.ask.release(handle)
        assert set(worker.store.queued_ids()) == set(names)


async def test_rm_of_a_cached_record_evicts_unless_pinned(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        await worker.ask.touch("control/pinned/a")
        with refused(errno.EBUSY):
            await worker.ask.unlink("control/cached/a")
        await worker.ask.unlink("control/pinned/a")
        await worker.ask.unlink("control/cached/a")
        assert await worker.ask.listdir("control/cached") == []


@every_driver
async def test_a_pinned_image_is_listed_and_its_record_says_so(served: Served, driver: str) -> None:
    async with served(driver=driver, images={"a": SMALL, "b": SMALL}) as worker:
        await worker.ask.touch("control/pinned/a")
        await worker.ask.touch("control/pinned/a")
        assert await worker.ask.listdir("control/pinned") == ["a"]
        assert (await worker.record("cached/a"))["pinned"] is True
        assert await worker.ask.getxattr("images/a", "user.cachefs.pinned") == b"1"
        await worker.ask.unlink("control/pinned/a")
        assert await worker.ask.listdir("control/pinned") == []


async def test_rm_of_an_incomplete_record_cancels_and_its_reader_gets_an_error(
    served: Served, busy: FakeSource
) -> None:
    async with served() as worker:
        handle = await worker.ask.open("images/img")
        record = await worker.record("incomplete/img")
        assert (record["state"], record["progress"]) == ("incomplete", 0)
        assert await worker.ask.listdir("control/incomplete") == ["img"]
        await worker.ask.unlink("control/incomplete/img")
        assert await worker.ask.listdir("control/incomplete") == []
        with refused(errno.EIO):
            await worker.ask.read(handle)
        await worker.ask.release(handle)


async def test_an_incomplete_record_shows_how_many_bytes_have_come(
    served: Served, held: FakeSource
) -> None:
    async with served() as worker:
        handle = await worker.ask.open("images/img")
        await worker.ask.read(handle, 0, 4096)
        assert (await worker.record("incomplete/img"))["progress"] >= MIB
        await worker.ask.release(handle)


async def test_rm_of_an_invalid_record_forgets_it_and_touching_the_queue_tries_again(
    served: Served, source: FakeSource
) -> None:
    async with served() as worker:
        for name in ("late", "later"):
            await worker.ask.touch(f"control/queue/{name}")
            await worker.failed(name)
        await worker.ask.unlink("control/invalid/late")
        assert await worker.ask.listdir("control/invalid") == ["later"]
        source.images["later"] = SMALL
        await worker.ask.touch("control/queue/later")
        await worker.cached("later")
        assert await worker.ask.listdir("control/invalid") == []


@every_directory
async def test_a_record_of_what_is_not_there_does_not_exist(
    served: Served, declared: Records
) -> None:
    async with served() as worker:
        with refused(errno.ENOENT):
            await worker.ask.lookup(f"control/{declared.name}/img")
        with refused(errno.ENOENT):
            await worker.ask.unlink(f"control/{declared.name}/img", lookup=False)


@every_directory
@pytest.mark.parametrize("name", [".hidden", "cache.db", "x" * 256, "tab\there"])
async def test_a_bad_id_is_invalid_in_every_directory(
    served: Served, declared: Records, name: str
) -> None:
    async with served() as worker:
        path = f"control/{declared.name}/{name}"
        with refused(errno.EINVAL):
            await worker.ask.lookup(path)
        with refused(errno.EINVAL):
            await worker.ask.touch(path)
        with refused(errno.EINVAL):
            await worker.ask.unlink(path, lookup=False)


@pytest.mark.parametrize("name", ["cached", "incomplete", "invalid"])
async def test_nothing_can_be_made_where_the_cache_alone_puts_records(
    served: Served, name: str
) -> None:
    async with served(images={"a": SMALL}) as worker:
        with refused(errno.EPERM):
            await worker.ask.touch(f"control/{name}/img")


async def test_what_is_not_cached_is_queued_and_pinned_when_it_is(
    served: Served, held: FakeSource
) -> None:
    async with served() as worker:
        await worker.ask.touch("control/pinned/img")
        assert await worker.ask.listdir("control/pinned") == ["img"]
        assert (await worker.record("pinned/img"))["state"] in {"queued", "incomplete"}
        held.gate.set()
        await worker.cached("img")
        record = await worker.record("pinned/img")
        assert (record["state"], record["pinned"]) == ("cached", True)
        with refused(errno.EBUSY):
            await worker.ask.unlink("control/cached/img")


async def test_an_image_that_was_to_be_pinned_and_is_not_any_more_is_cached_without(
    served: Served, held: FakeSource
) -> None:
    async with served() as worker:
        await worker.ask.touch("control/pinned/img")
        await worker.ask.unlink("control/pinned/img")
        held.gate.set()
        await worker.cached("img")
        assert await worker.ask.listdir("control/pinned") == []


async def test_an_image_being_read_is_fetched_to_its_end_once_it_is_to_be_pinned(
    served: Served, held: FakeSource
) -> None:
    async with served(on_last_close="cancel") as worker:
        handle = await worker.ask.open("images/img")
        await worker.ask.touch("control/pinned/img")
        await worker.ask.release(handle)
        held.gate.set()
        await worker.cached("img")
        assert (await worker.record("cached/img"))["pinned"] is True


async def test_an_image_to_be_pinned_that_cannot_be_had_says_so_in_pinned(served: Served) -> None:
    async with served() as worker:
        await worker.ask.touch("control/pinned/lacking")
        await worker.failed("lacking")
        record = await worker.record("pinned/lacking")
        assert (record["state"], record["pinned"]) == ("invalid", True)


async def test_a_record_takes_no_text(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.create("control/pinned/a")
        assert await worker.ask.write(handle, "\n") == 1
        with refused(errno.EINVAL):
            await worker.ask.write(handle, "text")
        await worker.ask.release(handle)


async def test_a_record_whose_image_has_left_is_gone_for_its_reader(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        handle = await worker.ask.open("control/cached/a")
        await worker.ask.unlink("control/cached/a")
        with refused(errno.ENOENT):
            await worker.ask.read(handle)
        await worker.ask.release(handle)


async def test_a_record_is_one_line_of_json(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        shown = await worker.ask.cat("control/cached/a")
        assert shown.count(b"\n") == 1
        assert json.loads(shown).keys() >= RECORD_KEYS


async def test_records_that_the_kernel_forgot_are_forgotten(served: Served) -> None:
    async with served(images={"a": SMALL}) as worker:
        inode = (await worker.ask.lookup("control/cached/a")).st_ino
        await worker.ask.listdir("control/cached")
        await worker.ask.forget()
        with refused(errno.ESTALE):
            await worker.ask.getattr(inode)
